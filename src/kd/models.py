"""Models and tokenizers from directories or from nothing; layers by number in every family."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd import heads
from kd.architecture import Family, as_transformers, family, positions, stored_architecture
from kd.errors import UserError
from kd.memory import Cost, measured
from kd.tasks.base import Task


@dataclass
class Loaded:
    """A model in float32 and eval mode; ``has_head`` if its head was in the checkpoint too."""

    model: Any
    has_head: bool
    cost: Cost = field(default_factory=Cost)  # of loading it

    @property
    def told(self) -> str:
        """How it was loaded, for people."""
        size, peak = 4 * parameter_count(self.model), self.cost.peak_bytes
        more = " (mapped: the rest comes into memory when it is used)" if peak < size else ""
        return f"{size / 1e6:,.1f} MB in {self.cost.seconds:.1f} s, memory up {peak / 1e6:,.0f} MB at its peak{more}"


def config_of(architecture: dict[str, Any], task: Task) -> Any:
    """A transformers config from a conf file's ``architecture`` block, to which ``pooling`` may be added."""
    from transformers import AutoConfig

    named = {key: value for key, value in architecture.items() if key != "pooling"}
    pooled = heads.fields(task, named["model_type"], architecture.get("pooling"))
    return AutoConfig.for_model(**(as_transformers(named) | task.config_fields() | pooled))


def random_model(architecture: dict[str, Any], task: Task, tokenizer: Any = None) -> Any:
    """The exact architecture with random weights, in eval mode; the tokenizer says which tokens are special."""
    config = config_of(architecture, task)
    for name in special_ids(config) if tokenizer is not None else ():
        setattr(config, name, getattr(tokenizer, name))
    model = heads.Auto(task).from_config(config)
    start_head(model, task)
    return model.eval()


def special_ids(config: Any) -> list[str]:
    """The fields for ids of special tokens: the row of the padding is never learned, RoBERTa's positions skip it."""
    names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")]
    return [name for name in names if hasattr(config, name)]


def tensor_shapes(architecture: dict[str, Any], task: Task) -> dict[str, tuple[int, ...]]:
    """The weights of such a model, by name, without making them."""
    config = config_of(architecture, task)
    config.pad_token_id = None  # the tokenizer's, not known here; changes no shape
    with torch.device("meta"):
        model = heads.Auto(task).from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def with_fields(model: Any, fields: dict[str, Any]) -> Any:
    """The model built anew from its config with these fields (by BERT's names), with the weights it has."""
    config = copy.deepcopy(model.config)
    named = as_transformers({"model_type": config.model_type, **fields})
    config.update({key: value for key, value in named.items() if key != "model_type"})
    built = type(model)(config).to(torch.float32)
    built.load_state_dict(model.state_dict())
    return built.eval()


def load_model(directory: Path, task: Task, pooling: str | None = None) -> Loaded:
    """A checkpoint as float32, whatever its file says; one without a head for the task gets a random one.

    A checkpoint that has a head keeps its own label names, to be compared with the task's. One whose head pools
    otherwise than ``pooling`` says has none for the task; with None any does.
    """
    with measured() as cost:
        loaded = with_its_head(directory, task, pooling)
    loaded.cost = cost
    return loaded


def with_its_head(directory: Path, task: Task, pooling: str | None) -> Loaded:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory)
    if not heads.is_there(config, task, pooling):
        return with_new_head(directory, config, task, pooling)
    model, info = heads.Auto(task).from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True, local_files_only=True
    )
    missing = set(info["missing_keys"])
    if missing:
        raise UserError(
            f"{directory}: the checkpoint says it is a {config.architectures[0]} but lacks "
            f"{', '.join(sorted(missing)[:5])}. It would start from random weights there."
        )
    return Loaded(model.eval(), has_head=True)


