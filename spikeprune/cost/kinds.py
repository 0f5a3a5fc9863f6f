"""The kinds of work of a network, and their counts over any number of sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

# What is counted, each in the embedding, every encoder layer and the head, [L+2].
KINDS: dict[str, str] = {
    "ac": "additions, of a weight or an operand of attention that a spike selects, or of a residual",
    "mac": "multiply-accumulates of two real numbers",
    "norm": "elements through a layer norm, and roots of adaptive thresholds",
    "softmax": "elements through a softmax",
    "activation": "elements through gelu or tanh",
    "updates": "membrane updates: a current added and compared with the threshold; or roundings of a dense activation",
    "leaks": "membranes multiplied by their leak",
    "spikes": "spikes sent, each of which resets a membrane",
    "events": "times that a spike is read",
    "weights": "weights read, one for each spike",
    "operands": "real numbers of attention read, one for each spike",
    "dense_weights": "weights read, one for each multiply-accumulate",
    "dense_operands": "keys and values read, one for each multiply-accumulate",
    "kept_operands": "keys and values read once for all queries of a sentence",
    "inputs": "real activations read, once for each matrix that they enter",
    "outputs": "results of dense products written",
}
ELEMENTWISE = ("norm", "softmax", "activation")


@dataclass(frozen=True)
class Operations:
    """Work summed over `samples` sentences: float64 [L+2] for each of KINDS. `a + b` joins two batches.

    `ac_per_step` [L+2, max T] splits `ac` by the step of the spike, counted from the first step of its own train.
    `tokens`: real tokens of all sentences, a scalar.
    """

    kinds: Mapping[str, Tensor]
    ac_per_step: Tensor
    tokens: Tensor
    samples: int

    @property
    def ac(self) -> Tensor:
        return self.kinds["ac"]

    @property
    def mac(self) -> Tensor:
        return self.kinds["mac"]

    @property
    def elementwise(self) -> Tensor:
        """Elements through a layer norm, softmax, gelu or tanh."""
        return sum(self.kinds[kind] for kind in ELEMENTWISE)

    def __add__(self, other: Operations) -> Operations:
        width = max(self.ac_per_step.shape[1], other.ac_per_step.shape[1])
        return Operations(
            kinds={kind: values + other.kinds[kind] for kind, values in self.kinds.items()},
            ac_per_step=widen(self.ac_per_step, width) + widen(other.ac_per_step, width),
            tokens=self.tokens + other.tokens,
            samples=self.samples + other.samples,
        )

    def with_work(self, other: Operations) -> Operations:
        """The work of `other` on the same sentences added."""
        both = self + other
        return Operations(both.kinds, both.ac_per_step, tokens=self.tokens, samples=self.samples)

    def mapped(self, change: Callable[[Tensor], Tensor], samples: int | None = None) -> Operations:
        """Every tensor changed, such as moved to a device, or summed over processes with their `samples`."""
        return Operations(
            kinds={kind: change(values) for kind, values in self.kinds.items()},
            ac_per_step=change(self.ac_per_step),
            tokens=change(self.tokens),
            samples=self.samples if samples is None else samples,
        )

    def per_sample(self) -> dict[str, float]:
        """Mean operations of one sentence: `ac`, `mac`, `elementwise`."""
        shown = {"ac": self.ac, "mac": self.mac, "elementwise": self.elementwise}
        return {kind: values.sum().item() / self.samples for kind, values in shown.items()}

    def work(self) -> dict[str, list[float]]:
        """Mean work of one sentence of each of KINDS: lists of L+2."""
        return {kind: (values / self.samples).tolist() for kind, values in self.kinds.items()}


def of_rows(rows: int, like: Tensor, *, tokens: Tensor, samples: int, **kinds: Tensor) -> Operations:
    """Operations of these kinds, `[rows]` each, and of none of the others; additions stand at the first step."""
    zero = like.new_zeros(rows)
    found = {kind: kinds.get(kind, zero) for kind in KINDS}
    if unknown := set(kinds) - set(KINDS):
        raise ValueError(f"unknown kinds of work: {', '.join(sorted(unknown))}")
    return Operations(found, ac_per_step=found["ac"][:, None], tokens=tokens, samples=samples)


def widen(x: Tensor, width: int) -> Tensor:
    return pad(x, (0, width - x.shape[-1]))
