"""Teachers of other architectures than those of `families.py`: they teach their logits alone.

Such a teacher is any sequence classifier of transformers that reads token ids and a mask, and that does at least the
work of a BERT of its sizes. Where an encoder of the family is wanted, its stand-in is taken, which has the same sizes:
a BERT, an ELECTRA where the embeddings have a width of their own, a RoBERTa where positions begin behind padding's. The
teacher's cost is counted as the stand-in's, and a student starts from the stand-in's random weights and the teacher's
embeddings.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    ElectraConfig,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from spikeprune.models.families import FAMILIES, TITLES, longest_text

ACTIVATIONS = ("gelu", "gelu_new", "relu")  # what the student's layers compute as transformers does
HEAD = "ForSequenceClassification"
CLASSIFIERS: dict[str, str] = {  # titles of those that fill in masked words, not decoders, by transformers' model_type
    kind: name.removesuffix(HEAD)
    for kind, name in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.items()
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
}
KNOWN = f"{TITLES}; for its logits alone any other encoder that transformers has a sequence classifier of"
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
PROBE = 8  # tokens whose work is counted


def title_of(config: PreTrainedConfig) -> str:
    kind = config.model_type
    return FAMILIES[kind].title if kind in FAMILIES else CLASSIFIERS[kind]


def gives_logits_alone(config: PreTrainedConfig) -> bool:
    return config.model_type not in FAMILIES


def encoder_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration itself where it is one of the family, else its stand-in's."""
    return stand_in(config) if gives_logits_alone(config) else config


def sizes_of(config: PreTrainedConfig) -> dict[str, Any]:
    """A BERT's sizes as another architecture has them; None for one that it does not have."""
    neurons = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", None)  # DistilBERT's
    return {**{name: getattr(config, name, None) for name in SIZES}, "intermediate_size": neurons}


def stand_in(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of an encoder of the family with the sizes of another, whose weights start at the scale of
    `teacher.scratch_config`."""
    with torch.device("meta"):  # modules without memory
        model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    sizes, width = sizes_of(config), model.get_input_embeddings().weight.shape[1]
    behind_padding = any(
        name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
        for name, module in model.named_modules()
    )
    act = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    values = {
        **sizes,
        "num_labels": config.num_labels,
        "type_vocab_size": getattr(config, "type_vocab_size", 0) or BertConfig().type_vocab_size,
        "hidden_act": act if act in ACTIVATIONS else "gelu",
        "pad_token_id": getattr(config, "pad_token_id", None),
        "initializer_range": config.hidden_size**-0.5,
    }
    if behind_padding:
        return RobertaConfig(**values)
    return BertConfig(**values) if width == config.hidden_size else ElectraConfig(**values, embedding_size=width)


def reads_types(model: PreTrainedModel) -> bool:
    """Some have the argument and no table for it, or look token types up among the words."""
    rows = getattr(model.config, "type_vocab_size", 0)
    return rows > 0 and "token_type_ids" in inspect.signature(model.forward).parameters


def last_layer(model: PreTrainedModel) -> nn.Linear | None:
    """The projection on classes, the last one behind the encoder; None where there is none of so many outputs."""
    inside = set(model.base_model.modules())
    found = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
    return next((module for module in reversed(found) if module.out_features == model.config.num_labels), None)


def embeddings_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tables and the layer norm of its embeddings, under the names of BERT's."""
    module = getattr(model.base_model, "embeddings", None)
    found = {} if module is None else module.state_dict()
    return {**found, "word_embeddings.weight": model.get_input_embeddings().weight}


def work_problem(model: PreTrainedModel) -> str:
    """A sentence's end on a model that reads more than token ids and a mask, or does less than its stand-in would, so
    that savings would be overstated; empty where there is no problem. Embeddings, head and attention are left out."""
    plain = stand_in(model.config)
    count = min(PROBE, longest_text(plain))
    ids = torch.zeros(1, count, dtype=torch.long)
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # without gradients it refuses parameters
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    except Exception as error:  # of any kind, in the code of any architecture
        return f"does not run on token ids and a mask alone ({type(error).__name__})"
    wide, neurons = plain.hidden_size, plain.intermediate_size
    least = 2 * count * plain.num_hidden_layers * (4 * wide**2 + 2 * wide * neurons)
    if counter.get_total_flops() < least:
        share = counter.get_total_flops() / least
        return f"does {share:.2f} of the work of a BERT of its sizes, so savings against it would be overstated"
    return ""
