"""What a model directory says of itself, in conf/'s words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd.architecture import FAMILIES, as_conf, family, read_config
from kd.errors import UserError


def shape(directory: Path) -> dict[str, Any]:
    """What conf/ would say of the model in a directory. Raises UserError for a family that kd does not know."""
    stored = read_config(directory)
    model_type = stored.get("model_type")
    if model_type not in FAMILIES:
        raise UserError(
            f"{directory / 'config.json'} says model_type={model_type}: kd knows {', '.join(FAMILIES)}. A checkpoint "
            "of another family cannot be used."
        )
    own = as_conf(stored, model_type)
    fields = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
              "max_position_embeddings", *family(model_type).shape, "layer_norm_eps", "type_vocab_size")  # fmt: skip
    absent = [key for key in fields[:6] if key not in own]
    if absent:
        raise UserError(f"{directory / 'config.json'} does not say {', '.join(absent)}.")
    return {"model_type": model_type} | {key: own[key] for key in fields if key in own}
