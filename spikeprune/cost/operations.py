"""Work of a spiking student, counted from masks, steps and spike counts; that of dense networks is in `cost/dense.py`.

Kinds of operation are never mixed: `ac` (a spike adds a weight), `mac` (real × real) and elements through a layer norm,
softmax, gelu or tanh; `cost/kinds.py` lists them with the reads and writes that go with them. Padding is left out
everywhere. Not counted, on either side: biases, table look-ups, the additions of dense residuals and the single
division of an average.

Legend: T steps, B batch, n real tokens of a sample, D hidden, H heads, d = D/H, F neurons, L layers, C classes.
Rows of every per-layer tensor [L+2]: the embedding, the encoder layers, the head (pooling and classifier). An addition
belongs to the layer whose weights it uses, so the embedding's spikes are paid for by the first encoder layer; a spike
and a membrane belong to the layer of their neuron.

The rules, by which `count` counts:

- A spike costs one addition per outgoing synapse, to all kept units or as `links` has it, and one for the residual
  where it has one. Pruned heads and neurons neither send nor receive. With `shape.membrane` a residual is D
  additions of currents for each token, in the synchronous codings at each of the layer's steps, whatever fires.
- A key or value spike costs one addition per query that attends, n. With `query="spiking"` a sum needs a spike on
  both sides: in `per_step` the pairs that fire together are counted exactly; in `accumulate` the query is a held
  average when the keys fire, and n per key spike is an upper bound (a query of zero would save it).
- `running_mean` alone pays MACs for attention, 2n²d per kept head and step: query, weights, and the running means
  of keys and values are all many-valued and all change at every step, so no product has a spike as operand. Its
  key and value spikes add nothing further. (The rule above would call these additions, and flatter it.)
- A synchronous coding that is neither is counted as `per_step`, with the bound of `accumulate` for a spiking query.
- In the synchronous codings layer l is silent after its own T_l steps, so spikes that reach it later are free; a
  train that ends before T_l is held as the sum it left behind, and adds nothing either.
- Quantized weights change nothing here. With a threshold per channel that is not folded a spike of channel j adds
  code · θ_j, a real number; folded, or with one threshold for all, it adds the code. Codes of zero would need no
  addition and are counted all the same; an output channel's scale multiplies a finished sum once and is left out,
  as its bias is.
- Embeddings of another width than D are projected once, in MACs. A relative position bias is a bias.
- Non-linear functions are evaluated once in `accumulate` and T_l times in the synchronous codings; the embedding's
  layer norm and the head once in all.
- A membrane is updated at each of its T_l steps, whatever fires. A spike is written once and read once by the layer
  that it enters; one of a key or value in `accumulate`, where each query's sums are formed in turn, once for each
  query.
- With `shape.feedback` a spike of the last layer also adds D to the embedding's spiking layer, one step later, if
  that still fires. With `shape.gain` the thresholds' own work is added (`gain_work`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spikeprune.config.names import CODINGS
from spikeprune.cost.activity import kept_channels, place
from spikeprune.cost.kinds import KINDS, Operations
from spikeprune.cost.shapes import Shape, SynapseCounts, check_masks
from spikeprune.cost.synapses import readers
from spikeprune.errors import known

Layer = tuple[list[Tensor], dict[str, Tensor]]  # additions [T] of each kind of synapse, and work of the other kinds


def _additions(spikes: Tensor, *, fan_out: Tensor | float = 1.0, keep: Tensor | None = None) -> Tensor:
    """Additions at each step, [T]: spikes [T,B,channels] of kept channels times `fan_out` (a number, or [B]). `keep`
    [channels]: 0 or 1, or a fan-out of each channel."""
    spikes = spikes.double()
    fired = spikes.sum(-1) if keep is None else spikes @ keep[: spikes.shape[-1]]  # [T,B]; compacted: fewer
    return (fired * fan_out).sum(-1)


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
    leak: float = 1.0,
) -> Operations:
    """Operations of the spiking student on one batch, by the rules above.

    counts: name of a spiking layer → [T_l, B, channels], how many of a sample's real tokens spiked (a ternary −1 is
        one spike).
    lengths: [B] real tokens. heads: [L,H], ffn: [L,F], 0/1 masks, a compacted student's too. t_steps: L+1 ints.
    links: the synapses of each layer, where single ones are missing (`SpikingBert.links`). leak: of the
    membranes.

    Raises ValueError for an unknown coding or shapes that do not fit, KeyError for a spiking layer that is missing.
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
    rows = [_embedding(counts, n, steps[0], shape=shape), *layers, _head(counts, n, shape=shape)]
    additions = [pad_sequence(row, batch_first=True).sum(0) for row, _ in rows]  # trains differ in their steps
    ac_per_step = pad_sequence(additions, batch_first=True)
    zero = n.new_zeros(())
    kinds = {kind: torch.stack([work.get(kind, zero) for _, work in rows]) for kind in KINDS}
    kinds |= _firing(counts, n, shape=shape, heads=heads, ffn=ffn, steps=steps, coding=coding, leak=leak)
    kinds["ac"] = ac_per_step.sum(1)
    if shape.gain:
        mac, roots = gain_work(n, shape=shape, heads=heads, ffn=ffn, steps=steps, coding=coding)
        kinds["mac"], kinds["norm"] = kinds["mac"] + mac, kinds["norm"] + roots
    return Operations(kinds, ac_per_step=ac_per_step, tokens=n.sum(), samples=len(n))


