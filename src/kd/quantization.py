"""What quantization does to a model: prepare (fake quantization), calibrate, convert.

A scheme quantizes linear layers (``kd.schemes``) and embeddings (``QuantizedEmbedding``). What stays float and why is
in the Summary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd.errors import UserError, nearest
from kd.grid import Grid
from kd.quantized_embedding import FakeQuantizedEmbedding, QuantizedEmbedding
from kd.schemes import SCHEMES, CalibratedLinears, Linears, Settings
from kd.torchao_linears import replace

Batches = Iterable[Mapping[str, Tensor]]  # inputs of the student, as forward takes them
Converted = tuple[Any, "Summary"]


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
    """The names of the linear layers and embeddings to quantize.

    Raises UserError if a group does not divide one, and for a pattern of keep_float that fits none. A language model's
    decoder is a second use of the embeddings and goes with them, or nothing would be saved.
    """
    summary = Summary()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)}
    check_patterns(settings, list(layers))
    if settings.of.linears is None:
        return Summary(list(layers))
    inside, decoder = f"{model.base_model_prefix}.", model.get_output_embeddings()
    for name, module in layers.items():
        width = module.weight.shape[-1]
        if any(fnmatchcase(name, pattern) for pattern in settings.keep_float):
            summary.skipped[name] = "quant.keep_float"
        elif (isinstance(module, nn.Embedding) or module is decoder) and not settings.embeddings:
            summary.skipped[name] = "quant.embeddings=false"
        elif not name.startswith(inside) and module is not decoder and not settings.head:
            summary.skipped[name] = "the head stays float, quant.head=true changes that"
        elif settings.group_size and width % settings.group_size:
            raise UserError(
                f"quant.group_size={settings.group_size} does not divide the width {width} of {name}: "
                "set quant.group_size to a divisor."
            )
        elif isinstance(module, nn.Linear) and module.weight.numel() % settings.of.block:
            raise UserError(
                f"quant={settings.name} cuts weights into blocks of {settings.of.block}, and the {width} x "
                f"{module.weight.shape[0]} weights of {name} are no whole number of them: keep that layer float, "
                f"quant.keep_float=[{name}], or take quant=int4."
            )
        else:
            summary.quantized.append(name)
    if not summary.quantized:
        raise UserError(f"quant={settings.name} found no layer to quantize: {summary}.")
    return summary


def check_patterns(settings: Settings, names: list[str]) -> None:
    for pattern in settings.keep_float:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"quant.keep_float: {pattern} names no linear layer and no embedding.{nearest(pattern, names)} "
                f"Names are like {names[0]} and {names[-1]}; * stands for any letters: *.0.* or *embeddings*."
            )


def of_kind(model: Any, names: Iterable[str], kind: type[nn.Module]) -> list[str]:
    return [name for name in names if isinstance(model.get_submodule(name), kind)]


def linears_of(settings: Settings) -> Linears:
    linears = settings.of.linears
    assert linears is not None, f"{settings.scheme} has no layers of its own"
    return linears


def embedding_grid(settings: Settings) -> Grid:
    return Grid.of(settings.of.embedding_bits or settings.of.bits, settings)


def prepare(model: Any, settings: Settings) -> Summary:
    """Puts fake quantization into ``model``; its parameters stay the same objects under the same names."""
    summary = layers_to_quantize(model, settings)
    for name in of_kind(model, summary.quantized, nn.Embedding):
        replace(model, name, FakeQuantizedEmbedding.of(model.get_submodule(name), embedding_grid(settings)))
    linears_of(settings).prepare(model, of_kind(model, summary.quantized, nn.Linear), settings)
    return summary


def switch(model: Any, on: bool) -> None:
    """Turns the fake quantization of a prepared model on or off; off, it is the float model."""
    for module in model.modules():
        if hasattr(module, "enabled"):  # every fake quantizer has it, torchao's too, and no layer of a model
            module.enabled = on


@torch.no_grad()
def calibrate(model: Any, settings: Settings, batches: Batches) -> None:
    """Shows a prepared model of a calibrated scheme its inputs, from which it reads the ranges of activations."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    with cast(CalibratedLinears, linears_of(settings)).calibrating(model):
        for batch in batches:
            model(**{name: tensor.to(device) for name, tensor in batch.items()})
    model.train(was_training)


def without_fake_quantization(model: Any) -> Any:
    """A plain float copy of a prepared model: its trained weights, unrounded."""
    model = copy.deepcopy(model)
    for scheme in SCHEMES.values():
        if scheme.linears is not None:
            scheme.linears.restore(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, FakeQuantizedEmbedding):
            replace(model, name, module.plain())
    return model


def convert(model: Any, settings: Settings, batches: Batches | None = None) -> Converted:
    """A quantized copy of a float or prepared model, in eval mode on the CPU, and what was done.

    A calibrated scheme reads ``batches``, unless the model is prepared: then ranges are those it was trained with.
    """
    scheme = settings.of
    model = copy.deepcopy(model) if scheme.calibrated else without_fake_quantization(model)
    model = model.to("cpu").eval().requires_grad_(False)
    summary = layers_to_quantize(model, settings)
    if scheme.linears is None:
        return model.to(torch.bfloat16), summary
    linears = of_kind(model, summary.quantized, nn.Linear)
    if scheme.calibrated and all(type(model.get_submodule(name)) is nn.Linear for name in linears):
        assert batches is not None, f"{settings.scheme} needs batches for calibration"
        prepare(model, settings)
        calibrate(model, settings, batches)
    scheme.linears.convert(model, linears, settings)
    for name in of_kind(model, summary.quantized, nn.Embedding):
        replace(model, name, QuantizedEmbedding.of(model.get_submodule(name), embedding_grid(settings)))
    still_float = [name for name in summary.quantized if not is_quantized(model.get_submodule(name), settings)]
    assert not still_float, f"not converted: {still_float}"
    return model.eval(), summary


def is_quantized(module: nn.Module, settings: Settings) -> bool:
    return isinstance(module, QuantizedEmbedding) or linears_of(settings).is_quantized(module)
