"""What quantization does: schemes, prepare (fake quantization), convert, save, load. Only this file imports torchao.

A scheme quantizes linear layers with torchao and embeddings with ``QuantizedEmbedding``. What stays float and why is
in the Summary.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.quantized_embedding import FakeQuantizedEmbedding, QuantizedEmbedding

logging.getLogger("torchao").setLevel(logging.ERROR)  # it announces kernels that it can do without
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Scheme:
    """Weights of ``bits`` bits; ``base`` makes the torchao config of the linear layers from the group size."""

    bits: int
    base: Callable[[int | None], Any]
    grouped: bool  # takes group_size; else one scale a row
    trainable: bool  # converted logits equal the fake-quantized ones (measured: quantization tests)


def int8_dynamic(_group: int | None) -> Any:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from torchao.quantization.quant_primitives import MappingType

    return Int8DynamicActivationInt8WeightConfig(act_mapping_type=MappingType.ASYMMETRIC)


def int8_dynamic_trained(_group: int | None) -> Any:
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerAxis

    return Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0))


def int4_weight_only(group: int | None) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup

    dtype = torch.int4  # type: ignore[attr-defined]
    return IntxWeightOnlyConfig(weight_dtype=dtype, granularity=PerGroup(group))


SCHEMES = {
    "int8_dynamic": Scheme(8, int8_dynamic, grouped=False, trainable=False),
    "int8_dynamic_trained": Scheme(8, int8_dynamic_trained, grouped=False, trainable=True),
    "int4_weight_only": Scheme(4, int4_weight_only, grouped=True, trainable=True),
}


@dataclass(frozen=True)
class Settings:
    """A file of conf/quant/. Raises UserError for a scheme that does not exist or cannot be trained."""

    name: str
    scheme: str
    qat: bool
    embeddings: bool = True
    head: bool = False
    group_size: int | None = None

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES:
            raise UserError(f"quant.scheme={self.scheme}: known are {', '.join(SCHEMES)}.")
        if self.qat and not SCHEMES[self.scheme].trainable:
            good = [name for name, scheme in SCHEMES.items() if scheme.trainable]
            raise UserError(
                f"quant.scheme={self.scheme} cannot be trained: what it converts to differs from what was trained. "
                f"With quant.qat=true take {' or '.join(good)}."
            )

        if SCHEMES[self.scheme].grouped != (self.group_size is not None):
            wants = "needs a quant.group_size" if SCHEMES[self.scheme].grouped else "takes no quant.group_size"
            raise UserError(f"quant.scheme={self.scheme} {wants}.")

    @property
    def base(self) -> Any:
        return SCHEMES[self.scheme].base(self.group_size)


@dataclass
class Summary:
    """What was quantized: names, and for each skipped layer the reason."""

    quantized: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for name, why in self.skipped.items():
            reasons.setdefault(why, []).append(name)
        why = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        total = len(self.quantized) + len(self.skipped)
        return f"quantized {len(self.quantized)} of {total} layers, skipped {len(self.skipped)}" + (
            f" ({why})" if why else ""
        )


def layers_to_quantize(model: Any, settings: Settings) -> Summary:
    """The names of the linear layers and embeddings to quantize. Raises UserError if a group does not divide one.

    A language model's decoder is a second use of the embeddings and goes with them, or nothing would be saved.
    """
    summary = Summary()
    inside, decoder = f"{model.base_model_prefix}.", model.get_output_embeddings()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Embedding):
            continue
        width = module.weight.shape[-1]
        if (isinstance(module, nn.Embedding) or module is decoder) and not settings.embeddings:
            summary.skipped[name] = "quant.embeddings=false"
        elif not name.startswith(inside) and module is not decoder and not settings.head:
            summary.skipped[name] = "the head stays float, quant.head=true changes that"
        elif settings.group_size and width % settings.group_size:
            raise UserError(
                f"quant.group_size={settings.group_size} does not divide the width {width} of {name}: "
                "set quant.group_size to a divisor."
            )
        else:
            summary.quantized.append(name)
    if not summary.quantized:
        raise UserError(f"quant={settings.name} found no layer to quantize: {summary}.")
    return summary


def embedding_group(module: nn.Embedding, settings: Settings) -> int:
    return settings.group_size or module.embedding_dim


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def prepare(model: Any, settings: Settings) -> Summary:
    """Puts fake quantization into ``model``; its parameters stay the same objects under the same names."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    summary = layers_to_quantize(model, settings)
    names, bits = set(summary.quantized), SCHEMES[settings.scheme].bits
    for name, module in list(model.named_modules()):
        if name in names and isinstance(module, nn.Embedding):
            replace(model, name, FakeQuantizedEmbedding.of(module, bits, embedding_group(module, settings)))
    quantize_(
        model,
        QATConfig(settings.base, step="prepare"),
        filter_fn=lambda module, name: isinstance(module, nn.Linear) and name in names,
    )
    return summary