def with_new_head(directory: Path, config: Any, task: Task, pooling: str | None) -> Loaded:
    """A checkpoint's encoder and a new head. One that only pools, without weights, is as good as the checkpoint's."""
    head = task.auto_class().__name__.removeprefix("AutoModel")
    other = any(name.endswith((head, "Pooled")) for name in config.architectures or [])  # a head to be left out
    if heads.stored_kind(config) == heads.kind(task):
        pooling = pooling or heads.pooling_of(config)
    for name in heads.OWN:
        vars(config).pop(name, None)
    config.update(task.config_fields() | heads.fields(task, config.model_type, pooling))
    if heads.pooling_of(config) or other:
        model, missing = heads.on_encoder(directory, config, task)
        missing = {f"{model.base_model_prefix}.{key}" for key in missing}
    else:
        model, info = task.auto_class().from_pretrained(
            directory, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        missing = set(info["missing_keys"])
    inside = f"{model.base_model_prefix}."
    lost = [key for key in missing if key.startswith(inside) and ".pooler." not in key]
    if lost:
        raise UserError(f"{directory}: the weights file lacks {', '.join(sorted(lost)[:5])} of the encoder.")
    start_head(model, task)
    return Loaded(model.eval(), has_head=not heads.learned(model))


def load_tokenizer(directory: Path, alone: bool = False) -> Any:
    """The tokenizer of a model's directory, or one that lies there ``alone``."""
    from transformers import AutoTokenizer

    if not alone:
        stored_architecture(directory)  # transformers would ask for other files
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{directory}: no tokenizer could be loaded from there ({error}).") from error


def tokenizer_for(model_type: str, tokenizer: Any) -> Any:
    """The tokenizer as a model of this type needs it, also when it is saved: DistilBERT takes no token types."""
    names = [name for name in tokenizer.model_input_names if name in family(model_type).inputs]
    if names == tokenizer.model_input_names:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = names
    return tokenizer


def check_vocabulary(role: str, tokenizer: Any, model_config: Any) -> None:
    if len(tokenizer) > model_config.vocab_size:
        raise UserError(
            f"The tokenizer of the {role} has {len(tokenizer)} entries, its model only {model_config.vocab_size} "
            f"embeddings: set {role}.architecture.vocab_size={len(tokenizer)} for random weights, or give the "
            "model its own tokenizer."
        )


def check_positions(role: str, tokenizer: Any, model_config: Any, max_length: int) -> None:
    """A model from random weights may have fewer positions than its file's: its padding is the tokenizer's."""
    taken = positions(model_config.to_dict())
    if max_length > taken:
        raise UserError(
            f"data.max_length={max_length} is more than the {taken} tokens that the {role} takes: its positions begin "
            f"after the id of the padding, {tokenizer.pad_token_id}. Set data.max_length={taken} or less."
        )


def encoder_layers(model: Any) -> nn.ModuleList:
    """The transformer layers of a model with a head, first to last."""
    layers = model.base_model.get_submodule(family(model.config.model_type).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def recompute_activations(model: Any) -> None:
    """While it trains, what happens inside a layer is not kept for the backward pass but computed again."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()  # hooks for another kind of checkpoint; a model with them cannot be copied


def kept_fields(config: Any, own: Family, kept: Sequence[int]) -> dict[str, list[Any]]:
    """Of the teacher's config fields with an entry for each layer, the entries of the layers that are kept."""
    return {field: [getattr(config, field)[i - 1] for i in kept] for field in own.per_layer}


def start_head(model: Any, task: Task) -> None:
    """A new head as the task would have it; one of a vocabulary is no head of the task's."""
    if task.outputs:
        task.start_head(head_linear(model))


def head_linear(model: Any) -> nn.Linear:
    """The layer that gives the logits."""
    size = model.config.num_labels
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == size]
    return found[-1]


def reorder_labels(model: Any, task: Task) -> bool:
    """Permutes the head so that its labels stand in the task's order. False if the names do not allow it."""
    if not task.outputs:
        return True
    if len(task.outputs) == 1 == model.config.num_labels:  # one number, whatever it is called
        name_labels(model, task)
        return True
    own = [str(model.config.id2label[i]).lower() for i in range(model.config.num_labels)]
    wanted = [str(name).lower() for name in task.outputs]
    if sorted(own) != sorted(wanted):
        return False
    order = [own.index(name) for name in wanted]
    if order != sorted(order):
        print(f"The labels {own} of the checkpoint are put into the data's order {wanted}.")
        head = head_linear(model)
        with torch.no_grad():
            head.weight.copy_(head.weight[order])
            if head.bias is not None:
                head.bias.copy_(head.bias[order])
    name_labels(model, task)
    return True


def name_labels(model: Any, task: Task) -> None:
    """Gives the model the task's label names, in the task's order."""
    model.config.update({key: value for key, value in task.config_fields().items() if key != "num_labels"})


def parameter_count(model: nn.Module) -> int:
    """How many numbers a float model has learned."""
    return sum(p.numel() for p in model.parameters())
