"""The teacher: a BERT classifier from `transformers`, with the raw attention scores that its own outputs leave out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from spikeprune.errors import InputError
from spikeprune.models.checkpoint_facts import first_line, label_order, read_config, unread_weights
from spikeprune.models.outputs import Outputs, check_length
from spikeprune.models.tensors import not_finite, out_of_memory


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
    """`Outputs` of a BERT classifier. Dropout and gradients are the trainer's business while it learns the task; once
    frozen it stays in evaluation mode whatever `train()` says, and so gives the same teacher_outputs twice."""

    def __init__(self, bert: BertForSequenceClassification):
        super().__init__()
        self.bert = bert
        self.frozen = False
        self.note = ""  # on what was taken for granted about the checkpoint, a line

    def __reduce__(self):
        # transformers' own hooks, which answer with hidden states, do not survive a pickle
        return rebuilt, (self.bert.config, self.bert.state_dict(), self.frozen)

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

        A missing classifier starts at random; the rows of one that is there are put in the order of `labels`, the
        task's, where the checkpoint has the same names. Raises InputError for a missing or damaged encoder, for weights
        that are not finite, and for one with weights that transformers would leave out.
        """
        config = read_config(str(checkpoint), classes=classes)
        if dropout is not None:
            config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
            config.classifier_dropout = None  # the hidden states' then
        try:
            bert, info = AutoModelForSequenceClassification.from_pretrained(
                checkpoint,
                config=config,
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,  # another task's classifier is made anew, the rest refused
            )
        except (OSError, ValueError, RuntimeError, SafetensorError, MemoryError) as error:
            if out_of_memory(error):
                raise InputError(f"teacher.checkpoint: there is not enough memory to load {checkpoint}") from None
            raise InputError(
                f"teacher.checkpoint: the weights at {checkpoint} cannot be loaded as a BERT with {classes} outputs "
                f"({first_line(error)})"
            ) from None
        wrong = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
        lost = [key for key in wrong if not key.startswith(("classifier.", "bert.pooler."))]
        if lost:
            raise InputError(
                f"teacher.checkpoint: {checkpoint} lacks {len(lost)} of the encoder's weights or has them in another "
                f"size, first {lost[0]}; is it a complete BERT?"
            )
        if unread := unread_weights(list(info["unexpected_keys"])):
            raise InputError(
                f"teacher.checkpoint: {checkpoint} has {len(unread)} weights that a BERT of transformers does not "
                f"read, first {unread[0]}; it is another architecture"
            )
        if broken := not_finite(bert.state_dict()):
            raise InputError(f"teacher.checkpoint: {broken[0]} at {checkpoint} is not finite; give another checkpoint")
        teacher = cls(bert.train())  # transformers loads for answers, and Lightning leaves modes as it finds them
        if labels is not None and not any(key.startswith("classifier.") for key in wrong):
            teacher.sort_classes(*label_order(str(checkpoint), labels))
        return teacher

    @classmethod
    def scratch(cls, config: BertConfig) -> Teacher:
        return cls(BertForSequenceClassification(config))

    @torch.no_grad()
    def sort_classes(self, order: Sequence[int], note: str) -> None:
        """Put the classifier's rows in this order; `note` says what is not known about it."""
        classifier, self.note = self.bert.classifier, note
        classifier.weight.copy_(classifier.weight[list(order)])
        classifier.bias.copy_(classifier.bias[list(order)])

    def freeze(self) -> Teacher:
        self.frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(mode and not self.frozen)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, *, features: bool = False
    ) -> Outputs:
        """`[B, N]` -> logits `[B, C]`, and with `features` the hidden states and raw attention scores of each layer."""
        check_length(input_ids, self.bert.config.max_position_embeddings)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        if not features:
            return Outputs(self.bert(**batch).logits)
        projected: list[Tensor] = []
        attentions = [layer.attention.self for layer in self.bert.bert.encoder.layer]
        hooks = [
            linear.register_forward_hook(lambda _, __, y: projected.append(y))
            for attention in attentions
            for linear in (attention.query, attention.key)
        ]
        try:
            answer = self.bert(**batch, output_hidden_states=True)
        finally:
            for hook in hooks:
                hook.remove()
        heads = self.bert.config.num_attention_heads
        scores = tuple(raw_scores(q, k, heads) for q, k in zip(projected[::2], projected[1::2], strict=True))
        return Outputs(answer.logits, answer.hidden_states, scores)


def rebuilt(config: BertConfig, weights: dict[str, Tensor], frozen: bool) -> Teacher:
    """The teacher that was pickled, for another process."""
    teacher = Teacher.scratch(config)
    teacher.bert.load_state_dict(weights)
    return teacher.freeze() if frozen else teacher


def raw_scores(q: Tensor, k: Tensor, heads: int) -> Tensor:
    """`q k^T / sqrt d`: `[B, N, D]` twice -> `[B, H, N, N]`."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def copy_encoder(student: nn.Module, teacher: Teacher, layers: list[int]) -> None:
    """Start the student from the teacher: embeddings, the chosen `layers` (from 0), and with [CLS] pooling the head."""
    source = teacher.bert.bert
    pairs = [
        (student.embedding.word, source.embeddings.word_embeddings),
        (student.embedding.position, source.embeddings.position_embeddings),
        (student.embedding.segment, source.embeddings.token_type_embeddings),
        (student.embedding.norm, source.embeddings.LayerNorm),
    ]
    for target, index in zip(student.layers, layers, strict=True):
        layer = source.encoder.layer[index]
        pairs += [
            (target.query, layer.attention.self.query),
            (target.key, layer.attention.self.key),
            (target.value, layer.attention.self.value),
            (target.out, layer.attention.output.dense),
            (target.attention_norm, layer.attention.output.LayerNorm),
            (target.up, layer.intermediate.dense),
            (target.down, layer.output.dense),
            (target.output_norm, layer.output.LayerNorm),
        ]
    if student.pooler is not None:
        pairs += [(student.pooler, source.pooler.dense), (student.classifier, teacher.bert.classifier)]
    for target, origin in pairs:
        target.load_state_dict(origin.state_dict())
