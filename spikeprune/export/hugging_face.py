"""`hf`: a directory as transformers' `save_pretrained` leaves it, with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spikeprune.export.facts import CARD, Facts
from spikeprune.export.model_card import card
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.sequence_classification import SpikingBertForSequenceClassification


def write(student: SpikingBert, tokenizer: Any, facts: Facts, directory: Path) -> dict[str, Any]:
    """Weights (packed where they are quantized), configuration, tokenizer and card; the files are loaded again and
    compared with `student` on a dev batch. Raises RuntimeError where they differ, which is a fault of the program."""
    SpikingBertForSequenceClassification.of(student).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    card(student, facts).save(directory / CARD)
    again = SpikingBertForSequenceClassification.from_pretrained(directory)
    batch = next(facts.batches())
    inputs = [batch[name] for name in INPUTS]
    if not torch.equal(infer(student, *inputs).logits, again(*inputs).logits):
        raise RuntimeError("the files written give other logits than the student")
    sentences = len(inputs[0])
    words = f"loaded again, it gives the student's logits bit for bit on {sentences} dev sentences"
    return {"words": words, "sentences": sentences}
