"""Operations of a spiking student and of its dense teacher, counted from masks, steps and spike counts.

Three kinds of operation, never mixed: `ac` (a spike adds a weight), `mac` (real × real) and `elementwise` (one element
through a layer norm, softmax, gelu or tanh). Padding is left out everywhere. Not counted, on either side: biases, table
look-ups, the additions of dense residuals, the membranes' own updates and the single division of an average.

Legend: T steps, B batch, n real tokens of a sample, D hidden, H heads, d = D/H, F neurons, L layers, C classes.
Rows of every per-layer tensor [L+2]: the embedding, the encoder layers, the head (pooling and classifier). An operation
belongs to the layer whose weights it uses, so the embedding's spikes are paid for by the first encoder layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from spikeprune.cost.adaptive_threshold import gain_work
from spikeprune.cost.shapes import Shape, SynapseCounts, check_masks
from spikeprune.errors import known

CODINGS = ("accumulate", "running_mean", "per_step")


@dataclass(frozen=True)
class Operations:
    """Operations summed over `samples` sentences: float64 [L+2] each. `a + b` joins two batches.

    `ac_per_step` [L+2, max T] splits `ac` by the step of the spike, counted from the first step of its own train.
    """

    ac: Tensor
    mac: Tensor
    elementwise: Tensor
    ac_per_step: Tensor
    samples: int

    def __add__(self, other: Operations) -> Operations:
        width = max(self.ac_per_step.shape[1], other.ac_per_step.shape[1])
        return Operations(
            ac=self.ac + other.ac,
            mac=self.mac + other.mac,
            elementwise=self.elementwise + other.elementwise,
            ac_per_step=_widen(self.ac_per_step, width) + _widen(other.ac_per_step, width),
            samples=self.samples + other.samples,
        )

    def per_sample(self) -> dict[str, float]:
        """Mean operations of one sentence: `ac`, `mac`, `elementwise`."""
        return {kind: values.sum().item() / self.samples for kind, values in self._kinds()}

    def per_layer(self) -> dict[str, list[float]]:
        """Mean operations of one sentence in the embedding, each encoder layer and the head: lists of L+2."""
        return {kind: (values / self.samples).tolist() for kind, values in self._kinds()}

    def per_step(self) -> list[list[float]]:
        """Mean additions of one sentence, [L+2][max T]."""
        return (self.ac_per_step / self.samples).tolist()

    def _kinds(self):
        return (("ac", self.ac), ("mac", self.mac), ("elementwise", self.elementwise))


def _widen(x: Tensor, width: int) -> Tensor:
    return pad(x, (0, width - x.shape[-1]))


def _total(rows: list[Tensor]) -> Tensor:
    """Sum of vectors [T_i] of unequal lengths, [max T]."""
    width = max(row.shape[0] for row in rows)
    return torch.stack([_widen(row, width) for row in rows]).sum(0)


def _additions(spikes: Tensor, *, fan_out: Tensor | float = 1.0, keep: Tensor | None = None) -> Tensor:
    """Additions at each step, [T]: spikes [T,B,channels] of kept channels times `fan_out` (a number, or [B]). `keep`
    [channels]: 0 or 1, or a fan-out of each channel."""
    spikes = spikes.double()
    fired = spikes.sum(-1) if keep is None else spikes @ keep[: spikes.shape[-1]]  # [T,B]; compacted: fewer
    return (fired * fan_out).sum(-1)


def readers(
    *, shape: Shape, heads: Tensor, ffn: Tensor, links: SynapseCounts | None
) -> tuple[Tensor, Tensor | float, Tensor, Tensor | float]:
    """The synapses of a layer by their source: from a channel below to q, k and v, from one of the context, of h and
    of the intermediate site. A number for all channels, or with `links` one for each; heads [H] and ffn [F] masks."""
    if links is None:
        return 3 * shape.head_size * heads.sum(), shape.hidden, ffn.sum(), shape.hidden
    qkv, out, up, down = (part.to(heads) for part in links)
    return qkv @ heads[: qkv.shape[1]], out, up @ ffn[: up.shape[1]], down


def count(
    counts: Mapping[str, Tensor],
    lengths: Tensor,
    *,
    shape: Shape,
    heads: Tensor,
    ffn: Tensor,
    t_steps: Sequence[int] | Tensor,
    coding: str,
    links: Sequence[SynapseCounts] | None = None,
) -> Operations:
    """Operations of the spiking student on one batch.

    counts: site name → [T_site, B, channels], how many of a sample's real tokens spiked (a ternary −1 is one spike).
    lengths: [B] real tokens. heads: [L,H], ffn: [L,F], 0/1 masks, a compacted student's too. t_steps: L+1 ints.
    links: the synapses of each layer, where single ones are missing (`SpikingBert.links`).

    - A spike costs one addition per outgoing synapse, to all kept units or as `links` has it, and one for the residual
      where it has one. Pruned heads and neurons neither send nor receive. With `shape.membrane` a residual is D
      additions of currents for each token, in the synchronous codings at each of the layer's steps, whatever fires.
    - A key or value spike costs one addition per query that attends, n. With `query="spiking"` a sum needs a spike on
      both sides: in `per_step` the pairs that fire together are counted exactly; in `accumulate` the query is a held
      average when the keys fire, and n per key spike is an upper bound (a query of zero would save it).
    - `running_mean` alone pays MACs for attention, 2n²d per kept head and step: query, weights, and the running means
      of keys and values are all many-valued and all change at every step, so no product has a spike as operand. Its
      key and value spikes add nothing further. (The rule above would call these additions, and flatter it.)
    - In the synchronous codings layer l is silent after its own T_l steps, so spikes that reach it later are free; a
      train that ends before T_l is held as the sum it left behind, and adds nothing either.
    - Quantized weights change nothing here. With a threshold per channel that is not folded a spike of channel j adds
      code · θ_j, a real number; folded, or with one threshold for all, it adds the code. Codes of zero would need no
      addition and are counted all the same; an output channel's scale multiplies a finished sum once and is left out,
      as its bias is.
    - Embeddings of another width than D are projected once, in MACs. A relative position bias is a bias.
    - Non-linear functions are evaluated once in `accumulate` and T_l times in the synchronous codings; the embedding's
      layer norm and the head once in all.
    - With `shape.feedback` a spike of the last layer also adds D to the embedding's site, one step later, if that still
      fires. With `shape.gain` the thresholds' own work is added (see `gains`).

    Raises ValueError for an unknown coding or shapes that do not fit, KeyError for a site that is missing.
    """
    known("coding", coding, CODINGS)
    check_masks(shape, heads, ffn)
    steps = [int(t) for t in t_steps]
    if len(steps) != shape.layers + 1:
        raise ValueError(
            f"{len(steps)} time steps given, expected {shape.layers + 1}: the embedding's and each layer's"
        )
    n = lengths.double()
    heads, ffn = heads.to(n), ffn.to(n)
    embedding = [n.new_zeros(1)], n.sum() * shape.projection, n.sum() * shape.width
    if shape.feedback:
        arriving = counts[f"layers.{shape.layers - 1}.output"][: steps[0] - 1]
        embedding[0].append(_additions(arriving, fan_out=shape.hidden))
    layers = [
        _encoder_layer(
            *(counts, n, layer),
            shape=shape,
            heads=heads[layer],
            ffn=ffn[layer],
            steps=steps[layer + 1],
            coding=coding,
            links=None if links is None else links[layer],
        )
        for layer in range(shape.layers)
    ]
    additions, mac, elementwise = zip(embedding, *layers, _head(counts, n, shape=shape), strict=True)
    rows = [_total(row) for row in additions]
    width = max(row.shape[0] for row in rows)
    ac_per_step = torch.stack([_widen(row, width) for row in rows])
    mac, elementwise = torch.stack(mac), torch.stack(elementwise)
    if shape.gain:
        more = gain_work(n, shape=shape, heads=heads, ffn=ffn, steps=steps, coding=coding)
        mac, elementwise = mac + more[0], elementwise + more[1]
    return Operations(
        ac=ac_per_step.sum(1),
        mac=mac,
        elementwise=elementwise,
        ac_per_step=ac_per_step,
        samples=len(n),
    )


def _encoder_layer(counts, n, layer, *, shape, heads, ffn, steps, coding, links):
    """Additions [T] of each kind of synapse, MACs and element-wise operations of one encoder layer."""
    kept_heads, kept_ffn, d = heads.sum(), ffn.sum(), shape.head_size
    channels = heads.repeat_interleave(d)  # [D], head-major
    synchronous = coding != "accumulate"
    times = steps if synchronous else 1  # that a function is evaluated

    def site(name):
        return counts[f"layers.{layer}.{name}"]

    own = 0.0 if shape.membrane else 1.0
    below = counts["embedding"] if layer == 0 else counts[f"layers.{layer - 1}.output"]
    qkv, out, up, down = readers(shape=shape, heads=heads, ffn=ffn, links=links)
    every = n.new_ones(shape.hidden)
    additions = [
        _additions(below[:steps] if synchronous else below, keep=every * (qkv + own)),  # q, k, v, residual
        _additions(site("context"), keep=channels[: site("context").shape[-1]] * out),
        _additions(site("attention"), keep=every * (up + own)),  # W1, residual
        _additions(site("intermediate"), keep=ffn[: site("intermediate").shape[-1]] * down),
    ]
    if shape.membrane:
        additions.append((2 * shape.hidden * n.sum()).expand(times))
    mac = n.new_zeros(())
    if coding == "running_mean":
        mac = 2 * d * kept_heads * steps * n.square().sum()
    else:
        pairs = coding == "per_step" and shape.query == "spiking"
        # Pairs of tokens with a spike in the same channel: (Σ_i q_i)(Σ_j k_j) = Σ_ij q_i k_j for 0/1 spikes.
        scores = site("query").double() * site("key").double() if pairs else site("key")
        additions.append(_additions(scores, fan_out=1.0 if pairs else n, keep=channels))
        additions.append(_additions(site("value"), fan_out=n, keep=channels))
    once = 2 * shape.hidden * n.sum() + kept_heads * n.square().sum() + kept_ffn * n.sum()  # LN twice, softmax, gelu
    return additions, mac, once * times


def _head(counts, n, *, shape):
    """Pooling and classifier. `mean` adds each spike of the last layer once; `cls` sends [CLS]'s through the pooler."""
    samples = n.new_tensor(float(len(n)))
    mac = samples * shape.hidden * shape.classes
    if shape.pooling == "cls":
        return [_additions(counts["pooled"], fan_out=shape.hidden)], mac, samples * shape.hidden
    return [_additions(counts[f"layers.{shape.layers - 1}.output"])], mac, n.new_zeros(())


