"""`SpikingBert` (`modeling.py`) as a model of transformers: its configuration, outputs, loss, files and Auto classes.

Importing this module registers the architecture `spiking_bert` with `AutoConfig` and
`AutoModelForSequenceClassification`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import cached_file

from spikeprune.models.configuration import MODEL_NAMES, SpikingBertConfig
from spikeprune.models.inference import infer
from spikeprune.models.modeling import SpikingBert
from spikeprune.models.serialization import PREFIX, WEIGHTS, config_of, file_tensors, full_state, read_tensors

# Arguments of `from_pretrained` that say where the files lie.
LOCATION = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


class SpikingBertForSequenceClassification(PreTrainedModel):
    """A spiking BERT with a classifier; the network is `spiking_bert`, a `SpikingBert`.

    In training mode a forward computes the neurons' equilibrium, with gradient. In evaluation mode it computes what
    `spikeprune evaluate` measures, without gradient: the closed form of the spikes where the coding has one, else a
    simulation step by step (`inference.infer`).

    Example:
        model = SpikingBertForSequenceClassification.from_pretrained("runs/sst2/stages/finetune")
        logits = model(**tokenizer("a fine film", return_tensors="pt")).logits
    """

    config_class = SpikingBertConfig
    base_model_prefix = PREFIX.rstrip(".")
    main_input_name = "input_ids"

    def __init__(self, config: SpikingBertConfig, spiking_bert: SpikingBert | None = None):
        """`spiking_bert`: a network to wrap, which is not copied; by default one with random weights."""
        super().__init__(config)
        self.spiking_bert = SpikingBert(**config.model_values()) if spiking_bert is None else spiking_bert
        self.post_init()

    @classmethod
    def of(cls, student: SpikingBert) -> SpikingBertForSequenceClassification:
        """A wrapped network, in the same mode."""
        return cls(config_of(student), student).train(student.training)

    def _init_weights(self, module: nn.Module) -> None:
        """`SpikingBert` has drawn its weights; those of a file are always complete."""

    def get_input_embeddings(self) -> nn.Embedding:
        return self.spiking_bert.embedding.word

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Token ids, mask (1 real, 0 padding) and segments `[B, N]` -> logits `[B, C]`.

        `labels [B]` (class numbers, or real numbers for a regression) add `loss`; `output_hidden_states` the L+1
        values `[B, N, D]` of embedding and layers, theta times the average spiking rate. Raises InputError for texts
        longer than the position embeddings.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if self.training:
            outputs = self.spiking_bert(input_ids, attention_mask, token_type_ids, scores=False)
        else:
            outputs = infer(self.spiking_bert, input_ids, attention_mask, token_type_ids)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=outputs.logits, config=self.config)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        result = SequenceClassifierOutput(
            loss=loss, logits=outputs.logits, hidden_states=tuple(outputs.hidden) if wanted else None
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return result if as_dict else result.to_tuple()

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """`config.json` and `model.safetensors` as `serialization` describes them; arguments are transformers'."""
        current = config_of(self.spiking_bert)
        for name in MODEL_NAMES:  # class names that were given since then stay
            setattr(self.config, name, getattr(current, name))
        kwargs.setdefault("state_dict", file_tensors(self.spiking_bert))
        super().save_pretrained(save_directory, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: SpikingBertConfig | None = None,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> SpikingBertForSequenceClassification:
        """The network in a directory or hub repository, in evaluation mode; arguments are transformers'.

        `t_steps`, `coding` and further keys of the configuration may be given other values. With
        `ignore_mismatched_sizes` a classifier for another number of classes is drawn anew. Raises InputError for
        weights that are not the configuration's network or are not finite.
        """
        location = {name: kwargs.pop(name) for name in LOCATION if name in kwargs}
        if config is None:
            config, kwargs = SpikingBertConfig.from_pretrained(
                pretrained_model_name_or_path, return_unused_kwargs=True, **location, **kwargs
            )
        for name in ("use_safetensors", "weights_only", "_from_auto", "_commit_hash"):
            kwargs.pop(name, None)
        tensors = read_tensors(Path(cached_file(pretrained_model_name_or_path, WEIGHTS, **location)))
        if ignore_mismatched_sizes:
            tensors = {**tensors, **new_classifier(config, tensors)}
        state = full_state(config.model_values(), tensors, str(pretrained_model_name_or_path), "give a complete one")
        state = {f"{PREFIX}{name}": tensor for name, tensor in state.items()}
        loaded = super().from_pretrained(None, *model_args, config=config, state_dict=state, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = str(pretrained_model_name_or_path)
        model.spiking_bert.refresh_synapses()  # counted from the weights, so no part of the file
        return loaded


def new_classifier(config: SpikingBertConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random weights and bias where the file's classifier has another number of classes."""
    name = f"{PREFIX}classifier"
    fresh = nn.Linear(config.hidden_size, config.num_labels).to(tensors[f"{name}.weight"])
    if fresh.weight.shape == tensors[f"{name}.weight"].shape:
        return {}
    return {f"{name}.{part}": tensor.detach() for part, tensor in fresh.named_parameters()}


AutoModelForSequenceClassification.register(SpikingBertConfig, SpikingBertForSequenceClassification)