def _embedding(counts, n: Tensor, steps: int, *, shape: Shape) -> Layer:
    additions, work = [n.new_zeros(1)], embedded(n.sum(), shape=shape)
    if shape.feedback:
        arriving = counts[f"layers.{shape.layers - 1}.output"][: steps - 1]
        additions.append(_additions(arriving, fan_out=shape.hidden))
        work["weights"] = additions[1].sum()
    return additions, work


def embedded(tokens: Tensor, *, shape: Shape) -> dict[str, Tensor]:
    """Work of the embeddings: their layer norm, and the projection of those of another width than D."""
    work = {"norm": tokens * shape.width}
    return work | product(tokens, shape.width, shape.hidden) if shape.projection else work


def _encoder_layer(counts, n, layer, *, shape, heads, ffn, steps, coding, links) -> Layer:
    channels = heads.repeat_interleave(shape.head_size)  # [D], head-major
    synchronous = coding != "accumulate"
    times = steps if synchronous else 1  # that a function is evaluated
    tokens, pairs = n.sum(), n.square().sum()

    def spikes_of(name):
        return counts[f"layers.{layer}.{name}"]

    own = 0.0 if shape.membrane else 1.0
    below = counts["embedding"] if layer == 0 else counts[f"layers.{layer - 1}.output"]
    below = below[:steps] if synchronous else below
    qkv, out, up, down = readers(shape=shape, heads=heads, ffn=ffn, links=links)
    every = n.new_ones(shape.hidden)
    additions = [
        _additions(below, keep=every * (qkv + own)),  # q, k, v, residual
        _additions(spikes_of("context"), keep=channels[: spikes_of("context").shape[-1]] * out),
        _additions(spikes_of("attention"), keep=every * (up + own)),  # W1, residual
        _additions(spikes_of("intermediate"), keep=ffn[: spikes_of("intermediate").shape[-1]] * down),
    ]
    residuals = own * (below.double().sum() + spikes_of("attention").double().sum())
    work = {
        "norm": 2 * shape.hidden * tokens * times,
        "softmax": heads.sum() * pairs * times,
        "activation": ffn.sum() * tokens * times,
        "weights": sum(part.sum() for part in additions) - residuals,
    }
    if shape.membrane:
        additions.append((2 * shape.hidden * tokens).expand(times))
    if coding == "running_mean":
        return additions, work | attention_products(tokens, pairs, heads=heads.sum(), shape=shape, times=steps)
    both = coding == "per_step" and shape.query == "spiking"
    # Pairs of tokens with a spike in the same channel: (Σ_i q_i)(Σ_j k_j) = Σ_ij q_i k_j for 0/1 spikes.
    scores = spikes_of("query").double() * spikes_of("key").double() if both else spikes_of("key")
    attended = [_additions(scores, fan_out=1.0 if both else n, keep=channels)]
    attended.append(_additions(spikes_of("value"), fan_out=n, keep=channels))
    work["operands"] = sum(part.sum() for part in attended)
    return additions + attended, work


def attention_products(
    tokens: Tensor, pairs: Tensor, *, heads: Tensor, shape: Shape, times: int = 1
) -> dict[str, Tensor]:
    """Work of the two dense products of attention, `times` over: `tokens` Σ n and `pairs` Σ n² of the sentences.
    `heads`: how many there are."""
    channels = heads * shape.head_size
    products = 2 * channels * pairs * times
    through = (channels * tokens + heads * pairs) * times  # queries and weights in, or scores and sums out
    kept = 2 * channels * tokens * times
    return {"mac": products, "dense_operands": products, "kept_operands": kept, "inputs": through, "outputs": through}


