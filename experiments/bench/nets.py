"""Networks and inputs of the benchmark: spiking students and dense BERTs of one size, random weights, full batches."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from spikeprune.models.compaction import compact
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.teacher import Teacher, copy_encoder


@dataclass(frozen=True)
class Size:
    name: str
    hidden: int
    layers: int
    heads: int
    ffn: int
    vocab: int = 30522

    def bert(self) -> BertForSequenceClassification:
        """The same random weights each time."""
        return copy.deepcopy(_bert(self))


@cache
def _bert(size: Size) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.ffn,
        max_position_embeddings=512,
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=1 / math.sqrt(size.hidden),
    )
    return BertForSequenceClassification(config).eval()


MINILM = Size("MiniLM 6 x 384", 384, 6, 12, 1536)
BASE = Size("BERT-base 12 x 768", 768, 12, 12, 3072)
SMALL = Size("2 x 384", 384, 2, 12, 1536, vocab=2000)


def batch(size: Size, *, sentences: int, tokens: int, device: torch.device) -> dict[str, Tensor]:
    """Random sentences without padding: every side does all of the work that it is given."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(size.vocab, (sentences, tokens), generator=generator).to(device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


@torch.no_grad()
def logits(bert: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return bert(**batch).logits


def student(size: Size, device: torch.device, *, unit_theta: bool = False, **options) -> SpikingBert:
    """A student that starts from `size.bert()`, thresholds calibrated or all 1, in evaluation mode."""
    values = {"vocab": size.vocab, "positions": 512, "segments": 2, "hidden": size.hidden, "layers": size.layers}
    values |= {"heads": size.heads, "ffn": size.ffn, "classes": 2}
    with device:  # initialized there: faster than on a CPU
        made = SpikingBert(**values, **options).eval()
    copy_encoder(made, Teacher(_bert(size)), list(range(size.layers)))
    if not unit_theta:
        with torch.no_grad():
            made(**batch(size, sentences=4, tokens=32, device=device), mode="calibrate")
    return made


def compacted(made: SpikingBert, *, heads: float, ffn: float) -> SpikingBert:
    """The student with these shares of every layer's heads and neurons kept, physically smaller."""
    masked = copy.deepcopy(made)
    for mask, share in ((masked.heads, heads), (masked.ffn, ffn)):
        mask[:, max(1, round(share * mask.shape[1])) :] = 0
    return compact(masked)
