"""The teacher: a classifier of the BERT family (`families.py`) from `transformers`, with the raw attention scores that
its own outputs leave out, or one of another architecture with its logits alone (`other_architectures.py`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedConfig, PreTrainedModel

from spikeprune.errors import InputError, out_of_memory
from spikeprune.models.checkpoint_config import first_line, label_order, read_config, unread_weights
from spikeprune.models.families import Family, family_of, longest_text
from spikeprune.models.fused_attention import fuse
from spikeprune.models.other_architectures import (
    KNOWN,
    embeddings_of,
    encoder_config,
    gives_logits_alone,
    last_layer,
    reads_types,
    title_of,
    work_problem,
)
from spikeprune.models.outputs import Outputs, check_length
from spikeprune.models.tensors import not_finite


def scratch_config(
    *, vocab: int, hidden: int, layers: int, heads: int, ffn: int, positions: int, dropout: float, classes: int
):
    """A small BERT with random weights, for data that needs no pretraining.

    They start at a scale that keeps activations at one; BERT's own 0.02 belongs to 768 channels and long pretraining,
    and costs a small net several epochs on a plateau.
    """
    return BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=ffn,
        max_position_embeddings=positions,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=hidden**-0.5,
        num_labels=classes,
    )


class Teacher(nn.Module):
    """`Outputs` of a sequence classifier: of one of `families.FAMILIES`, or of another architecture, which has logits
    alone and whose `family` is None. While it is fine-tuned the trainer sets its mode; once frozen it has no gradients
    and stays in evaluation mode after `train()`, so that its outputs are the same each time. MPNet's attention is
    exchanged for a fused one, in place."""

    def __init__(self, bert: PreTrainedModel):
        super().__init__()
        self.bert = fuse(bert)
        self.encoder_config = encoder_config(bert.config)
        self.family: Family | None = None if gives_logits_alone(bert.config) else family_of(bert.config)
        self.reads_types = reads_types(bert) if self.family is None else self.family.types
        self.frozen = False
        self.note = ""  # a line on assumptions about the checkpoint

    def __reduce__(self):
        # transformers' hooks that collect hidden states do not survive a pickle
        return rebuilt, (type(self.bert), self.bert.config, self.bert.state_dict(), self.frozen)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        classes: int,
        labels: Sequence[str] | None = None,
        dropout: float | None = None,
    ) -> Teacher:
        """Weights of a hub name or directory, in training mode; `dropout` in place of the configuration's, if any.

        A missing head starts at random; the rows of a classifier that is there are put in the order of `labels`, the
        task's, where the checkpoint has the same names. Raises InputError for a missing or damaged encoder, for weights
        that are not finite, for one with weights that transformers would leave out, and as `work_problem`.
        """
        config = read_config(str(checkpoint), classes=classes)
        if dropout is not None:
            for name in [name for name in config.to_dict() if "dropout" in name]:  # architectures differ in their names
                setattr(config, name, dropout)
        bert, info = loaded(checkpoint, config)
        drawn = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]  # tensors that start at random
        if problem := weights_problem(checkpoint, bert, drawn, list(info["unexpected_keys"])):
            raise InputError(f"teacher.checkpoint: {problem}")
        # transformers loads in evaluation mode, and Lightning leaves modes as it finds them
        teacher = cls(bert.train())
        if labels is not None and all(key.startswith(f"{bert.base_model_prefix}.") for key in drawn):  # its own head
            teacher.sort_classes(*label_order(str(checkpoint), labels))
        return teacher

    @classmethod
    def scratch(cls, config: PreTrainedConfig) -> Teacher:
        return cls(family_of(config).classifier(config))

    @torch.no_grad()
    def sort_classes(self, order: Sequence[int], note: str) -> None:
        """Put the classifier's rows in this order; `note` says what is not known about it. Raises InputError where the
        classes have to change places and no last layer is found."""
        classifier, self.note = last_layer(self.bert), note
        if list(order) == sorted(order):
            return
        if classifier is None:
            names = "the layer of its classes is not found, and their order is not the task's; name them in that order"
            raise InputError(f"teacher.checkpoint: a {title_of(self.bert.config)} in which {names}")
        for tensor in classifier.parameters():
            tensor.copy_(tensor[list(order)])

    def freeze(self) -> Teacher:
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(mode and not self.frozen)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        hidden: bool = False,
        scores: bool = False,
    ) -> Outputs:
        """`[B, N]` -> logits `[B, C]`, and on request the hidden states and raw attention scores of each layer, the
        relative position bias among them. Without `scores` attention is fused and none are kept. Raises ValueError for
        a teacher of another architecture that is asked for more than logits."""
        check_length(input_ids, longest_text(self.encoder_config))
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.reads_types:
            batch["token_type_ids"] = token_type_ids
        if self.family is None:
            if hidden or scores:
                raise ValueError(f"a {title_of(self.bert.config)} teaches logits alone, no hidden states or scores")
            return Outputs(self.bert(**batch).logits)
        if self.family.relative_bias(self.bert) is not None:
            batch["attention_mask"] = additive(attention_mask)
        if not scores:
            outputs = self.bert(**batch, output_hidden_states=hidden)
            return Outputs(outputs.logits, outputs.hidden_states if hidden else ())
        projected: list[Tensor] = []
        hooks = [
            layer[name].register_forward_hook(lambda _, __, y: projected.append(y))
            for layer in self.family.layers(self.bert)
            for name in ("query", "key")
        ]
        try:
            outputs = self.bert(**batch, output_hidden_states=hidden)
        finally:
            for hook in hooks:
                hook.remove()
        heads, bias = self.bert.config.num_attention_heads, self.score_bias(input_ids)
        found = (raw_scores(q, k, heads) for q, k in zip(projected[::2], projected[1::2], strict=True))
        return Outputs(
            outputs.logits,
            outputs.hidden_states if hidden else (),
            tuple(found if bias is None else (score + bias for score in found)),
        )

    def score_bias(self, input_ids: Tensor) -> Tensor | None:
        """The relative position bias of the scores, `[B, H, N, N]`; None for a family without."""
        if self.family.relative_bias(self.bert) is None:
            return None
        return self.family.encoder(self.bert).encoder.compute_position_bias(input_ids)


def loaded(checkpoint: str | Path, config: PreTrainedConfig) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The sequence classifier of a checkpoint, and transformers' lists of the tensors that did not fit. Raises
    InputError where it cannot be loaded."""
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            checkpoint,
            config=config,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # another task's classifier is made anew, the rest refused
        )
    except Exception as error:  # of many kinds, for files of any content
        if out_of_memory(error):
            raise InputError(f"teacher.checkpoint: there is not enough memory to load {checkpoint}") from None
        raise InputError(
            f"teacher.checkpoint: the weights at {checkpoint} cannot be loaded as a {title_of(config)} with "
            f"{config.num_labels} outputs ({first_line(error)})"
        ) from None


