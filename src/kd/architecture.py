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
    linear: dict[str, str]  # a layer of the base model that is so wide at its input, for messages
    attended: tuple[str, ...]  # in a layer, what gives query, key and value: three modules, or one that gives them all
    rotated: str | None = None  # in a layer, the module that is given the angles by which query and key are rotated
    fields: dict[str, str] = field(default_factory=dict)  # its own names of config fields, by BERT's
    shape: tuple[str, ...] = ()  # config fields besides SHAPE that its weights depend on
    positions_after_padding: bool = False  # the first token's position is the padding's id + 1
    per_layer: tuple[str, ...] = ()  # config fields that are lists, one entry a layer
    idle: tuple[str, ...] = ()  # config fields that a classifier does not read
    bare_first: tuple[str, str] | None = None  # the norm its first layer does without, and the linear layer behind it
    pools: tuple[str, ...] = ("cls",)  # what transformers' own classifier can pool
    pooling_field: str | None = None  # the config field that says which of these, where there are several
    head_fields: tuple[str, ...] = ()  # config fields that nothing but this classifier reads
    dropout: tuple[str, ...] = ("classifier_dropout", "hidden_dropout_prob")  # of the classifier: the first that is set


POOLINGS = ("cls", "mean", "max", "attention")
BERT_LINEAR = {
    "hidden_size": "encoder.layer.0.attention.self.query",
    "intermediate_size": "encoder.layer.0.output.dense",
}
BERT_ATTENDED = ("attention.self.query", "attention.self.key", "attention.self.value")
FAMILIES = {
    "bert": Family("encoder.layer", ("input_ids", "token_type_ids", "attention_mask"), BERT_LINEAR, BERT_ATTENDED),
    "roberta": Family(
        "encoder.layer",
        ("input_ids", "attention_mask"),
        BERT_LINEAR,
        BERT_ATTENDED,
        shape=("type_vocab_size",),
        positions_after_padding=True,
    ),
    "electra": Family(
        "encoder.layer",
        ("input_ids", "token_type_ids", "attention_mask"),
        BERT_LINEAR | {"embedding_size": "embeddings.word_embeddings"},
        BERT_ATTENDED,
        shape=("embedding_size",),
        idle=("summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout"),
    ),
    "modernbert": Family(
        "layers",
        ("input_ids", "attention_mask"),
        {"hidden_size": "layers.0.attn.Wqkv", "intermediate_size": "layers.0.mlp.Wo"},
        ("attn.Wqkv",),
        rotated="attn",
        per_layer=("layer_types",),
        idle=("decoder_bias", "sparse_prediction", "sparse_pred_ignore_index"),
        bare_first=("attn_norm", "attn.Wqkv"),
        pools=("cls", "mean"),
        pooling_field="classifier_pooling",
        head_fields=("classifier_pooling", "classifier_bias", "classifier_activation"),
        dropout=("classifier_dropout",),
    ),
    "distilbert": Family(
        "transformer.layer",
        ("input_ids", "attention_mask"),
        {"hidden_size": "transformer.layer.0.attention.q_lin", "intermediate_size": "transformer.layer.0.ffn.lin2"},
        ("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        fields={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
        },
        dropout=("seq_classif_dropout",),
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


def shape_fields(model_type: str) -> tuple[str, ...]:
    """The config fields that the weights of such a model depend on, by BERT's names."""
    return SHAPE + family(model_type).shape


def positions(config: Mapping[str, Any]) -> int:
    """How many tokens a model takes. transformers leaves a RoBERTa's padding id out of its file where it is 1."""
    first = (config.get("pad_token_id", 1) or 0) + 1 if family(config["model_type"]).positions_after_padding else 0
    return int(config["max_position_embeddings"]) - first


def as_transformers(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by the names of the model's own config class."""
    own = family(architecture["model_type"]).fields
    return {own.get(key, key): value for key, value in architecture.items()}


def as_conf(fields: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The fields by the names that conf/ uses for every family."""
    own = FAMILIES[model_type].fields if model_type in FAMILIES else {}
    names = {theirs: ours for ours, theirs in own.items()}
    return {names.get(key, key): value for key, value in fields.items()}


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a model directory as it is. Raises UserError if it cannot be parsed."""
    path = directory / "config.json"
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}): copy the whole directory again.") from error
    return stored


def stored_architecture(directory: Path) -> dict[str, Any]:
    """The same, checked. Raises UserError if it does not say what kind of model lies there."""
    stored = read_config(directory)
    if "model_type" not in stored:
        raise UserError(
            f'{directory / "config.json"} does not say what kind of model this is: add "model_type": "bert" to it '
            f"(kd knows {', '.join(FAMILIES)}). Older checkpoints lack it."
        )
    return as_conf(stored, stored["model_type"])


def student_keep(cfg: DictConfig) -> Any:
    keep = cfg.student.get("keep") or "uniform"
    return keep if isinstance(keep, str) else list(keep)


def from_teacher(cfg: DictConfig) -> bool:
    """Whether the student's weights are the teacher's: student=layers, or any other with student.weights=teacher."""
    return str(cfg.student.weights) == "teacher"


def named_architecture(cfg: DictConfig, role: str) -> dict[str, Any]:
    """What the file of ``role`` says; for student=layers, the teacher's with the layers that are kept.

    Another student of the teacher's weights has its vocabulary, and what else of its shape is no size to choose.
    """
    if role == "student" and cfg.student.name == "layers":
        teacher = named_architecture(cfg, "teacher")
        kept = kept_layers(student_keep(cfg), cfg.student.num_layers, teacher["num_hidden_layers"])
        return teacher | {"num_hidden_layers": len(kept)}
    named = container(cfg[role].architecture)
    if role == "student" and from_teacher(cfg):
        teacher = named_architecture(cfg, "teacher")
        own = family(named["model_type"]).shape
        named |= {key: teacher[key] for key in ("vocab_size", *own) if key in teacher}
    return named


def architecture(cfg: DictConfig, role: str) -> dict[str, Any]:
    """What ``role``'s model is made as: its file, with student.overrides and the pooling in it. All of kd asks here."""
    return without_overrides(cfg, role) | (student_overrides(cfg) if role == "student" else {})


def without_overrides(cfg: DictConfig, role: str) -> dict[str, Any]:
    """What the file of ``role`` says, and ``pooling`` where one is set."""
    how = pooling(cfg, role)
    return named_architecture(cfg, role) | ({"pooling": how} if how else {})


def pooling(cfg: DictConfig, role: str) -> str | None:
    """How the head of ``role``'s model pools, one of POOLINGS; None: as transformers' head of the family does.

    A student of the teacher's weights has its head.
    """
    found: str | None = cfg["teacher" if role == "student" and from_teacher(cfg) else role].get("pooling")
    return found


def student_overrides(cfg: DictConfig) -> dict[str, Any]:
    """student.overrides by the names that conf/ uses: dim becomes hidden_size."""
    whose = cfg.teacher if cfg.student.name == "layers" else cfg.student
    return as_conf(container(cfg.student.overrides), whose.architecture.model_type)


def container(node: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return found  # type: ignore[return-value]
