"""Heads that transformers has not: an encoder of any family, pooled over its real tokens, and a linear layer.

Such a model is a transformers model (``save_pretrained``, ``from_pretrained``); its encoder lies under the family's own
prefix, so that ``AutoModel`` reads it alone. Its config has ``kd_pooling``, and where it gives vectors and no logits of
labels ``kd_vector``, their width.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.architecture import family
from kd.errors import UserError
from kd.tasks.base import Task

PIPELINES = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModel": "feature-extraction",
}
OWN = ("kd_pooling", "kd_vector")  # config fields that transformers does not know


def pool(states: Tensor, mask: Tensor, how: str, score: nn.Module | None = None) -> Tensor:
    """States ``[B, L, H]`` of tokens, real where the mask ``[B, L]`` is 1, to ``[B, H]``; the others count nothing.

    ``cls`` is the first token's, ``mean`` and ``max`` go over all real tokens, ``attention`` is their mean weighted by
    a softmax of ``score(states)`` ``[B, L, 1]``.
    """
    if how == "cls":
        return states[:, 0]
    padded = mask[..., None] == 0
    if how == "max":
        return states.masked_fill(padded, -torch.inf).amax(1)
    states = states.masked_fill(padded, 0.0)
    if how == "mean":
        return states.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    assert score is not None
    weights: Tensor = score(states).masked_fill(padded, -torch.inf).softmax(1)
    return (weights * states).sum(1)


class Pooled(nn.Module):
    """What the classes made by ``pooled_class`` have before the family's ``PreTrainedModel``.

    ``logits`` are ``[B, num_labels]``, or ``[B, kd_vector]`` where the config has that: the pooled state itself if it
    is so wide (or ``kd_vector`` is 0), else a learned map of it. ``encoder``: one that is there, of the same config.
    """

    config: Any
    base_model_prefix: str
    base_model: Any
    post_init: Any

    def __init__(self, config: Any, encoder: Any = None) -> None:
        super().__init__(config)
        if encoder is None:
            encoder = encoder_class(config.model_type)(config, **without_pooler(config.model_type))
        setattr(self, self.base_model_prefix, encoder)
        width = config.hidden_size
        # a start at 0 weighs all tokens alike: the mean
        self.score = nn.Linear(width, 1, bias=False) if config.kd_pooling == "attention" else None
        self.dropout: nn.Module = nn.Identity()
        self.output: nn.Module = nn.Identity()
        if not hasattr(config, "kd_vector"):
            chances = [getattr(config, name) for name in family(config.model_type).dropout]
            self.dropout = nn.Dropout(next(chance for chance in chances if chance is not None))
            self.output = nn.Linear(width, config.num_labels)
        else:
            config.kd_vector = config.kd_vector or width
            if config.kd_vector != width:
                self.output = nn.Linear(width, config.kd_vector)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        from transformers import initialization

        super()._init_weights(module)  # type: ignore[misc]  # the family's
        if module is self.score:
            initialization.zeros_(module.weight)

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any) -> Any:
        from transformers.modeling_outputs import SequenceClassifierOutput

        encoded = self.base_model(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        states = encoded.last_hidden_state
        if attention_mask is None:
            attention_mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
        pooled = pool(states, attention_mask, self.config.kd_pooling, self.score)
        return SequenceClassifierOutput(
            logits=self.output(self.dropout(pooled)), hidden_states=encoded.hidden_states, attentions=encoded.attentions
        )


def encoder_class(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING, MODEL_MAPPING

    return MODEL_MAPPING[CONFIG_MAPPING[model_type]]


def without_pooler(model_type: str) -> dict[str, bool]:
    """What leaves out the layer behind the first token's state, in encoders that can do without."""
    taken = inspect.signature(encoder_class(model_type)).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in taken else {}


@functools.cache
def pooled_class(model_type: str) -> Any:
    """``BertPooled`` for ``bert``: one class for a family, whatever the pooling."""
    encoder = encoder_class(model_type)
    name = encoder.__name__.removesuffix("Model") + "Pooled"
    return type(name, (Pooled, *encoder.__bases__), {"__module__": __name__, "__doc__": Pooled.__doc__})


class Auto:
    """The task's Auto class of transformers; for a config with ``kd_pooling``, the class of this file."""

    def __init__(self, task: Task) -> None:
        self.stock = task.auto_class()

    def from_config(self, config: Any, dtype: torch.dtype = torch.float32) -> Any:
        if pooling_of(config):
            return pooled_class(config.model_type)._from_config(config, dtype=dtype)
        return self.stock.from_config(config, dtype=dtype)

    def from_pretrained(self, directory: Path, **more: Any) -> Any:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        return (pooled_class(config.model_type) if pooling_of(config) else self.stock).from_pretrained(
            directory, **more
        )