def without_fake_quantization(model: Any) -> Any:
    """A plain float copy of a prepared model: its trained weights, unrounded."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import QATConfig

    model = copy.deepcopy(model)
    quantize_(model, QATConfig(None, step="convert"), filter_fn=lambda module, _name: is_fake_linear(module))
    for name, module in list(model.named_modules()):
        if isinstance(module, FakeQuantizedEmbedding):
            replace(model, name, module.plain())
    return model


def is_fake_linear(module: nn.Module) -> bool:
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    return isinstance(module, FakeQuantizedLinear)


def convert(model: Any, settings: Settings) -> tuple[Any, Summary]:
    """A quantized copy of a float or prepared model, in eval mode on the CPU, and what was done."""
    from torchao.quantization import quantize_

    model = without_fake_quantization(model).to("cpu").eval().requires_grad_(False)
    summary = layers_to_quantize(model, settings)
    names, bits = set(summary.quantized), SCHEMES[settings.scheme].bits
    quantize_(model, settings.base, filter_fn=lambda module, name: isinstance(module, nn.Linear) and name in names)
    for name, module in list(model.named_modules()):
        if name in names and isinstance(module, nn.Embedding):
            replace(model, name, QuantizedEmbedding.of(module, bits, embedding_group(module, settings)))
    still_float = [n for n in names if not is_quantized(model.get_submodule(n))]
    assert not still_float, f"not converted: {still_float}"
    return model, summary


def is_quantized(module: nn.Module) -> bool:
    return isinstance(module, QuantizedEmbedding) or type(getattr(module, "weight", None)) not in (
        Tensor,
        nn.Parameter,
    )


def save(model: Any, settings: Settings, summary: Summary, directory: Path) -> None:
    """``model.safetensors`` and ``config.json`` of a converted model; ``load`` gives the same logits."""
    from safetensors.torch import save as serialize
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    state = model.state_dict()
    tied = second_names(state)
    tensors, metadata = flatten_tensor_state_dict({k: v for k, v in state.items() if k not in tied})
    data = serialize({k: v.contiguous() for k, v in tensors.items()}, metadata)
    (directory / "model.safetensors").write_bytes(in_order(data))
    embeddings = {
        name: [*module.weight.shape, module.weight.shape[1] // module.scale.shape[1]]
        for name, module in model.named_modules()
        if isinstance(module, QuantizedEmbedding)
    }
    config = model.config.to_diff_dict() | {
        "architectures": [type(model).__name__],
        "model_type": "kd-quantized",  # stock transformers refuses it by name; else it would load half a model
        "quantization_config": {
            "quant_method": "kd",
            "format_version": FORMAT_VERSION,
            "model_type": model.config.model_type,
            "bits": SCHEMES[settings.scheme].bits,
            **asdict(settings),
            "layers": summary.quantized,
            "embedding_shapes": embeddings,
            **({"tied": tied} if tied else {}),
        },
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def second_names(state: dict[str, Tensor]) -> dict[str, str]:
    """Of tensors with several names, every name but the first, and the first: a file has each tensor once."""
    first: dict[int, str] = {}
    plain = {name: tensor for name, tensor in state.items() if type(tensor) in (Tensor, nn.Parameter)}
    names = {name: first.setdefault(tensor.data_ptr(), name) for name, tensor in plain.items() if tensor.numel()}
    return {name: kept for name, kept in names.items() if name != kept}


def in_order(data: bytes) -> bytes:
    """The same safetensors file with its header sorted: equal models are to be equal files.

    The library writes the metadata in an order that changes from process to process.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # as the format wants it, so that tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


def load(directory: Path, auto_class: Any) -> Any:
    """A saved quantized model, on the CPU in eval mode. Raises UserError for a newer format."""
    from safetensors import safe_open
    from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    from transformers import AutoConfig

    stored = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    about = stored.pop("quantization_config")
    if about["format_version"] > FORMAT_VERSION:
        raise UserError(f"{directory} was written by a newer kd (format {about['format_version']}): update kd.")
    config = AutoConfig.for_model(about["model_type"], **{k: v for k, v in stored.items() if k != "model_type"})
    model = auto_class.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, shape in about["embedding_shapes"].items():
        replace(model, name, QuantizedEmbedding(*shape))
    with safe_open(directory / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state, left_over = unflatten_tensor_state_dict(tensors, file.metadata())
    assert not left_over, f"unread tensors: {sorted(left_over)}"
    state |= {name: state[first] for name, first in about.get("tied", {}).items()}
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)
