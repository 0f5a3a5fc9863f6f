"""A written ONNX file compared with the student on the dev split: labels, logits, and the spikes of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeprune.export.facts import Facts
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import inputs_of
from spikeprune.runtime.onnx_graph import session
from spikeprune.runtime.onnx_network import steps_of
from spikeprune.snn.context import SpikeTrain
from spikeprune.snn.spiking_layer import SpikingLayer

LEAST = 0.99  # of the dev labels that must be equal: a spike on the edge may fall either way, more is a fault
SAME = 0.01  # of a regression's spread, within which two outputs are equal


@dataclass
class Difference:
    """Sums over the dev split."""

    sentences: int = 0
    labels: int = 0  # that are not equal
    logit: float = 0.0  # the largest difference
    trains: int = 0  # of a neuron on a real token
    spikes: int = 0  # trains whose counts are not equal

    def add(self, expected: Outcome, written: Outcome, tokens: Tensor) -> None:
        """One batch with real `tokens [B, N]`."""
        self.sentences += len(tokens)
        self.labels += unequal(expected.logits, written.logits)
        self.logit = max(self.logit, (expected.logits - written.logits).abs().max().item())
        for name, counts in written.counts.items():
            self.trains += int(tokens.sum()) * counts.shape[-1]
            self.spikes += int((counts != expected.counts[name])[tokens].sum())

    def record(self) -> dict[str, Any]:
        equal, share = self.sentences - self.labels, self.spikes / max(self.trains, 1)
        words = (
            f"labels equal on {equal} of {self.sentences} dev sentences; {100 * share:.2g} % of the spike trains "
            f"differ, a logit by {self.logit:.2g} at most"
        )
        facts = {"sentences": self.sentences, "equal_labels": equal, "differing_spikes": share}
        return {"words": words, **facts, "largest_difference": self.logit}


@dataclass(frozen=True)
class Outcome:
    """Logits `[B, C]`, and the spike counts `[B, N, D]` of spiking layers by their names."""

    logits: Tensor
    counts: dict[str, Tensor]


def compared(student: SpikingBert, file: Path, whole: bytes, prefix: str, facts: Facts) -> dict[str, Any]:
    """`file`: what was written; `whole`: the same network with the outputs `<prefix><spiking layer>`.

    Raises RuntimeError where more than one label in a hundred differs, which is a fault of the program.
    """
    found, one, other = Difference(), session(str(file)), session(whole)
    names = [output.name for output in other.get_outputs()][1:]
    for batch in facts.batches():
        feed = {given.name: batch[given.name].numpy() for given in one.get_inputs()}
        fired = dict(zip(names, other.run(names, feed) if names else [], strict=True))
        counts = {name.removeprefix(prefix): torch.from_numpy(codes) for name, codes in fired.items()}
        counts = {name: in_spikes(student, name, codes) for name, codes in counts.items()}
        written = Outcome(torch.from_numpy(one.run(["logits"], feed)[0]), counts)
        found.add(reference(student, batch), written, batch["attention_mask"].bool())
    if found.labels > (1 - LEAST) * found.sentences:
        raise RuntimeError(f"the file is not the student: {found.record()['words']}")
    return found.record()


def reference(student: SpikingBert, batch: dict[str, Tensor]) -> Outcome:
    """What PyTorch computes."""
    layers = student.spiking_layers()
    trains: dict[str, SpikeTrain] = {}

    def keep(layer: SpikingLayer, _: Any, train: SpikeTrain) -> None:
        trains[layer.name] = train

    hooks = [layer.register_forward_hook(keep) for layer in layers.values()]
    try:
        with torch.no_grad():
            logits = student(**inputs_of(batch), scores=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    counts = {name: (train.asr(layers[name].theta) * steps_of(student, name)).round() for name, train in trains.items()}
    return Outcome(logits, counts)


def in_spikes(student: SpikingBert, name: str, codes: Tensor) -> Tensor:
    """The counts behind a layer's bytes, which are shifted by T where they may be negative."""
    if codes.dtype != torch.uint8:
        return codes
    low = student.spiking_layers()[name].neuron.low
    return codes.float() + low * steps_of(student, name)


def unequal(logits: Tensor, written: Tensor) -> int:
    """Sentences whose label is another; of a regression those whose output is."""
    if logits.shape[1] > 1:
        return int((logits.argmax(1) != written.argmax(1)).sum())
    return int(((logits - written).abs() > SAME * logits.std(correction=0).clamp(min=1e-3)).sum())
