"""The configuration of a checkpoint, checked before any weight is read: architecture, sizes, label names.

The teacher is transformers' own model. Of the BERT family the student copies its encoder: a checkpoint with fields that
transformers ignores, or with parts that the student does not have, is refused in one sentence. One of another
architecture (`other_architectures.py`) must have the sizes of a BERT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, BertConfig, PreTrainedConfig

from spikeprune.errors import InputError
from spikeprune.models.families import FAMILIES, behind_padding, embedding_width, family_of, longest_text, token_types
from spikeprune.models.other_architectures import (
    ACTIVATIONS,
    CLASSIFIERS,
    KNOWN,
    gives_logits_alone,
    sizes_of,
    stand_in,
    title_of,
)

MOST_LAYERS = 1000  # of a checkpoint; far more come of a damaged number, and would fill the memory
# Encoder tensors of a checkpoint that hold nothing learnt: older versions of transformers wrote these buffers.
BUFFERS = ("position_ids", "token_type_ids")


def read_config(checkpoint: str, *, classes: int) -> PreTrainedConfig:
    """The configuration of a checkpoint (hub name or directory) of one of `FAMILIES` or `CLASSIFIERS`. Raises
    InputError if it is none that fits."""
    raw = raw_config(checkpoint)
    kind = raw.get("model_type", "bert")  # without one, the next call explains it
    if kind not in [*FAMILIES, *CLASSIFIERS]:
        raise InputError(f"teacher.checkpoint: {checkpoint} holds a {kind!r} model; a teacher is one of {KNOWN}")
    try:
        config = AutoConfig.from_pretrained(checkpoint, num_labels=classes, trust_remote_code=False)
    except Exception as error:  # of many kinds, for files of any content
        raise InputError(_unreadable(checkpoint, error)) from None
    problem = next(problems(raw, config), None)
    if problem is None and (Path(checkpoint) / "adapter_config.json").is_file():
        problem = "holds an adapter (adapter_config.json), which is not loaded; merge it into the weights first"
    if problem is not None:
        raise InputError(f"teacher.checkpoint: {checkpoint} {problem}")
    config.return_dict, config.chunk_size_feed_forward = True, 0  # the form of a forward's outputs
    return config


def raw_config(checkpoint: str) -> dict[str, Any]:
    """`config.json` as it is written: transformers drops fields that it no longer knows."""
    try:
        return PreTrainedConfig.get_config_dict(checkpoint)[0]
    except Exception as error:
        raise InputError(_unreadable(checkpoint, error)) from None


def _unreadable(checkpoint: str, error: Exception) -> str:
    return (
        f"teacher.checkpoint: no model configuration at {checkpoint!r}; give an encoder's hub name or a directory "
        f"with config.json and model.safetensors ({first_line(error)})"
    )


def first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def problems(raw: dict[str, Any], config: PreTrainedConfig) -> Iterator[str]:
    """Properties of an encoder that teacher or student could not reproduce; each text completes "<checkpoint> …"."""
    title = title_of(config)
    for name, words in (
        ("is_decoder", "decoder"),
        ("add_cross_attention", "with cross-attention"),
        ("is_encoder_decoder", "with a decoder"),
    ):
        if getattr(config, name, raw.get(name)):
            yield f"is a {title} {words} ({name} is true); use an encoder"
    for name in ("auto_map", "quantization_config", "per_layer_config", "pruned_heads"):
        if raw.get(name):
            yield f"has {name} in its config.json, which is not followed here; save it as a plain float {title}"
    yield from (of_another if gives_logits_alone(config) else of_family)(raw, config, title)


def of_another(raw: dict[str, Any], config: PreTrainedConfig, title: str) -> Iterator[str]:
    """`problems` of an architecture that is not of the family."""
    found = sizes_of(config)
    if lacking := [name for name, size in found.items() if type(size) is not int]:
        names = " and ".join(lacking)
        yield f"is a {title} without {names}, so that its cost is not known; a teacher is one of {KNOWN}"
        return
    # such as ALBERT's inner_group_num, each of which is a module
    counts = {name: n for name, n in raw.items() if name.startswith("num_") or name.endswith("_num")}
    for name, count in counts.items():
        if name != "num_labels" and type(count) is int and count > MOST_LAYERS:
            yield f"has {name}={count}; at most {MOST_LAYERS} are read"
            return
    padding = getattr(config, "pad_token_id", None)
    if problem := next(sizes(BertConfig(**found, pad_token_id=padding), title), None):
        yield problem
        return
    try:
        stand_in(config)
    except Exception as error:  # of many kinds, for values of any architecture
        yield f"describes no {title} ({first_line(error)})"


def of_family(raw: dict[str, Any], config: PreTrainedConfig, title: str) -> Iterator[str]:
    """`problems` of the family's own."""
    positions = raw.get("position_embedding_type", "absolute")
    width = raw.get("embedding_size", embedding_width(config))
    if config.hidden_act not in ACTIVATIONS:
        yield f"is a {title} with hidden_act={config.hidden_act!r}; use one with gelu, gelu_new or relu"
    if positions != "absolute":
        yield f"is a {title} with position_embedding_type={positions!r}, which transformers ignores; use absolute"
    if width != embedding_width(config):
        yield f"has word embeddings of embedding_size={width} for hidden_size={config.hidden_size}; use one with equal"
    yield from sizes(config, title)


