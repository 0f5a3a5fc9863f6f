"""`c`: the student as `model.spk`, and the C program that runs it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers.models import WordPiece

from spikeprune.errors import InputError
from spikeprune.export.facts import Facts
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.outputs import INPUTS
from spikeprune.models.shape import student_operations
from spikeprune.runtime import Session, to_bytes
from spikeprune.runtime.library import FILES, SOURCES, compiler

MODEL = "model.spk"


def write(student: SpikingBert, tokenizer: Any, facts: Facts, directory: Path) -> dict[str, Any]:
    """Model, sources and tokenizer. Where there is a C compiler the program is compiled and run on a dev batch. Raises
    InputError for a student that the program does not run, RuntimeError where its labels or its operations are not the
    student's, which is a fault of the program."""
    data = to_bytes(student)
    (directory / MODEL).write_bytes(data)
    for name in FILES:
        shutil.copyfile(SOURCES / name, directory / name)
    tokenizer.save_pretrained(directory)
    if pieces(tokenizer):
        tokenizer.backend_tokenizer.model.save(str(directory))  # vocab.txt, for the program's --vocab
    try:
        compiler()
    except InputError as error:
        return {"words": f"not run here: {error}", "sentences": 0}
    batch = next(facts.batches())
    inputs = [batch[name] for name in INPUTS]
    return compared(student, data, *inputs)


def pieces(tokenizer: Any) -> bool:
    """Whether it splits lower-case words into a BERT's word pieces, as the program does."""
    bert = isinstance(tokenizer.backend_tokenizer.model, WordPiece) and tokenizer.cls_token == "[CLS]"
    return bert and tokenizer.tokenize("A") == tokenizer.tokenize("a")


def compared(
    student: SpikingBert, data: bytes, ids: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor
) -> dict[str, Any]:
    """The C program beside the student on sentences `[B, N]`: those with the same label, the largest difference of a
    logit, and those with the same operations in every layer. In double precision, where the student has no rounding
    of its own that counts. Raises RuntimeError where fewer than nine in ten labels agree."""
    student = copy.deepcopy(student).double()
    session = Session(data, max_tokens=ids.shape[1])
    labels, equal, apart = 0, 0, 0.0
    for row, length in enumerate(mask.sum(1).tolist()):
        one = [part[row : row + 1, :length] for part in (ids, mask, segments)]
        outputs = infer(student, *one)
        output = session.run(one[0][0].numpy(), one[2][0].numpy())
        counted = student_operations(student, outputs.counts, mask[row : row + 1].sum(1))
        logits = outputs.logits[0].numpy()
        labels += int(output.logits.argmax() == logits.argmax())
        apart = max(apart, float(np.abs(output.logits - logits).max()))
        equal += int(np.array_equal(output.additions, counted.ac.numpy()))
    total = len(ids)
    if labels < 0.9 * total:
        raise RuntimeError(f"the C program gives {labels} of {total} sentences the student's label")
    words = (
        f"run by the C program, {labels} of {total} dev sentences have the student's label and {equal} of {total} its "
        f"additions in every layer; logits are at most {apart:.2g} apart"
    )
    return {"words": words, "sentences": total, "labels": labels, "same_additions": equal, "logits_apart": apart}
