"""What a model is made as: the families of models, and the architecture that a composed configuration asks for.

conf/ names the fields of all families alike, as BERT does. Torch is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.errors import UserError
from kd.layer_map import kept_layers


@dataclass(frozen=True)
class Family:
    """What transformers' models of one ``model_type`` do in their own way."""

    layers: str  # where the base model keeps its layers
    inputs: tuple[str, ...]  # what it is called with
    linear: dict[str, str]  # a linear layer that is so wide at its input, for messages
    fields: dict[str, str] = field(default_factory=dict)  # its own names of config fields, by BERT's


FAMILIES = {
    "bert": Family(
        "encoder.layer",
        ("input_ids", "token_type_ids", "attention_mask"),
        {"hidden_size": "attention.self.query", "intermediate_size": "output.dense"},
    ),
    "distilbert": Family(
        "transformer.layer",
        ("input_ids", "attention_mask"),
        {"hidden_size": "attention.q_lin", "intermediate_size": "ffn.lin2"},
        {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        },
    ),
}
SHAPE = (
    "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip


def family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise UserError(f"model_type={model_type}: kd knows the model types {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def as_transformers(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by the names of the model's own config class."""
    own = family(architecture["model_type"]).fields
    return {own.get(key, key): value for key, value in architecture.items()}


def as_conf(fields: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The fields by the names that conf/ uses for every family."""
    own = FAMILIES[model_type].fields if model_type in FAMILIES else {}
    names = {theirs: ours for ours, theirs in own.items()}
    return {names.get(key, key): value for key, value in fields.items()}


def stored_architecture(directory: Path) -> dict[str, Any]:
    """config.json of a model directory. Raises UserError if it does not say what kind of model lies there."""
    path = directory / "config.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    if "model_type" not in stored:
        raise UserError(
            f'{path} does not say what kind of model this is: add "model_type": "bert" to it '
            f"(kd knows {', '.join(FAMILIES)}). Older checkpoints lack it."
        )
    return as_conf(stored, stored["model_type"])


def student_keep(cfg: DictConfig) -> Any:
    keep = cfg.student.keep
    return keep if isinstance(keep, str) else list(keep)


def named_architecture(cfg: DictConfig, role: str) -> dict[str, Any]:
    """What the file of ``role`` says; for student=layers, the teacher's with the layers that are kept."""
    if role == "student" and cfg.student.name == "layers":
        teacher = named_architecture(cfg, "teacher")
        kept = kept_layers(student_keep(cfg), cfg.student.num_layers, teacher["num_hidden_layers"])
        return teacher | {"num_hidden_layers": len(kept)}
    return container(cfg[role].architecture)


def architecture(cfg: DictConfig, role: str) -> dict[str, Any]:
    """What ``role``'s model is made as: its file, with student.overrides in it. All of kd asks here."""
    named = named_architecture(cfg, role)
    return named | (student_overrides(cfg) if role == "student" else {})


def student_overrides(cfg: DictConfig) -> dict[str, Any]:
    """student.overrides by the names that conf/ uses: dim becomes hidden_size."""
    whose = cfg.teacher if cfg.student.name == "layers" else cfg.student
    return as_conf(container(cfg.student.overrides), whose.architecture.model_type)


def container(node: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]
