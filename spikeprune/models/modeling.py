"""SpikingBERT, embeddings to logits.

Shapes: T steps, B batch, N tokens, D hidden, H heads, d = D/H, F feed-forward neurons, L layers, C classes; time first.
Per layer (Bal & Sengupta 2024, arXiv 2308.10873, section 3; the query is a current unless it spikes too):

    k = spike(Wk a)   v = spike(Wv a)   c = spike(softmax(q k^T / sqrt d + mask) v), q = Wq a
    h = spike(LN(Wo c + a))   f = spike(gelu(W1 h))   a' = spike(LN(W2 f + h))

With `residual="membrane"` what goes past a block is not the spikes a and h but the currents inside spike(…), as in the
membrane shortcut of Hu et al. (arXiv 2112.08954) and of Spike-driven Transformer (Yao et al. 2023, arXiv 2307.01694).

Every matrix product but q k^T and the softmax's with v has a spiking operand on its own; those two have k and v.

`forward` makes a `ForwardContext`, which says what is asked for; `encode` goes once through embedding and layers, each
site firing by itself (`snn/spiking_layer.py`), or has `encoder.py` do all of that on a GPU; `answer` turns the last
values into logits.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spikeprune.cost.shapes import SynapseCounts
from spikeprune.errors import known
from spikeprune.kernels import encoder
from spikeprune.models import weights
from spikeprune.models.checkpoint_facts import ACTIVATIONS
from spikeprune.models.feedback import close
from spikeprune.models.layers import EncoderLayer, Map, SpikingEmbedding, layer_of
from spikeprune.models.outputs import Outputs
from spikeprune.models.packing import PackedLinear
from spikeprune.models.quantization import QUANTIZERS, WEIGHTS
from spikeprune.models.sparsity import Synapses, counted
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.spiking_layer import KERNELS, SpikingLayer

__all__ = ["SpikingBert", "layer_of"]
RESIDUALS = ("spikes", "membrane")
QUERIES = ("real", "spiking")
POOLINGS = ("mean", "cls")


def unit_counts(layers: int, most: int, counts: Sequence[int] | None) -> list[int]:
    """Units of each layer: `most` everywhere unless `counts` says. Raises ValueError for a wrong number of them."""
    counts = [most] * layers if counts is None else list(counts)
    if len(counts) != layers or not all(0 <= n <= most for n in counts):
        raise ValueError(f"units must be {layers} numbers from 0 to {most}, got {counts}")
    return counts


def first(counts: Sequence[int], width: int) -> Tensor:
    """`[L, width]`: as many leading ones in each row as `counts` says, then zeros."""
    return (torch.arange(width) < torch.tensor(counts)[:, None]).float()


def refresh_synapses(student: SpikingBert, _: Any) -> None:
    """After a checkpoint was loaded. A function of the module, since a student is sent to other processes pickled."""
    student.synapses.refresh_masks(student)


class SpikingBert(nn.Module):
    """Token ids to logits through spikes.

    `state_dict` holds all that changes the output: weights, thresholds (as logarithms), the masks `heads [L, H]` and
    `ffn [L, F]` (1 kept, 0 pruned), `t_steps [L+1]` (the embedding's site, then each layer), and with `weights` other
    than float the scalar `strength`: 0, the matrices of the encoder act as they are stored, to 1, they act quantized.
    A float student has no `strength`, so it refuses a quantized one's checkpoint.

    `heads` and `ffn` are the uncompressed architecture's. A layer may have fewer: `layer_heads` and `layer_ffn`, a
    number each (see `compact`). The masks stay `[L, H]` and `[L, F]`, with 1 for the units that a layer has, which come
    first, and 0 for what it lacks: shares and costs still compare with the whole. `values` rebuilds the student.

    `packed`: the encoder's matrices are held as few-bit codes and scales and are final. `fold`: thresholds per channel
    are folded into the matrices that read them before these are quantized (see `quant`). `sparse`: a weight of zero in
    the encoder's matrices is no synapse (see `synapses`). `labels`: what the classes are called, in their order.
    """

    def __init__(
        self,
        *,
        vocab: int,
        positions: int,
        segments: int,
        hidden: int,
        layers: int,
        heads: int,
        ffn: int,
        classes: int,
        t_steps: int | Sequence[int],
        spikes: str = "ternary",
        leak: float = 1.0,
        theta: str = "channel",
        coding: str = "accumulate",
        query: str = "real",
        pooling: str = "mean",
        act: str = "gelu",
        eps: float = 1e-12,
        kernels: str = "torch",
        weights: str = "float",
        fold: bool = False,
        packed: bool = False,
        feedback: bool = False,
        residual: str = "spikes",
        dead_zone: bool = False,
        sparse: bool = False,
        layer_heads: Sequence[int] | None = None,
        layer_ffn: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
    ):
        values = {name: value for name, value in locals().items() if name not in ("self", "__class__", "kernels")}
        super().__init__()
        known("weights", weights, tuple(QUANTIZERS) if packed else WEIGHTS)
        known("residual", residual, RESIDUALS)
        known("query", query, QUERIES)
        known("pooling", pooling, POOLINGS)
        known("act", act, ACTIVATIONS)
        if hidden % heads:
            raise ValueError(f"hidden size {hidden} is no multiple of {heads} heads")
        if labels is not None and len(labels) != classes:
            raise ValueError(f"{classes} classes need as many labels, not {len(labels)}")
        if sparse and weights != "float":
            raise ValueError(f"a sparse student's weights are float, not {weights}")
        if feedback and coding == "accumulate":
            raise ValueError("feedback needs a synchronous coding: in accumulate the last layer fires after the first")
        self.values, self.packed = values, packed
        self.fold = fold and theta == "channel" and weights != "float"  # one theta for all is a matter of the scale
        own_heads, own_ffn = unit_counts(layers, heads, layer_heads), unit_counts(layers, ffn, layer_ffn)
        common = {"neuron": spikes, "leak": leak, "coding": coding, "theta": theta, "eps": eps}
        common |= {"kernels": kernels, "dead_zone": dead_zone, "residual": residual}
        self.coding, self.pooling, self.query, self.weights = coding, pooling, query, weights
        sizes = {"vocab": vocab, "positions": positions, "segments": segments, "hidden": hidden}
        self.embedding = SpikingEmbedding(**sizes, feedback=feedback, **common)
        common |= {"hidden": hidden, "head_size": hidden // heads, "query": query, "act": act}
        common |= {"linear": partial(PackedLinear, weights=weights)} if packed else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element")  # a layer of no heads, or no neurons
            self.layers = nn.ModuleList(
                EncoderLayer(i, heads=own_heads[i], ffn=own_ffn[i], **common) for i in range(layers)
            )
        self.pooler = nn.Linear(hidden, hidden) if pooling == "cls" else None
        self.layers[-1].output_site.count_first = pooling == "cls"
        self.layers[-1].output_site.sends_pulses = True
        self.classifier = nn.Linear(hidden, classes)
        self.register_buffer("heads", first(own_heads, heads))
        self.register_buffer("ffn", first(own_ffn, ffn))
        self.register_buffer("t_steps", torch.ones(layers + 1, dtype=torch.long))
        if weights != "float" and not packed:
            self.register_buffer("strength", torch.zeros(()))
        self._read: dict[str, tuple] = {}
        self.set_t_steps(t_steps)
        self.synapses = None
        if sparse:
            self.synapses = Synapses(self)
            self.synapses.refresh_masks(self)
            self.register_load_state_dict_post_hook(refresh_synapses)

    @property
    def steps(self) -> list[int]:
        """`t_steps` as numbers."""
        return self._numbers("t_steps")

    @property
    def quantized(self) -> float:
        """`strength` as a number; 0 for a float student, 1 for a packed one."""
        if self.packed:
            return 1.0
        return 0.0 if self.weights == "float" else self._numbers("strength")

    @property
    def stored_bits(self) -> int:
        """Bits that a weight of the encoder's matrices takes when packed: float32 until it is quantized all the way."""
        return QUANTIZERS[self.weights].stored if self.quantized == 1 else 32

    def __getstate__(self) -> dict[str, Any]:
        """Without the numbers read so far: they are known by a buffer's place in this process' memory."""
        return {**self.__dict__, "_read": {}}

    def _numbers(self, name: str) -> Any:
        """A buffer as numbers; read from the device again only after it has changed."""
        buffer = getattr(self, name)
        version = (id(buffer), buffer._version)
        if self._read.get(name, (None,))[0] != version:
            self._read[name] = (version, buffer.tolist())
        return self._read[name][1]

    def set_t_steps(self, t_steps: int | Sequence[int]) -> None:
        """One number for all, or L+1 numbers. Raises ValueError for another length or a number below 1."""
        numbers = [t_steps] * len(self.t_steps) if isinstance(t_steps, int) else list(t_steps)
        if len(numbers) != len(self.t_steps) or min(numbers) < 1:
            raise ValueError(f"t_steps must be {len(self.t_steps)} numbers of at least 1, got {numbers}")
        self.t_steps.copy_(torch.tensor(numbers))

    def set_strength(self, strength: float) -> None:
        """How far the encoder's matrices act quantized. Raises ValueError outside 0 to 1, for a float student, and for
        a packed one, whose weights are final."""
        if self.packed:
            raise ValueError("a packed student's weights are final; quantize the masked student that it was made from")
        if self.weights == "float":
            raise ValueError(f"a student of float weights has no strength; weights may be {', '.join(QUANTIZERS)}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be from 0 to 1, got {strength}")
        self.strength.fill_(strength)

    def acting(self, layer: int, name: str) -> Map:
        """What a matrix of the encoder computes: as it is stored, or as far quantized as it now is."""
        return weights.acting(self, layer, name)

    def acting_weight(self, layer: int, name: str) -> Tensor:
        return weights.acting_weight(self, layer, name)

    def links(self) -> list[SynapseCounts] | None:
        """The synapses of each layer; None where every kept unit has all of them."""
        return None if self.synapses is None else [self.synapses.links(i) for i in range(len(self.layers))]

    def synapse_count(self) -> int | None:
        """Between kept units of all layers; None where they have all of them."""
        kept, possible = (0, 0) if self.synapses is None else counted(self)
        return None if kept == possible else kept

    def sites(self) -> dict[str, SpikingLayer]:
        return {module.name: module for module in self.modules() if isinstance(module, SpikingLayer)}

    def use_kernels(self, kernels: str) -> None:
        """What every site computes with: torch or triton (see `SpikingLayer`)."""
        known("kernels", kernels, KERNELS)
        for site in self.sites().values():
            site.kernels = kernels

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        mode: str = "equilibrium",
        count: bool = False,
        rate: bool = False,
        trace: bool = False,
        scores: bool = True,
        percentile: float = 99.0,
        deaden: float | None = None,
        settled: float | None = None,
        pulses: bool = False,
        heads: Tensor | None = None,
        ffn: Tensor | None = None,
    ) -> Outputs:
        """`[B, N]` ids and mask (1 real, 0 padding) -> `Outputs`.

        `mode`: equilibrium (what training uses; costs no T), spiking (step by step), calibrate (sets every theta from
        this batch). `count`, `rate` and `trace` ask for spike counts, differentiable rates, how fast each ASR settles.
        In equilibrium mode `count` needs the coding `accumulate`, and counts each train as a whole, `[1, B, D]`: the
        closed form knows no steps. Without `scores` attention may be fused where no gradient is wanted.
        `heads [B, L, H]` and `ffn [B, L, F]` stand in for the masks, sample by sample, when their gradient is wanted.
        `deaden`, `settled`: see `ForwardContext`; `pulses` keeps the last layer's, which a synchronous coding's
        answers so far are read from.
        """
        if count and mode == "equilibrium" and self.coding != "accumulate":
            raise ValueError(f"the closed form does not count the spikes of coding {self.coding}; use mode='spiking'")
        asked = {"count": count, "rate": rate, "trace": trace, "scores": scores, "percentile": percentile}
        asked["pulses"] = pulses
        run = ForwardContext(mode, attention_mask.bool(), **asked, deaden=deaden, settled=settled)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        encode = partial(self.encode, input_ids, token_type_ids, heads=heads, ffn=ffn)
        solved: dict[str, float] = {}
        if self.embedding.feedback is None:
            signal, hidden, all_scores = encode(run=run)
        else:
            zero = self.classifier.weight.new_zeros(*input_ids.shape, self.classifier.in_features)
            how = {"t_steps": self.steps[0], "leak": self.embedding.site.leak, "solved": solved}
            back = close(encode, run, zero, **how)
            signal, hidden, all_scores = encode(run=run, back=back)
        logits = self.answer(signal.value, run.tokens)  # [B, C]
        at_values = tuple(scores for scores in all_scores if scores is not None)
        left = {"rates": run.rates, "counts": run.counts, "traces": run.traces, "stops": run.stops, "solved": solved}
        return Outputs(logits, tuple(hidden), at_values, **left, pulses=signal.pulses if pulses else None)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        *,
        run: ForwardContext,
        heads: Tensor | None,
        ffn: Tensor | None,
        back: SpikeTrain | None = None,
    ) -> tuple[SpikeTrain, list[Tensor], list[Tensor | None]]:
        """Once through embedding and layers -> the last signal, the values `[B, N, D]` of each, attention scores.
        `back`: what the last layer sends to the first. The engine gives the same up to rounding, faster."""
        if back is None and heads is None and ffn is None and encoder.covers(self, run):
            return encoder.encode(self, input_ids, token_type_ids, run=run)
        t_embedding, *t_layers = self.steps
        signal = self.embedding(input_ids, token_type_ids, t_steps=t_embedding, run=run, back=back)  # [B, N, D]
        hidden, all_scores = [signal.value], []
        for i, layer in enumerate(self.layers):
            head_mask = self.heads[i] if heads is None else heads[:, i, None]  # [H] or [B, 1, H]
            ffn_mask = self.ffn[i] if ffn is None else ffn[:, i, None]  # [F] or [B, 1, F]
            masks = {"heads": head_mask[..., : layer.heads], "ffn": ffn_mask[..., : layer.ffn]}
            signal, scores = layer(signal, **masks, t_steps=t_layers[i], run=run, acting=partial(self.acting, i))
            hidden.append(signal.value)
            all_scores.append(scores)
        return signal, hidden, all_scores

    def answer(self, a: Tensor, tokens: Tensor) -> Tensor:
        """The last layer's values `[..., B, N, D]` -> logits `[..., B, C]`: of [CLS] through BERT's pooler, or of the
        mean over the real `tokens [B, N]`."""
        if self.pooler is not None:
            return self.classifier(self.pooler(a[..., 0, :]).tanh())
        weights = tokens.to(a.dtype)
        return self.classifier(torch.einsum("...nd,...n->...d", a, weights) / weights.sum(1, keepdim=True))
