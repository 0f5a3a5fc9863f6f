"""`SpikingBertConfig`: the `config.json` of a spiking BERT, under the names that transformers uses for BERT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar

import torch
from transformers import AutoConfig, PreTrainedConfig

from spikeprune.errors import check_format, nearest
from spikeprune.models.architecture import Architecture
from spikeprune.models.checkpoint_config import generic_names, label_names

# Arguments of `SpikingBert` that BERT's configuration has under another name; the rest have their own.
BERT_NAMES = {
    "vocab": "vocab_size",
    "positions": "max_position_embeddings",
    "embedding": "embedding_size",
    "relative_buckets": "relative_attention_num_buckets",
    "segments": "type_vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "act": "hidden_act",
    "eps": "layer_norm_eps",
    "classes": "num_labels",
}
OWN_NAMES = tuple(field.name for field in fields(Architecture) if field.name not in (*BERT_NAMES, "labels"))
FORMAT = 1  # of the directory
MODEL_NAMES = (*(name for name in BERT_NAMES.values() if name != "num_labels"), *OWN_NAMES)
# Further keys that transformers and its hub write into any config.json.
SHARED_KEYS = (
    *("model_type", "num_labels", "name_or_path", "torch_dtype", "output_attentions", "attn_implementation"),
    *("experts_implementation", "auto_map", "custom_pipelines", "task_specific_params", "tokenizer_class", "use_cache"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "transformers_weights"),
)


class SpikingBertConfig(PreTrainedConfig):
    """All values that make a `SpikingBertForSequenceClassification` of the weights in `model.safetensors`.

    Sizes have BERT's names, and those of its relatives for `embedding_size` (None: `hidden_size`) and
    `relative_attention_num_buckets` (0: no relative position bias). The others are explained one by one in
    `architecture.Architecture`, but for `format`, the version of config.json and model.safetensors: another one is
    refused. Class names are `id2label` and `label2id`. Raises ValueError for a key that neither this nor transformers
    knows.

    Example: `SpikingBertConfig(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, t_steps=4, num_labels=2)`
    """

    model_type: ClassVar[str] = "spiking_bert"

    vocab_size: int = 30522
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    embedding_size: int | None = None
    relative_attention_num_buckets: int = 0
    position_offset: int = 0
    pooler_act: str = "tanh"
    pad_token_id: int | None = 0
    t_steps: int | list[int] = 4
    spikes: str = "ternary"
    leak: float = 1.0
    theta: str = "channel"
    coding: str = "accumulate"
    query: str = "real"
    pooling: str = "mean"
    residual: str = "spikes"
    feedback: bool = False
    dead_zone: bool = False
    weights: str = "float"
    fold: bool = False
    word_table: str = "float"
    packed: bool = False
    sparse: bool = False
    layer_heads: list[int] | None = None
    layer_ffn: list[int] | None = None
    format: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        check_format(self.format, FORMAT, "config.json", "export or train the model again with this version")
        for name in MODEL_NAMES:
            default, value = getattr(type(self), name, None), getattr(self, name)
            kinds = (type(default), *({float: (int,)}.get(type(default), ())))
            if name != "t_steps" and default is not None and type(value) not in kinds:
                raise ValueError(f"{name} = {value!r} is no {type(default).__name__}")
        for key in kwargs:
            if not (key in SHARED_KEYS or key.startswith("_") or hasattr(PreTrainedConfig, key)):
                names = nearest(key, (*MODEL_NAMES, "id2label", "label2id"))
                raise ValueError(f"{key!r} is no value of a spiking BERT; known: {names}")
        super().__post_init__(**kwargs)
        if not all(i in self.id2label for i in range(self.num_labels)):
            raise ValueError(f"id2label must name the classes from 0 to {self.num_labels - 1}")
        if not isinstance(self.dtype, (str, torch.dtype, type(None))):
            raise ValueError(f"dtype = {self.dtype!r} is no number type")

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> SpikingBertConfig:
        """The configuration of `SpikingBert(**values)`; one output is a regression."""
        named = {BERT_NAMES[name]: values[name] for name in BERT_NAMES if name in values and name != "classes"}
        own = {name: values[name] for name in OWN_NAMES if name in values}
        labels = values.get("labels")
        classes = {"num_labels": values["classes"]} if labels is None else label_names(labels)
        padding = {"pad_token_id": max(0, values.get("position_offset", 0) - 1)}  # positions begin behind its own
        return cls(**named, **own, **classes, **padding, problem_type="regression" if values["classes"] == 1 else None)

    def model_values(self) -> dict[str, Any]:
        """The arguments of `SpikingBert`; its `labels` are None where the classes have no names of their own."""
        labels = [self.id2label[i] for i in range(self.num_labels)]
        named = {name: getattr(self, theirs) for name, theirs in BERT_NAMES.items()}
        own = {name: getattr(self, name) for name in OWN_NAMES}
        return {**named, **own, "labels": None if generic_names(labels) else labels}


AutoConfig.register(SpikingBertConfig.model_type, SpikingBertConfig)