def fan_out(
    *, shape: Shape, heads: Tensor, ffn: Tensor, tokens: Tensor | float, links: Sequence[SynapseCounts] | None = None
) -> dict[str, Tensor | float]:
    """Additions that one spike of each site costs, by the rule of `count` for `accumulate` and `per_step`.

    heads [L,H] and ffn [L,F] masks; `tokens`: queries that attend, n; `links` as in `count`. A number for all channels,
    or one for each [D].
    What a loss needs to price firing: `T_l * mean |ASR| * fan_out`, summed over channels and sites, are a token's AC;
    with feedback a little more than that, since the spikes of the last step come back too late; with `shape.membrane`
    without the residuals, which no firing changes.
    """
    own = 0.0 if shape.membrane else 1.0
    layers = [
        readers(shape=shape, heads=heads[i], ffn=ffn[i], links=None if links is None else links[i])
        for i in range(shape.layers)
    ]
    last = (1.0 if shape.pooling == "mean" else 0.0) + shape.hidden * shape.feedback
    sent = [*(qkv + own for qkv, *_ in layers), last]  # over a spike of the embedding's and of each layer's output
    costs: dict[str, Tensor | float] = {"embedding": sent[0]}
    for i, (_, out, up, down) in enumerate(layers):
        attended = tokens * heads[i].repeat_interleave(shape.head_size)
        sites = {"key": attended, "value": attended, "context": out, "attention": up + own}
        sites |= {"intermediate": down, "output": sent[i + 1]}
        costs |= {f"layers.{i}.{name}": cost for name, cost in sites.items()}
    return costs


