"""SpikingBERT, embeddings to logits. As a model of transformers it is `SpikingBertForSequenceClassification`, in
`sequence_classification.py`; its spiking layers are in `snn/spiking_layer.py`, the encoder layer in `layers.py`.

Shapes: T steps, B batch, N tokens, D hidden, H heads, d = D/H, F feed-forward neurons, L layers, C classes; time first.
Per layer (Bal & Sengupta 2024, arXiv 2308.10873, section 3; the query is a current unless it spikes too):

    k = spike(Wk a)   v = spike(Wv a)   c = spike(softmax(q k^T / sqrt d + mask) v), q = Wq a
    h = spike(LN(Wo c + a))   f = spike(gelu(W1 h))   a' = spike(LN(W2 f + h))

A relative position bias, the same for all layers, is added to the scores where there is one (`relative_bias.py`).
With `residual="membrane"` the shortcuts carry the currents inside spike(…) in place of the spikes a and h: the membrane
shortcut of Hu et al. (arXiv 2112.08954) and of Spike-driven Transformer (Yao et al. 2023, arXiv 2307.01694).

Every matrix product has a spiking operand: a, c, h or f with the weights, k and v in the attention.

`forward` makes a `ForwardContext`, the settings of one forward; `encode` is embedding and layers, each spiking layer by
itself (`snn/spiking_layer.py`) or all of them by an attached backend (`kernels`); `classify` turns the last values into
logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from spikeprune.cost.shapes import SynapseCounts
from spikeprune.models.architecture import Architecture, leading_ones, unit_counts
from spikeprune.models.feedback import feedback_train
from spikeprune.models.layers import EncoderLayer, SpikingEmbedding
from spikeprune.models.outputs import Outputs
from spikeprune.models.quantization import QUANTIZERS
from spikeprune.models.relative_bias import RelativeBias
from spikeprune.models.sparsity import Synapses, counted
from spikeprune.models.tensors import Reading
from spikeprune.models.weights import acting
from spikeprune.snn.call import Backend, Encoded, StepGate, shorter
from spikeprune.snn.context import ForwardContext, SpikeTrain
from spikeprune.snn.spiking_layer import SpikingLayer


def refresh_synapses(student: SpikingBert, _: Any) -> None:
    """After a checkpoint was loaded. A function of the module, since a student is sent to other processes pickled."""
    student.refresh_synapses()


class SpikingBert(nn.Module):
    """Token ids to logits through spikes. Training and evaluation mode are the same: nothing in it is random.

    `state_dict` holds all that changes the output: weights, thresholds (as logarithms), the masks `heads [L, H]` and
    `ffn [L, F]` (1 kept, 0 pruned), `t_steps [L+1]` (the embedding's spiking layer, then each encoder layer), and with
    a quantizer the scalar `strength`: the encoder's matrices move from their stored weights (0) to the quantized ones
    (1). A float network has no `strength`, so it refuses the checkpoint of a quantized one.

    `values`: the fields of `architecture.Architecture`, which raises ValueError for those that do not fit each other.
    `SpikingBert(**student.values)` has the same architecture with random weights.
    """

    def __init__(self, **values: Any):
        super().__init__()
        a = Architecture(**values)
        self.values: dict[str, Any] = dict(vars(a))
        self.coding, self.pooling, self.query = a.coding, a.pooling, a.query
        self.weights, self.packed = a.weights, a.packed
        # one theta for all is a matter of the scale
        self.fold = a.fold and a.theta == "channel" and a.weights != "float"
        heads, ffn = unit_counts(a.layers, a.heads, a.layer_heads), unit_counts(a.layers, a.ffn, a.layer_ffn)
        self.embedding = SpikingEmbedding(a)
        self.layers = nn.ModuleList(EncoderLayer(a, i, heads=heads[i], ffn=ffn[i]) for i in range(a.layers))
        self.relative_bias = None
        if a.relative_buckets:
            own = {"layer_heads": heads, "compacted": a.layer_heads is not None}
            self.relative_bias = RelativeBias(buckets=a.relative_buckets, heads=a.heads, **own)
        self.pooler = nn.Linear(a.hidden, a.hidden) if a.pooling == "cls" else None
        self.pooler_act = ACT2FN[a.pooler_act]
        self.layers[-1].output_neurons.count_first = a.pooling == "cls"
        self.layers[-1].output_neurons.sends_pulses = True
        self.classifier = nn.Linear(a.hidden, a.classes)
        self.register_buffer("heads", leading_ones(heads, a.heads))
        self.register_buffer("ffn", leading_ones(ffn, a.ffn))
        self.register_buffer("t_steps", torch.ones(a.layers + 1, dtype=torch.long))
        if a.weights != "float" and not a.packed:
            self.register_buffer("strength", torch.zeros(()))
        self.backend: Backend | None = None
        self._read = {"t_steps": Reading(), "strength": Reading()}
        self.set_t_steps(a.t_steps)
        self.synapses = None
        if a.sparse:
            self.synapses = Synapses(self)
            self.refresh_synapses()
            self.register_load_state_dict_post_hook(refresh_synapses)

    @property
    def steps(self) -> list[int]:
        """`t_steps` as numbers."""
        return self._numbers("t_steps")

    @property
    def quantized(self) -> float:
        """`strength` as a number; 0 for a student of float weights, 1 for packed ones."""
        if self.weights == "float":
            return 0.0
        return 1.0 if self.packed else self._numbers("strength")

    @property
    def stored_bits(self) -> int:
        """Bits of a packed weight of the encoder's matrices: those of the quantizer at strength 1, else float32's."""
        return QUANTIZERS[self.weights].stored if self.quantized == 1 else 32

    def _numbers(self, name: str) -> Any:
        """A buffer as numbers."""
        return self._read[name](getattr(self, name), Tensor.tolist)

    def set_t_steps(self, t_steps: int | Sequence[int]) -> None:
        """One number for all, or L+1 numbers. Raises ValueError for another length or a number below 1."""
        numbers = list(t_steps) if isinstance(t_steps, Sequence) else [t_steps] * len(self.t_steps)
        if len(numbers) != len(self.t_steps) or not all(isinstance(t, int) and t >= 1 for t in numbers):
            raise ValueError(f"t_steps must be {len(self.t_steps)} whole numbers of at least 1, got {numbers}")
        self.t_steps.copy_(torch.tensor(numbers))

    def set_strength(self, strength: float) -> None:
        """Move the encoder's matrices and the word table towards their quantized weights: 0 not at all, 1 fully. Raises
        ValueError outside 0 to 1, and for float and packed networks."""
        if self.packed:
            raise ValueError("a packed student's weights are final; quantize the masked student that it was made from")
        if self.weights == self.values["word_table"] == "float":
            raise ValueError(f"a student of float weights has no strength; weights may be {', '.join(QUANTIZERS)}")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength must be from 0 to 1, got {strength}")
        if self.weights != "float":
            self.strength.fill_(strength)
        if self.values["word_table"] != "float":
            self.embedding.word.strength.fill_(strength)

    def refresh_synapses(self) -> None:
        """Read from the weights which synapses a sparse network has; on the meta device there are no weights yet."""
        if self.synapses is not None and not self.classifier.weight.is_meta:
            self.synapses.refresh_masks(self)

    def links(self) -> list[SynapseCounts] | None:
        """The synapses of each layer; None for a network that is not sparse."""
        return None if self.synapses is None else [self.synapses.links(i) for i in range(len(self.layers))]

    def synapse_count(self) -> int | None:
        """Synapses between kept units of all layers; None where none is missing."""
        kept, possible = (0, 0) if self.synapses is None else counted(self)
        return None if kept == possible else kept

    def spiking_layers(self) -> dict[str, SpikingLayer]:
        return {module.name: module for module in self.modules() if isinstance(module, SpikingLayer)}

    def attach(self, backend: Backend | None) -> None:
        """Compute with `backend` what it covers, the network as a whole or each spiking layer; None: with torch alone.
        It is no part of the architecture and is not saved. See `kernels.attach`."""
        self.backend = backend
        for layer in self.spiking_layers().values():
            layer.backend = None if backend is None else backend.layers

    def covered(self, ctx: ForwardContext) -> bool:
        """Whether the attached backend computes embedding and layers of this forward as a whole."""
        return self.backend is not None and self.backend.covers(self, ctx)

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
        dead_zone_percentile: float | None = None,
        pulses: bool = False,
        heads: Tensor | None = None,
        ffn: Tensor | None = None,
        steps: Tensor | None = None,
    ) -> Outputs:
        """`[B, N]` ids and mask (1 real, 0 padding) -> `Outputs`.

        Args:
            mode: equilibrium (closed form, for training; its cost does not grow with T), spiking (simulated step by
                step), clip (as for T -> infinity) or calibrate (sets every theta from this batch)
            count, rate, trace: return spike counts, differentiable rates, how fast each ASR settles. In equilibrium
                mode `count` needs the coding `accumulate` and gives sums over time `[1, B, D]`.
            scores: return attention scores; without them and without gradient attention may be fused
            pulses: return the last layer's spike train, from which a synchronous coding gives logits at every step
            percentile, dead_zone_percentile: see `ForwardContext`
            heads, ffn: `[B, L, H]` and `[B, L, F]`, masks of each sample in place of the network's, for their gradient;
                rates are then of all units as they fire before them
            steps: `[L+1]`, how far the gates of each layer's last steps are open (`snn.call.StepGate`)

        Raises ValueError for an unknown mode, InputError for texts longer than the position embeddings.
        """
        if count and mode == "equilibrium" and self.coding != "accumulate":
            raise ValueError(f"the closed form does not count the spikes of coding {self.coding}; use mode='spiking'")
        ctx = ForwardContext(
            mode,
            attention_mask.bool(),
            count=count,
            rate=rate,
            trace=trace,
            scores=scores,
            pulses=pulses,
            percentile=percentile,
            dead_zone_percentile=dead_zone_percentile,
        )
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        encode = partial(self.encode, input_ids, token_type_ids, heads=heads, ffn=ffn, steps=steps)
        solved: dict[str, float] = {}
        train, hidden, all_scores = encode(ctx=ctx, back=self.fed_back(encode, ctx, solved))
        return Outputs(
            logits=self.classify(train.value, ctx.tokens),  # [B, C]
            hidden=tuple(hidden),
            scores=tuple(scores for scores in all_scores if scores is not None),
            rates=ctx.record.rates,
            counts=ctx.record.counts,
            traces=ctx.record.traces,
            solved=solved,
            pulses=train.pulses if pulses else None,
        )

    def fed_back(
        self, encode: Callable[..., Encoded], ctx: ForwardContext, solved: dict[str, float]
    ) -> SpikeTrain | None:
        """The train that the last layer feeds back to the embedding; None without feedback. `encode`: `self.encode` of
        this batch, `solved` as in `feedback.feedback_train`, which writes into it."""
        if self.embedding.feedback is None:
            return None
        zero = self.classifier.weight.new_zeros(*ctx.tokens.shape, self.classifier.in_features)  # [B, N, D]
        leak = self.embedding.neurons.leak
        return feedback_train(encode, ctx, zero, t_steps=self.steps[0], leak=leak, solved=solved)

    def encode(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        *,
        ctx: ForwardContext,
        heads: Tensor | None,
        ffn: Tensor | None,
        steps: Tensor | None = None,
        back: SpikeTrain | None = None,
    ) -> Encoded:
        """Embedding and layers -> the last layer's spike train, the values `[B, N, D]` of embedding and layers, and the
        attention scores. `back`: the train fed back to the embedding. A backend may compute all of it."""
        if back is None and heads is None and ffn is None and steps is None and self.covered(ctx):
            return self.backend.run(self, input_ids, token_type_ids, ctx=ctx)
        t_embedding, *t_layers = self.steps
        gates = [None] * len(self.steps)
        if steps is not None:
            gates = list(map(StepGate, steps, steps - 1, map(shorter, self.steps)))
        train = self.embedding(
            input_ids, token_type_ids, t_steps=t_embedding, ctx=ctx, back=back, gate=gates[0]
        )  # [B, N, D]
        hidden, all_scores = [train.value], []
        biases = [None] * len(self.layers) if self.relative_bias is None else self.relative_bias(ctx.padding)
        channels = self.heads if heads is None else heads.transpose(0, 1)[:, :, None]  # [L, H] or [L, B, 1, H]
        channels = channels.repeat_interleave(self.layers[0].head_size, -1).unbind()  # L times [D] or [B, 1, D]
        neurons = (self.ffn if ffn is None else ffn.transpose(0, 1)[:, :, None]).unbind()  # L times [F] or [B, 1, F]
        for i, layer in enumerate(self.layers):
            train, scores = layer(
                train,  # [B, N, D], or with time first [T, B, N, D]
                channels=channels[i][..., : layer.out.in_features],
                ffn=neurons[i][..., : layer.ffn],
                t_steps=t_layers[i],
                gate=gates[i + 1],
                ctx=ctx,
                acting=partial(acting, self, i),
                bias=biases[i],
            )  # [B, N, D], [B, H, N, N]
            hidden.append(train.value)
            all_scores.append(scores)
        return train, hidden, all_scores

    def classify(self, a: Tensor, tokens: Tensor) -> Tensor:
        """The last layer's values `[..., B, N, D]` -> logits `[..., B, C]`: of [CLS] through the pooler, or of the mean
        over the real `tokens [B, N]`."""
        if self.pooler is not None:
            return self.classifier(self.pooler_act(self.pooler(a[..., 0, :])))
        weights = tokens.to(a.dtype)
        return self.classifier(torch.einsum("...nd,...n->...d", a, weights) / weights.sum(1, keepdim=True))