def _firing(
    counts, n: Tensor, *, shape: Shape, heads: Tensor, ffn: Tensor, steps: Sequence[int], coding: str, leak: float
) -> dict[str, Tensor]:
    """Spikes, their reads and the updates of all membranes, [L+2]."""
    zero = n.new_zeros(())
    sent, read, updated = ([zero] * (shape.layers + 2) for _ in range(3))
    widths = {key: spikes.shape[-1] for key, spikes in counts.items() if key != "pooled"}  # a copy of the last's
    for key, keep in kept_channels(widths, heads=heads, ffn=ffn).items():
        layer, name = place(key)
        row, t = layer + 1, steps[layer + 1]
        readings = n if coding == "accumulate" and name in ("key", "value") else 1.0
        sent[row] = sent[row] + _additions(counts[key][:t], keep=keep).sum()
        read[row] = read[row] + _additions(counts[key][:t], keep=keep, fan_out=readings).sum()
        updated[row] = updated[row] + keep.sum() * n.sum() * t
    updates = torch.stack(updated)
    return {
        "spikes": torch.stack(sent),
        "events": torch.stack(read),
        "updates": updates,
        "leaks": updates if leak < 1 else torch.zeros_like(updates),
    }


def gain_work(
    n: Tensor, *, shape: Shape, heads: Tensor, ffn: Tensor, steps: Sequence[int], coding: str
) -> tuple[Tensor, Tensor]:
    """(MACs [L+2], roots [L+2]) of thresholds that follow their input (`Neuron.gain`), in sentences of `n [B]` real
    tokens; float64. They come beside the additions that every neuron causes.

    A threshold that is a channel's own folds into the next weight matrix, and a spike adds a weight. One that changes
    with the token does not fold: what a token's spikes have added up to is multiplied by the token's gain once the sum
    is done, one MAC for each result and group of channels (a head's channels share a gain, everywhere else all do). So
    a spike is still one addition. The gain itself takes one MAC a channel, for the squares, and a root. Evaluated as
    the functions between the spiking layers are.
    """
    tokens, pairs, wide = n.sum(), n.square().sum(), shape.hidden
    times = [t if coding != "accumulate" else 1 for t in steps]
    mac = [tokens * wide * times[0]]  # the embedding's squares
    elementwise = [tokens * times[0]]
    for layer, t in enumerate(times[1:]):
        kept, neurons = heads[layer].sum(), ffn[layer].sum()
        channels, queries = kept * shape.head_size, shape.query == "spiking"
        squares = channels * (3 + queries) + 2 * wide + neurons  # (q,) k, v, c, then h and a', f
        past = 0 if shape.membrane else 2 * wide  # residuals of spikes: of the layer below, of h
        sums = 3 * channels + kept * wide + neurons + wide + past  # below to q, k, v; c; h; f
        attended = 0 if coding == "running_mean" else kept * (2 + queries)  # scores and weights; MACs there anyway
        mac.append((tokens * (squares + sums) + pairs * attended) * t)
        elementwise.append(tokens * (kept * (3 + queries) + 3) * t)
    results = n.new_tensor(float(len(n))) if shape.pooling == "cls" else tokens
    mac.append(results * wide * times[-1])  # the last layer's to the pooler, or to the mean
    elementwise.append(n.new_zeros(()))
    return torch.stack(mac), torch.stack(elementwise)


def _head(counts, n: Tensor, *, shape: Shape) -> Layer:
    """Pooling and classifier. `mean` adds each spike of the last layer once; `cls` sends [CLS]'s through the pooler."""
    samples = n.new_tensor(float(len(n)))
    work = product(samples, shape.hidden, shape.classes)
    if shape.pooling == "cls":
        pooled = _additions(counts["pooled"], fan_out=shape.hidden)
        return [pooled], work | {"weights": pooled.sum(), "activation": samples * shape.hidden}
    return [_additions(counts[f"layers.{shape.layers - 1}.output"])], work


def product(rows: Tensor, inputs: Tensor | int, outputs: Tensor | int) -> dict[str, Tensor]:
    """Work of `rows` rows through a dense matrix."""
    macs = rows * inputs * outputs
    return {"mac": macs, "dense_weights": macs, "inputs": rows * inputs, "outputs": rows * outputs}
