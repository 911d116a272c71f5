"""student.overrides: any field of the student's transformers config, refused where it would do nothing or break.

What each field means is transformers' business, so it is asked; only a run that has overrides pays for that import.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from omegaconf import DictConfig

from kd.architecture import (
    FAMILIES,
    architecture,
    as_conf,
    container,
    from_teacher,
    named_architecture,
    pooling,
    shape_fields,
    student_overrides,
    without_overrides,
)
from kd.contradictions import VECTORS
from kd.errors import UserError, nearest

STARTING = ("initializer_range", "initializer_cutoff_factor", "sinusoidal_pos_embds")  # they say how weights start
SPECIAL = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep"))  # the tokenizer's
SLICED = (  # sizes that a student of the teacher's weights may have smaller than the teacher's
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
)  # fmt: skip
HARMLESS = ("chunk_size_feed_forward",)  # of the fields that all configs have; the others kd or transformers sets


def config_fields(model_type: str) -> tuple[set[str], set[str]]:
    """The fields that are this model type's own, by either name, and those that are not the user's to set."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    common = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(CONFIG_MAPPING[model_type])} - common - set(SPECIAL) | set(HARMLESS)
    return own | set(FAMILIES[model_type].fields), common - set(HARMLESS) | {"model_type", "num_labels", *SPECIAL}


def check_fields(cfg: DictConfig) -> None:
    """Every override is a field of the config, and one that has an effect with the student's weights."""
    if not cfg.student.overrides:
        return
    named = named_architecture(cfg, "student")
    model_type = named["model_type"]
    own, fixed = config_fields(model_type)
    for key in map(str, cfg.student.overrides):
        if key in fixed:
            raise UserError(f"student.overrides.{key}: kd sets {key} itself, from data, tokenizer and student's name.")
        if key in FAMILIES[model_type].idle:
            raise UserError(f"student.overrides.{key}: {model_type} does not use it to classify texts: leave it out.")
        if key in idle_in_head(cfg, model_type):
            raise UserError(
                f"student.overrides.{key}: it belongs to the head that transformers gives {model_type}, and this "
                "student's pools in another way. Leave it out; student.pooling says how."
            )
        if key not in own:
            others = [other for other in FAMILIES if key in config_fields(other)[0]]
            hint = f" The config of {', '.join(others)} has it." if others else nearest(key, sorted(own))
            raise UserError(
                f"student.overrides.{key}: the config of {model_type} has no such field.{hint} "
                f"Known: {', '.join(sorted(own))}."
            )
    check_shape_fields(cfg, named)


def idle_in_head(cfg: DictConfig, model_type: str) -> tuple[str, ...]:
    """The config fields that the student's head does not read, or that student.pooling sets."""
    own, how = FAMILIES[model_type], pooling(cfg, "student")
    if cfg.data.task == VECTORS:  # no classifier, so nothing in it to drop out
        return own.head_fields + tuple(name for name in own.dropout if "classif" in name)
    if how is None:
        return ()
    return own.head_fields if how not in own.pools else (own.pooling_field or "",)


def check_shape_fields(cfg: DictConfig, named: dict[str, Any]) -> None:
    """Sizes are whole numbers; a student that has weights keeps the sizes of these."""
    sizes, sliced = shape_fields(named["model_type"]), from_teacher(cfg) and cfg.student.name != "layers"
    for key, value in container(cfg.student.overrides).items():
        conf_key = next(iter(as_conf({key: value}, named["model_type"])))
        if conf_key in sizes and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UserError(f"student.overrides.{key}={value}: must be a whole number above 0.")
        if cfg.student.weights == "random":
            continue
        if sliced and conf_key in sizes and conf_key not in SLICED:
            raise UserError(
                f"student.overrides.{key}={value}: with student.weights=teacher it is the teacher's. Leave it out"
                f"{'; student.vocabulary is for other tokens.' if key == 'vocab_size' else '.'}"
            )
        if conf_key in sizes and value != named[conf_key] and not sliced:
            raise UserError(f"student.overrides.{key}={value}: {fits_only(cfg, f'{conf_key}={named[conf_key]}')}")
        if key in STARTING:
            raise UserError(
                f"student.overrides.{key}: it says how random weights start, and student={cfg.student.name} has "
                "weights. Leave it out, or name a student and add student.weights=random."
            )


def fits_only(cfg: DictConfig, what: str) -> str:
    if cfg.student.name == "layers":
        return (
            f"student=layers has the teacher's weights, which fit {what} only. Leave it out (the number of layers is "
            "student.num_layers), or name another student and add student.weights=random."
        )
    return (
        f"the weights of student={cfg.student.name} fit {what} only. Leave it out, or add student.weights=random to "
        "start without them."
    )


def check_model(cfg: DictConfig, task: Any) -> None:
    """The overrides make a model, one that the student's weights fit. Takes no memory: its tensors have no content."""
    from kd.models import tensor_shapes

    overrides = container(cfg.student.overrides)
    if not overrides:
        return
    shown = ", ".join(f"student.overrides.{key}={value}" for key, value in overrides.items())
    try:
        made = tensor_shapes(architecture(cfg, "student"), task)
    except Exception as error:  # transformers and torch raise many kinds; each means that the values do not do
        raise UserError(f"{shown}: no model can be made so: {' '.join(str(error).split())}.") from error
    if cfg.student.weights == "random":
        return
    sizes = shape_fields(architecture(cfg, "student")["model_type"])
    resized = {key: value for key, value in student_overrides(cfg).items() if key in sizes}
    there = tensor_shapes(without_overrides(cfg, "student") | resized, task)
    for name in sorted(made.keys() | there.keys()):
        if made.get(name) != there.get(name):
            raise UserError(f"{shown}: {fits_only(cfg, f'{name} of shape {there.get(name, ())}')}")
