"""A student's closed form as a network that `torch.onnx.export` traces: its own modules, with the spiking layers and
the matrices that read them written for ONNX.

A train of T steps under a constant current x is `n = clip(round(T x / theta), -T or 0, T)` spikes, halves rounded to
even. The matrix after it multiplies n: `W diag(theta / T) n`. Where its weights are quantized that is `diag(scale)
codes n`, a product of small integers: n is stored as uint8, shifted by T where it may be negative, and the product is
written `DequantizeLinear, DequantizeLinear, MatMul`, which onnxruntime computes in integers. Others are float32.

Thresholds of keys and values are moved into the weights around them, so that the attention reads spike counts:
`q (size n_k) = (size q) n_k`, and a context of counts is fired with the threshold over the values' size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from spikeprune.models import weights
from spikeprune.models.compaction import as_float
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.quantization import MATRICES
from spikeprune.snn.call import LayerCall, LayerOutput
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.neurons import settle
from spikeprune.snn.spiking_layer import SpikingLayer

# Spikes of one sign that bytes hold: two products of 128 and 127 still fit into int16, the narrowest sum of processors
# without dot products of bytes.
MOST = 64


@dataclass(frozen=True)
class Counts:
    """Spikes of whole trains `[B, N, D]`, as float32 numbers, and as bytes where an integer product reads them."""

    numbers: Tensor
    codes: Tensor | None = None  # uint8, numbers + zero
    zero: int = 0


@dataclass(eq=False)
class Firing:
    """Backend of one spiking layer in the trace; `found` has the counts behind a layer's value, for its readers.

    Args:
        t_steps, low: of the train, and the neuron's smallest rate
        gain: `[D]` or `[1]`, T / theta: currents to counts; None: the currents are in counts already
        size: `[D]` or `[1]`, theta / T: counts to values; None: the readers take counts
        bytes: whether an integer product reads the counts
        found: of all layers
    """

    t_steps: int
    low: float
    gain: Tensor | None
    size: Tensor | None
    bytes: bool
    found: WeakTensorKeyDictionary
    fired: list[Tensor] = field(default_factory=list)  # the counts of this forward, as they stand in the graph

    def covers(self, call: LayerCall) -> bool:
        return True

    def run(self, call: LayerCall) -> LayerOutput:
        current = call.drive.mean if self.gain is None else call.drive.mean * self.gain
        counts = self.as_bytes(current) if self.bytes else self.as_numbers(current)
        self.fired[:] = [counts.numbers if counts.codes is None else counts.codes]
        value = counts.numbers if self.size is None else counts.numbers * self.size
        self.found[value] = counts
        return LayerOutput(SpikeTrain(value), masked=True)

    def as_numbers(self, current: Tensor) -> Counts:
        return Counts(current.round().clamp(float(self.low * self.t_steps), float(self.t_steps)))

    def as_bytes(self, current: Tensor) -> Counts:
        zero, one = round(-self.low * self.t_steps), torch.ones(())
        codes = operator("QuantizeLinear", current, one, byte(zero), like=current, dtype=torch.uint8)
        codes = operator("Clip", codes, byte(0), byte(zero + self.t_steps), like=current, dtype=torch.uint8)
        numbers = operator("DequantizeLinear", codes, one, byte(zero), like=codes, dtype=torch.float32)
        return Counts(numbers, codes, zero)


class Stepping:
    """Backend of a spiking layer whose neurons have no closed form: its T element-wise steps, unrolled."""

    def covers(self, call: LayerCall) -> bool:
        return True

    def run(self, call: LayerCall) -> LayerOutput:
        rate = settle(call.drive.mean, call.theta, call.t_steps, call.neuron, call.leak)
        return LayerOutput(SpikeTrain(call.theta * rate), masked=True)


def operator(name: str, *inputs: Tensor, like: Tensor, dtype: torch.dtype, **attributes: int) -> Tensor:
    """An operator of ONNX in the graph that is traced; its output has the shape of `like`."""
    return torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like.shape)


def byte(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.uint8)


class CountLinear(nn.Module):
    """A linear map that reads spike counts where its input is a spiking layer's value, else the value itself.

    Args:
        linear: the map of values
        size: `[in]` or `[1]`, theta / T of the spiking layer that it reads
        codes: int8 `[out, in]` and scale `[out, 1]` of the map of counts; None: it has float weights
        found: the counts behind a value
    """

    def __init__(
        self, linear: nn.Linear, size: Tensor, codes: tuple[Tensor, Tensor] | None, found: WeakTensorKeyDictionary
    ):
        super().__init__()
        self.in_features, self.out_features, self.found = linear.in_features, linear.out_features, found
        self.integer = codes is not None
        self.linear = linear
        self.bias = nn.Buffer(linear.bias.detach().clone())
        if codes is None:
            self.weight = nn.Buffer(linear.weight.detach() * size)
        else:
            self.weight = nn.Buffer(codes[0].T.contiguous().to(torch.int8))  # [in, out]
            self.scale = nn.Buffer(codes[1][:, 0].clone())

    def scale_outputs(self, factor: Tensor) -> None:
        """Multiply each output by `factor [out]` or `[1]`."""
        for tensor in (self.linear.weight.data.T, self.linear.bias.data, self.bias):
            tensor *= factor
        (self.scale if self.integer else self.weight.T).mul_(factor)

    def forward(self, value: Tensor) -> Tensor:
        if not self.in_features:  # of a layer that has lost all its heads, or neurons
            return self.bias.expand(*value.shape[:-1], self.out_features)
        counts = self.found.get(value)
        if counts is None:
            return self.linear(value)
        if not self.integer:
            return F.linear(counts.numbers, self.weight, self.bias)
        matrix = operator("DequantizeLinear", self.weight, self.scale, like=self.weight, dtype=torch.float32, axis=1)
        return counts.numbers @ matrix + self.bias


class CodeTable(nn.Module):
    """Word embeddings as int8 codes `[words, width]` and a scale `[words, 1]`."""

    def __init__(self, codes: Tensor, scale: Tensor):
        super().__init__()
        self.codes, self.scale = nn.Buffer(codes.to(torch.int8)), nn.Buffer(scale.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.codes).to(self.scale.dtype) * F.embedding(ids, self.scale)


class Classifier(nn.Module):
    """Ids, mask and segments `[B, N]` -> logits `[B, C]` and the spike counts of each layer in `fired`, of a student's
    closed form. The student stays as it is."""

    def __init__(self, student: SpikingBert):
        super().__init__()
        self.student = as_float(student).eval()
        self.student._numbers = {"t_steps": student.steps}.__getitem__  # a trace cannot read numbers from a buffer
        if student.packed and student.values["word_table"] != "float":
            self.student.embedding.word = CodeTable(*student.embedding.word.codes())
        found = WeakTensorKeyDictionary()
        for i, name in matrices(student):
            source, t_steps = weights.source(student, i, name), steps_below(student, i, name)
            size = (source.theta / t_steps).detach()
            linear = CountLinear(getattr(self.student.layers[i], name), size, integers(student, i, name), found)
            setattr(self.student.layers[i], name, linear)
        self.fired: dict[str, list[Tensor]] = {}
        for name, layer in self.student.spiking_layers().items():
            layer.backend = self.backend(name, layer, found)
        for i in range(len(self.student.layers)):
            self.move_thresholds(i)

    def backend(self, name: str, layer: SpikingLayer, found: WeakTensorKeyDictionary) -> Firing | Stepping:
        """What a spiking layer computes in the trace."""
        if layer.leak != 1 or layer.neuron.settled is None:
            return Stepping()
        t_steps = steps_of(self.student, name)
        theta = layer.theta.detach()
        readers = list(readers_of(self.student, name))
        firing = Firing(
            t_steps=t_steps,
            low=layer.neuron.low,
            gain=t_steps / theta,
            size=theta / t_steps,
            bytes=t_steps <= MOST and layer.neuron.gain is None and any(reader.integer for reader in readers),
            found=found,
        )
        if layer.channels:
            self.fired[name] = firing.fired
        return firing

    def move_thresholds(self, index: int) -> None:
        """Keys and values of layer `index` as counts, their thresholds in the weights around them."""
        layer = self.student.layers[index]
        key, value, context = (getattr(layer, f"{name}_neurons") for name in ("key", "value", "context"))
        moves = [
            isinstance(x.backend, Firing) and x.dead_zone is None and x.neuron.gain is None for x in (key, context)
        ]
        if not all(moves) or layer.query_neurons is not None or not layer.heads:
            return
        layer.key.scale_outputs(key.backend.gain)
        layer.query.scale_outputs(key.backend.size)
        layer.value.scale_outputs(value.backend.gain)
        context.backend.gain = context.backend.gain * value.backend.size
        for neurons in (key, value):
            neurons.backend.gain = neurons.backend.size = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        logits = self.student(input_ids, attention_mask, token_type_ids, scores=False).logits
        return (logits, *(fired for (fired,) in self.fired.values()))


def matrices(student: SpikingBert) -> Iterator[tuple[int, str]]:
    return ((i, name) for i in range(len(student.layers)) for name in MATRICES)


def steps_of(student: SpikingBert, name: str) -> int:
    """T of the spiking layer `embedding` or `layers.<number>.<kind>`."""
    return student.steps[0 if name == "embedding" else 1 + int(name.split(".")[1])]


def steps_below(student: SpikingBert, layer: int, name: str) -> int:
    """T of the spiking layer that a matrix reads."""
    return student.steps[layer if name in ("query", "key", "value") else layer + 1]


def readers_of(student: SpikingBert, name: str) -> Iterator[CountLinear]:
    """The matrices that multiply the spikes of the spiking layer `name`."""
    for i, matrix in matrices(student):
        if weights.source(student, i, matrix).name == name:
            yield getattr(student.layers[i], matrix)


def integers(student: SpikingBert, layer: int, name: str) -> tuple[Tensor, Tensor] | None:
    """Codes `[out, in]` and scale `[out, 1]` of a matrix of spike counts. None where there are none: for float weights,
    and for inputs with thresholds of their own that are not folded into the quantized weights."""
    theta = weights.source(student, layer, name).theta.detach()
    if student.quantized < 1 or not (student.fold or theta.numel() == 1):
        return None
    codes, scale = weights.codes(student, layer, name)
    return codes, (scale if student.fold else scale * theta) / steps_below(student, layer, name)
