"""A converted model as files: ``model.safetensors`` and ``config.json``. int4 takes four bits a weight there."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.architecture import read_config
from kd.errors import UserError
from kd.grid import Grid
from kd.heads import pooling_of
from kd.quantization import Summary, embedding_grid, linears_of, of_kind
from kd.quantized_embedding import QuantizedEmbedding
from kd.schemes import Settings
from kd.torchao_linears import replace

FORMAT_VERSION = 2  # 1: tensors of torchao's with its own metadata, int4 as a weight a byte
SMALL = 4096  # numbers; equal tensors below that are stored as often as they occur


def save(model: Any, settings: Settings, summary: Summary, directory: Path) -> None:
    """Writes a converted model; ``load`` gives the same logits."""
    if settings.of.linears is None or is_stock(model, settings):
        save_stock(model, settings, summary, directory)
    else:
        save_packed(model, settings, summary, directory)


def is_stock(model: Any, settings: Settings) -> bool:
    """Whether transformers, with torchao, can read it: an architecture of its own, and nothing but linear layers."""
    embeddings = any(isinstance(module, QuantizedEmbedding) for module in model.modules())
    return settings.of.config is not None and not embeddings and pooling_of(model.config) is None


def in_stock_format(directory: Path) -> bool:
    """Whether transformers reads a saved quantized model, with torchao, by itself."""
    return "kd_quantization" in read_config(directory)


def save_stock(model: Any, settings: Settings, summary: Summary, directory: Path) -> None:
    """As ``save_pretrained`` of transformers does it; config.json says ``kd_quantization`` besides."""
    from transformers import TorchAoConfig
    from transformers.quantizers import AutoHfQuantizer

    model = copy.deepcopy(model)
    if settings.of.config is not None:
        config = TorchAoConfig(settings.of.config(), modules_to_not_convert=list(summary.skipped))
        model.config.quantization_config = config
        model.hf_quantizer = AutoHfQuantizer.from_config(config, pre_quantized=True)
        model.is_quantized = True
    model.config.kd_quantization = said(settings, summary)
    model.save_pretrained(directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(in_order(weights.read_bytes()))


def said(settings: Settings, summary: Summary) -> dict[str, Any]:
    """What config.json says of the quantization."""
    return {
        "format_version": FORMAT_VERSION,
        "bits": settings.of.bits,
        **asdict(settings),
        "layers": summary.quantized,
    }


def in_order(data: bytes) -> bytes:
    """The same safetensors file with its header sorted: equal models are to be equal files.

    The library writes torchao's metadata in an order that changes from process to process.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # as the format wants it, so that tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


def save_packed(model: Any, settings: Settings, summary: Summary, directory: Path) -> None:
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
            "model_type": model.config.model_type,
            **said(settings, summary),
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
        parts = module.packed() if quantized else linears_of(settings).packed(module)
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return tensors


def second_names(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Of tensors with several names, every name but the first, and the first: a file has each tensor once."""
    first: dict[Any, str] = {}
    names = {name: first.setdefault(content(tensor), name) for name, tensor in tensors.items() if tensor.numel()}
    return {name: kept for name, kept in names.items() if name != kept}


def content(tensor: Tensor) -> Any:
    """Equal for tensors that need to be stored once: a masked LM's decoder was quantized apart from its embeddings."""
    if tensor.numel() < SMALL:
        return tensor.data_ptr()
    return (
        tensor.dtype,
        tensor.shape,
        hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).digest(),
    )


def settings_of(directory: Path) -> dict[str, Any] | None:
    """What config.json says of the quantization; None for a float model. Raises UserError for a newer format."""
    config = read_config(directory)
    own = config.get("quantization_config", {})
    about: dict[str, Any] | None = config.get("kd_quantization") or (own if own.get("quant_method") == "kd" else None)
    if about and about["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{directory} is of format {about['format_version']}, written by a newer kd; this one reads formats "
            f"up to {FORMAT_VERSION}. Update kd."
        )
    return about


def load(directory: Path, auto_class: Any) -> Any:
    """A saved quantized model, on the CPU in eval mode. Raises UserError for a newer format, or files that differ."""
    about = settings_of(directory)
    assert about is not None, f"{directory} is a float model"
    stored = read_config(directory)
    if "kd_quantization" in stored:
        dtype = torch.float32 if "quantization_config" in stored else torch.bfloat16
        model = auto_class.from_pretrained(directory, dtype=dtype, local_files_only=True)
        return model.eval().requires_grad_(False)
    del stored["quantization_config"]
    return load_packed(directory, auto_class, stored, about)


def load_packed(directory: Path, auto_class: Any, stored: dict[str, Any], about: dict[str, Any]) -> Any:
    from safetensors import safe_open
    from transformers import AutoConfig

    config = AutoConfig.for_model(about["model_type"], **{k: v for k, v in stored.items() if k != "model_type"})
    model = auto_class.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    with safe_open(directory / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    first = about["format_version"] == 1
    if first:
        tensors = from_format_1(model, tensors, metadata, about)
    tensors |= {name: tensors[kept] for name, kept in about.get("tied", {}).items()}
    if not first:
        tensors = unpack(model, tensors, about, directory)
    missing, unread = model.load_state_dict(tensors, strict=False, assign=True)
    layers = tuple(f"{name}." for name in about["layers"])
    missing = [name for name in missing if first or not name.startswith(layers)]
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
                made = linears_of(settings).unpacked(layer, parts, settings)
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