def weights_problem(
    checkpoint: str | Path, bert: PreTrainedModel, drawn: Sequence[str], unexpected: Sequence[str]
) -> str:
    """Why a classifier that was loaded cannot be a teacher, in a sentence; empty where it can.

    `drawn`: names of the tensors that the checkpoint lacks; `unexpected`: of those that it has besides."""
    title, base = title_of(bert.config), bert.base_model_prefix
    lost = [key for key in drawn if key.startswith(f"{base}.") and not key.startswith(f"{base}.pooler.")]
    if lost:
        return (
            f"{checkpoint} lacks {len(lost)} of the encoder's weights or has them in another size, first {lost[0]}; is "
            f"it a complete {title}?"
        )
    modules = [name for name, _ in bert.base_model.named_children() if name != "pooler"]
    if unread := unread_weights(unexpected, base, modules):
        return (
            f"{checkpoint} has {len(unread)} weights that a {title} of transformers does not read, first {unread[0]}; "
            "it is another architecture"
        )
    if broken := not_finite(bert.state_dict()):
        return f"{broken[0]} at {checkpoint} is not finite; give another checkpoint"
    if gives_logits_alone(bert.config) and (problem := work_problem(bert)):
        return f"{checkpoint}, a {title}, {problem}; a teacher is one of {KNOWN}"
    return ""


def additive(mask: Tensor) -> Tensor:
    """`[B, N]`, 1 for real tokens -> `[B, 1, 1, N]`, 0 for real tokens and the least float32 for padding, as
    transformers takes a finished mask. The one that it makes for MPNet reads a number from the CPU, and a CUDA graph
    cannot."""
    return (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min


def rebuilt(kind: type[PreTrainedModel], config: PreTrainedConfig, weights: dict[str, Tensor], frozen: bool) -> Teacher:
    """The teacher that was pickled, for another process."""
    teacher = Teacher(kind(config))
    teacher.bert.load_state_dict(weights)
    return teacher.freeze() if frozen else teacher


def raw_scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """`q k^T / sqrt d`: `[B, N, D]` twice -> `[B, H, N, N]`."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def copy_encoder(student: nn.Module, teacher: Teacher, layers: list[int]) -> None:
    """Start the student from the teacher: embeddings, relative position bias, the chosen `layers` (from 0), and with
    [CLS] pooling the head. From a teacher of another architecture the embeddings alone, as far as they have the sizes
    of its stand-in's; the rest is random."""
    if teacher.family is None:
        teacher = with_embeddings_of(teacher)
    family, bert = teacher.family, teacher.bert
    source, embedding = family.encoder(bert).embeddings, student.embedding
    pairs = [
        (embedding.position, source.position_embeddings),
        (embedding.norm, source.LayerNorm),
    ]
    if embedding.segment is not None:
        pairs.append((embedding.segment, source.token_type_embeddings))
    if embedding.projection is not None:
        pairs.append((embedding.projection, family.projection(bert)))
    if student.relative_bias is not None:
        pairs.append((student.relative_bias.table, family.relative_bias(bert)))
    modules = family.layers(bert)
    for target, index in zip(student.layers, layers, strict=True):
        pairs += [(getattr(target, name), module) for name, module in modules[index].items()]
    if student.pooler is not None:
        pairs += zip((student.pooler, student.classifier), family.head(bert), strict=True)
    embedding.word.weight.data.copy_(source.word_embeddings.weight)
    for target, origin in pairs:
        target.load_state_dict(origin.state_dict())


def with_embeddings_of(teacher: Teacher) -> Teacher:
    """The stand-in of a teacher of another architecture, random but for the embeddings that fit."""
    made, theirs = Teacher.scratch(teacher.encoder_config), embeddings_of(teacher.bert)
    embeddings = made.family.encoder(made.bert).embeddings
    sizes = {name: tensor.shape for name, tensor in embeddings.state_dict().items()}
    fitting = {name: tensor for name, tensor in theirs.items() if sizes.get(name) == tensor.shape}
    embeddings.load_state_dict(fitting, strict=False)
    return made