def sizes(config: PreTrainedConfig, title: str) -> Iterator[str]:
    """Numbers of a configuration that make no encoder."""
    family = family_of(config)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    counts = {name: getattr(config, name) for name in (*names, "max_position_embeddings")}
    if family.types:
        counts["type_vocab_size"] = token_types(config)
    counts["embedding_size"] = embedding_width(config)
    for name, count in counts.items():
        if count < 1:
            yield f"has {name}={count}; a {title} needs at least 1"
            return
    if config.num_hidden_layers > MOST_LAYERS:
        yield f"has num_hidden_layers={config.num_hidden_layers}; at most {MOST_LAYERS} are read"
    if config.hidden_size % config.num_attention_heads:
        yield f"has {config.num_attention_heads} heads, which do not divide its hidden_size={config.hidden_size}"
    if not (math.isfinite(config.layer_norm_eps) and config.layer_norm_eps > 0):
        yield f"has layer_norm_eps={config.layer_norm_eps}; it must be above 0"
    if config.pad_token_id is not None and not 0 <= config.pad_token_id < config.vocab_size:
        yield f"has pad_token_id={config.pad_token_id}, which is none of its {config.vocab_size} word embeddings"
    elif family.offset is behind_padding and config.pad_token_id is None:
        yield f"has no pad_token_id, behind which a {family.title}'s positions begin; add it to config.json"
    elif longest_text(config) < 1:
        yield f"has max_position_embeddings={config.max_position_embeddings}, none of which is behind that of padding"
    if family.buckets and config.relative_attention_num_buckets != family.buckets:
        found = config.relative_attention_num_buckets
        yield f"has relative_attention_num_buckets={found}; transformers computes with {family.buckets}"
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        if (rate := getattr(config, name, None)) is not None and not 0 <= rate < 1:
            yield f"has {name}={rate}; it must be at least 0 and below 1"


def unread_weights(keys: Sequence[str], base: str, modules: Sequence[str] = ()) -> list[str]:
    """The encoder's tensors among those of a checkpoint that no module takes: without them it would be another network.
    Classifiers of other tasks may be missing. `base`: the encoder's name in a classifier; `modules`: of its parts, but
    for the pooler, where they are not those of the family."""
    parts = tuple(f"{name}." for name in ("embeddings", "embeddings_project", "encoder", *modules))
    own = [key for key in keys if key.removeprefix(f"{base}.").startswith(parts)]
    return sorted(key for key in own if not key.endswith(BUFFERS))


# ------------------------------------------------------------------------------------------------------------ labels


def label_names(labels: Sequence[str]) -> dict[str, dict]:
    """The names of the classes as a transformers configuration has them."""
    return {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}


def label_order(checkpoint: str, labels: Sequence[str]) -> tuple[list[int], str]:
    """The checkpoint's class for each of the task's `labels`, and a line where its names are not the task's, so that
    the order of its classes has to be taken as it is. Case and the kind of dash do not matter.

    Raises InputError where `label2id` and `id2label` contradict each other.
    """
    raw, plain = raw_config(checkpoint), list(range(len(labels)))
    named = _numbers(raw.get("label2id"))
    numbered = _numbers({name: i for i, name in (raw.get("id2label") or {}).items()})
    if _generic(named) and not _generic(numbered):
        named = {}  # transformers' own, left there by whoever named the classes in id2label alone
    elif _generic(numbered):
        numbered = {}
    if named and numbered and named != numbered:
        raise InputError(
            f"teacher.checkpoint: id2label and label2id in {checkpoint}'s config.json contradict each other "
            f"({numbered} and {named}); mend the wrong one"
        )
    named = named or numbered
    own = {_spelling(name): i for name, i in named.items()}
    if set(own) == {_spelling(name) for name in labels} and sorted(own.values()) == plain:
        return [own[_spelling(name)] for name in labels], ""
    theirs = ", ".join(sorted(named, key=named.get)) or "not named"
    return plain, f"labels: the classes of {checkpoint} ({theirs}) are taken to be, in this order, {', '.join(labels)}"


def _numbers(table: Any) -> dict[str, int]:
    """`label2id` as it should be; empty for one that numbers nothing."""
    try:
        return {str(name): int(i) for name, i in (table or {}).items()}
    except (AttributeError, TypeError, ValueError):
        return {}


def generic_names(names: Sequence[str]) -> bool:
    """Whether these are the names that transformers gives to classes without any."""
    return all(name == f"LABEL_{i}" for i, name in enumerate(names))


def _generic(table: dict[str, int]) -> bool:
    """Whether these are the names that transformers gives to classes without any, or none at all."""
    return all(_spelling(name) == f"label_{i}" for name, i in table.items())


def _spelling(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")