def unfired(*, shape: Shape, t_steps: Sequence[int], coding: str) -> int:
    """A token's additions that no spike causes, by the rule of `count`: those of `shape.membrane`'s residuals."""
    if not shape.membrane:
        return 0
    return 2 * shape.hidden * (shape.layers if coding == "accumulate" else sum(t_steps[1:]))


def dense(lengths: Tensor, *, shape: Shape) -> Operations:
    """Operations of the dense BERT of this shape on sentences of `lengths` [B], padding left out: MAC and elementwise.

    MAC of a sentence: L(4nD² + 2n²D + 2nDF) + D·C, and D² more where there is a pooler (`pooling="cls"`), and nED where
    embeddings of another width E are projected. Agrees with `torch.utils.flop_counter` (which counts a MAC as two).
    """
    n = lengths.double()
    hidden, samples = shape.hidden, n.new_tensor(float(len(n)))
    tokens, pairs = n.sum(), n.square().sum()
    pooler = shape.pooling == "cls"
    layer_mac = tokens * hidden * (4 * hidden + 2 * shape.ffn) + 2 * hidden * pairs
    layer_elementwise = tokens * (2 * hidden + shape.ffn) + shape.heads * pairs
    mac = [tokens * shape.projection, *[layer_mac] * shape.layers, samples * hidden * (shape.classes + hidden * pooler)]
    elementwise = [tokens * shape.width, *[layer_elementwise] * shape.layers, samples * hidden * pooler]
    return Operations(
        ac=n.new_zeros(shape.layers + 2),
        mac=torch.stack(mac),
        elementwise=torch.stack(elementwise),
        ac_per_step=n.new_zeros(shape.layers + 2, 1),
        samples=len(n),
    )