def pooling_of(config: Any) -> str | None:
    """How a head of this file pools; None if it is one of transformers'."""
    found: str | None = getattr(config, "kd_pooling", None)
    return found


def kind(task: Task) -> str | None:
    """``labels`` of a whole text, ``vectors``, or None: nothing that is pooled."""
    return {"AutoModelForSequenceClassification": "labels", "AutoModel": "vectors"}.get(task.auto_class().__name__)


def stored_kind(config: Any) -> str | None:
    """The same of a head of this file; None for other heads."""
    return None if not pooling_of(config) else "vectors" if hasattr(config, "kd_vector") else "labels"


def fields(task: Task, model_type: str, pooling: str | None) -> dict[str, Any]:
    """The config fields that make a head pool so; none where transformers' own does. Vectors are a mean by default.

    Raises UserError for a pooling where the task has no use for one.
    """
    own, wanted = family(model_type), kind(task)
    if wanted == "vectors":
        return {"kd_pooling": pooling or "mean"}
    if pooling is None:
        return {}
    if wanted is None:
        raise UserError(
            f"pooling={pooling}: this task has an answer for single tokens and none for a whole text, so nothing is "
            "pooled. Leave teacher.pooling and student.pooling out."
        )
    if pooling in own.pools:
        return {own.pooling_field: pooling} if own.pooling_field else {}
    return {"kd_pooling": pooling}


def is_there(config: Any, task: Task, pooling: str | None) -> bool:
    """Whether a checkpoint of this config has the head that is asked for; with None any pooling will do."""
    names = config.architectures or []
    if pooling_of(config):
        wide = task.config_fields().get("kd_vector") or None  # None: any width will do
        same = stored_kind(config) == kind(task) and pooling in (None, config.kd_pooling)
        same = same and wide in (None, getattr(config, "kd_vector", None))
        return same and any(name.endswith("Pooled") for name in names)
    if kind(task) == "vectors":
        return False
    wanted = fields(task, config.model_type, pooling)
    head = task.auto_class().__name__.removeprefix("AutoModel")
    return any(name.endswith(head) for name in names) and all(
        getattr(config, key, None) == value for key, value in wanted.items()
    )


def on_encoder(directory: Path, config: Any, task: Task) -> tuple[Any, set[str]]:
    """A new head on the encoder of a checkpoint, and what the encoder lacks there."""
    own = pooling_of(config)
    with torch.device("meta"):
        made = Auto(task).from_config(config)
    pooler = getattr(made.base_model, "pooler", None) is not None
    encoder, info = encoder_class(config.model_type).from_pretrained(
        directory, config=config, dtype=torch.float32, output_loading_info=True, local_files_only=True,
        **({} if pooler else without_pooler(config.model_type)),
    )  # fmt: skip
    if own:
        return pooled_class(config.model_type)(encoder.config, encoder), set(info["missing_keys"])
    model = Auto(task).from_config(encoder.config)
    setattr(model, model.base_model_prefix, encoder)
    model.tie_weights()  # a decoder shares the encoder's embeddings
    return model, set(info["missing_keys"])


def learned(model: Any) -> bool:
    """Whether the head has weights: one that only pools has none."""
    inside = f"{model.base_model_prefix}."
    return any(not name.startswith(inside) for name, _ in model.named_parameters())


def described(model: Any, task: Task) -> dict[str, str | None]:
    """``auto``: the class of transformers that has this head; ``own``: what it is, in words, if none has.

    ``pipeline`` is the hub's word for what it is good for.
    """
    config, how = model.config, pooling_of(model.config)
    words = {"cls": "first token's state", "mean": "mean", "max": "maximum", "attention": "attention-weighted mean"}
    pipeline = PIPELINES[task.auto_class().__name__]
    if how is None:
        return {"auto": task.auto_class().__name__, "own": None, "pipeline": pipeline}
    over = "" if how == "cls" else " of the last states of all real tokens"
    if not hasattr(config, "kd_vector"):
        last = f", dropout, and a linear layer to {config.num_labels} logits"
    else:
        last = "" if config.kd_vector == config.hidden_size else f", and a linear layer to {config.kd_vector} numbers"
    return {"auto": "AutoModel", "pipeline": pipeline, "own": f"the {words[how]}{over}{last}"}
