"""The encoders that a teacher may be and a student may start from, and where transformers keeps their parts.

All are post-norm encoders of the BERT family:

| family | differs from BERT in |
|---|---|
| BERT (Devlin et al. 2018, arXiv 1810.04805) | |
| RoBERTa (Liu et al. 2019, arXiv 1907.11692) | positions behind that of padding; a classification head of its own |
| MPNet (Song et al. 2020, arXiv 2004.09297) | as RoBERTa; no token types; a relative position bias in attention |
| ELECTRA (Clark et al. 2020, arXiv 2003.10555) | embeddings of their own width; a head with gelu |

A family is one entry of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import (
    BertForSequenceClassification,
    ElectraForSequenceClassification,
    MPNetForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaForSequenceClassification,
)

from spikeprune.errors import InputError

Modules = dict[str, nn.Module]  # by the names of `layers.EncoderLayer`


def bert_layer(layer: nn.Module) -> Modules:
    own, output = layer.attention.self, layer.attention.output
    return {
        "query": own.query,
        "key": own.key,
        "value": own.value,
        "out": output.dense,
        "attention_norm": output.LayerNorm,
        **feed_forward(layer),
    }


def mpnet_layer(layer: nn.Module) -> Modules:
    own = layer.attention.attn
    return {
        "query": own.q,
        "key": own.k,
        "value": own.v,
        "out": own.o,
        "attention_norm": layer.attention.LayerNorm,
        **feed_forward(layer),
    }


def feed_forward(layer: nn.Module) -> Modules:
    return {"up": layer.intermediate.dense, "down": layer.output.dense, "output_norm": layer.output.LayerNorm}


@dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    title: str
    classifier: type[PreTrainedModel]
    layer: Callable[[nn.Module], Modules] = bert_layer
    own_head: bool = True  # dense, activation and projection in `classifier`; BERT has a pooler in the encoder
    pooler_act: str = "tanh"
    types: bool = True  # reads token types
    own_width: bool = False  # embeddings of their own width, `embedding_size`
    buckets: int = 0  # of a relative position bias: the number that transformers computes with
    offset: Callable[[PreTrainedConfig], int] = lambda config: 0  # row of the first token's position

    @property
    def base(self) -> str:
        """The encoder's name in the classifier."""
        return self.classifier.base_model_prefix

    def encoder(self, model: PreTrainedModel) -> nn.Module:
        return getattr(model, self.base)

    def layers(self, model: PreTrainedModel) -> list[Modules]:
        return [self.layer(layer) for layer in self.encoder(model).encoder.layer]

    def head(self, model: PreTrainedModel) -> tuple[nn.Linear, nn.Linear]:
        """The dense layer on [CLS], and the projection on classes."""
        if self.own_head:
            return model.classifier.dense, model.classifier.out_proj
        return self.encoder(model).pooler.dense, model.classifier

    def relative_bias(self, model: PreTrainedModel) -> nn.Embedding | None:
        return getattr(self.encoder(model).encoder, "relative_attention_bias", None)

    def projection(self, model: PreTrainedModel) -> nn.Linear | None:
        """From the embeddings' width to the layers', where they differ."""
        return getattr(self.encoder(model), "embeddings_project", None)


def behind_padding(config: PreTrainedConfig) -> int:
    return config.pad_token_id + 1


FAMILIES: dict[str, Family] = {  # by transformers' model_type
    "bert": Family("BERT", BertForSequenceClassification, own_head=False),
    "roberta": Family("RoBERTa", RobertaForSequenceClassification, offset=behind_padding),
    "mpnet": Family(
        "MPNet", MPNetForSequenceClassification, mpnet_layer, types=False, buckets=32, offset=lambda config: 2
    ),
    "electra": Family("ELECTRA", ElectraForSequenceClassification, pooler_act="gelu", own_width=True),
}
TITLES = ", ".join(family.title for family in FAMILIES.values())


def family_of(config: PreTrainedConfig) -> Family:
    """Raises InputError for another architecture."""
    if config.model_type not in FAMILIES:
        raise InputError(f"a {config.model_type!r} model cannot become a spiking one; one of {TITLES} can")
    return FAMILIES[config.model_type]


def longest_text(config: PreTrainedConfig) -> int:
    """Tokens that the position embeddings reach."""
    return config.max_position_embeddings - family_of(config).offset(config)


def token_types(config: PreTrainedConfig) -> int:
    """Rows of the token type embeddings; 0 for a family without."""
    return config.type_vocab_size if family_of(config).types else 0


def embedding_width(config: PreTrainedConfig) -> int:
    """Channels of the embeddings, before they are projected to the layers' where these differ."""
    return config.embedding_size if family_of(config).own_width else config.hidden_size


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The arguments of `SpikingBert` that are the encoder's own, but for the number of layers."""
    return {
        "vocab": config.vocab_size,
        "positions": config.max_position_embeddings,
        "position_offset": family_of(config).offset(config),
        "segments": token_types(config),
        "embedding": embedding_width(config),
        "hidden": config.hidden_size,
        "heads": config.num_attention_heads,
        "ffn": config.intermediate_size,
        "relative_buckets": family_of(config).buckets,
        "act": config.hidden_act,
        "pooler_act": family_of(config).pooler_act,
        "eps": config.layer_norm_eps,
    }
