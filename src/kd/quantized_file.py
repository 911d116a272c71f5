"""A converted model as files: ``model.safetensors`` and ``config.json``. int4 takes four bits a weight there."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.grid import Grid
from kd.quantization import Summary, embedding_grid, of_kind
from kd.quantized_embedding import QuantizedEmbedding
from kd.schemes import Settings
from kd.torchao_linears import replace

FORMAT_VERSION = 2  # 1: tensors of torchao's with its own metadata, int4 as a weight a byte


def save(model: Any, settings: Settings, summary: Summary, directory: Path) -> None:
    """Writes a converted model; ``load`` gives the same logits."""
    from safetensors.torch import save_file

    tensors = packed(model, settings, summary)
    tied = second_names(tensors)
    kept = {name: tensor.contiguous() for name, tensor in tensors.items() if name not in tied}
    save_file(kept, directory / "model.safetensors", {"format": "pt"})
    config = model.config.to_diff_dict() | {
        "architectures": [type(model).__name__],
        "model_type": "kd-quantized",  # stock transformers refuses it by name; else it would load half a model
        "quantization_config": {
            "quant_method": "kd",
            "format_version": FORMAT_VERSION,
            "model_type": model.config.model_type,
            "bits": settings.of.bits,
            **asdict(settings),
            "layers": summary.quantized,
            **({"tied": tied} if tied else {}),
        },
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def packed(model: Any, settings: Settings, summary: Summary) -> dict[str, Tensor]:
    """Every tensor of the file by its name; those of quantized layers as their scheme packs them."""
    layers = tuple(f"{name}." for name in summary.quantized)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(layers)}
    for name in summary.quantized:
        module = model.get_submodule(name)
        quantized = isinstance(module, QuantizedEmbedding)
        parts = module.packed() if quantized else settings.of.linears.packed(module)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return tensors


def second_names(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Of tensors with several names, every name but the first, and the first: a file has each tensor once."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in tensors.items() if tensor.numel()}
    return {name: kept for name, kept in names.items() if name != kept}


def load(directory: Path, auto_class: Any) -> Any:
    """A saved quantized model, on the CPU in eval mode. Raises UserError for a newer format, or files that differ."""
    from safetensors import safe_open
    from transformers import AutoConfig

    stored = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    about = stored.pop("quantization_config")
    if about["format_version"] > FORMAT_VERSION:
        raise UserError(f"{directory} was written by a newer kd (format {about['format_version']}): update kd.")
    config = AutoConfig.for_model(about["model_type"], **{k: v for k, v in stored.items() if k != "model_type"})
    model = auto_class.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    with safe_open(directory / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if about["format_version"] == 1:
        tensors = from_format_1(model, tensors, metadata, about)
    tensors |= {name: tensors[first] for name, first in about.get("tied", {}).items()}
    if about["format_version"] > 1:
        tensors = unpack(model, tensors, about, directory)
    missing, unread = model.load_state_dict(tensors, strict=False, assign=True)
    layers = tuple(f"{name}." for name in about["layers"])
    missing = [name for name in missing if about["format_version"] == 1 or not name.startswith(layers)]
    if missing or unread:
        raise UserError(
            f"{directory / 'model.safetensors'} and config.json beside it are not of one model: "
            f"missing {missing[:3]}, unknown {unread[:3]}. Copy the whole directory again."
        )
    return model.requires_grad_(False)


def unpack(model: Any, tensors: dict[str, Tensor], about: dict[str, Any], directory: Path) -> dict[str, Tensor]:
    """Puts the quantized layers into ``model``; returns the tensors of the others."""
    settings = Settings(**{key.name: about[key.name] for key in fields(Settings)})
    embeddings = set(of_kind(model, about["layers"], nn.Embedding))
    rest = dict(tensors)
    for name in about["layers"]:
        parts = {key.removeprefix(f"{name}."): rest.pop(key) for key in tensors if key.startswith(f"{name}.")}
        layer = model.get_submodule(name)
        try:
            if name in embeddings:
                made: nn.Module = QuantizedEmbedding.unpacked(layer, parts, embedding_grid(settings))
            else:
                made = settings.of.linears.unpacked(layer, parts, settings)
        except UserError as error:
            raise UserError(
                f"{directory / 'model.safetensors'}: {name} cannot be read: {error}. Copy the whole directory again."
            ) from error
        replace(model, name, made.eval())
    return rest


def from_format_1(
    model: Any, tensors: dict[str, Tensor], metadata: dict[str, str], about: dict[str, Any]
) -> dict[str, Tensor]:
    """The state of a model of the first format; its embeddings are put into ``model``."""
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

    state, left_over = unflatten_tensor_state_dict(tensors, metadata)
    assert not left_over, f"unread tensors: {sorted(left_over)}"
    for name, (_, _, group) in about["embedding_shapes"].items():
        parts = (state.pop(f"{name}.weight"), state.pop(f"{name}.scale"), None)
        replace(model, name, QuantizedEmbedding(parts, Grid(about["bits"], group)))
        state |= {f"{name}.weight": parts[0], f"{name}.scale": parts[1]}
    return dict(state)
