"""The schemes of quantization, and what a file of conf/quant/ says."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kd.errors import UserError, nearest
from kd.torchao_linears import GroupedLinears, TorchaoLinears, int8_dynamic, int8_dynamic_trained, int8_fake


class Linears(Protocol):
    """What a scheme does to the linear layers of a model, in place. Embeddings are the same for every scheme."""

    def prepare(self, model: Any, names: Iterable[str], settings: Any) -> None:
        """Makes them fake-quantized (of a subclass of nn.Linear): the same parameters under the same names."""

    def restore(self, model: Any) -> None:
        """Makes every layer that ``prepare`` made an nn.Linear again, its weights unrounded."""

    def convert(self, model: Any, names: Iterable[str], settings: Any) -> None:
        """Makes them quantized: of nn.Linear; of a calibrated scheme, of what ``prepare`` made."""

    def is_quantized(self, module: nn.Module) -> bool: ...

    def packed(self, module: nn.Module) -> dict[str, Tensor]:
        """What the file keeps of a quantized layer, bias included: plain tensors by a name within the layer."""

    def unpacked(self, linear: nn.Linear, tensors: dict[str, Tensor], settings: Any) -> nn.Module:
        """The quantized layer of which ``packed`` gave these tensors; ``linear`` has its shape. UserError: no match."""


class CalibratedLinears(Linears, Protocol):
    def calibrating(self, model: Any) -> AbstractContextManager[Any]:
        """While it is open, every forward pass of prepared layers tells them the ranges of their inputs."""


@dataclass(frozen=True)
class Scheme:
    """Weights of ``bits`` bits, and what else its files of conf/quant/ may say."""

    bits: int
    linears: Linears
    grouped: bool = False  # takes group_size and symmetric; else one scale a row
    trainable: bool = False  # converted logits equal the fake-quantized ones (measured: quantization tests)
    calibrated: bool = False  # reads ranges of activations from calibration_rows
    devices: tuple[str, ...] = ("cpu", "cuda")  # where it runs


SCHEMES = {
    "int8_dynamic": Scheme(8, TorchaoLinears(int8_dynamic)),
    "int8_dynamic_trained": Scheme(8, TorchaoLinears(int8_dynamic_trained, int8_fake), trainable=True),
    "int4_weight_only": Scheme(4, GroupedLinears(activations=False), grouped=True, trainable=True),
}


@dataclass(frozen=True)
class Settings:
    """A file of conf/quant/, its ``name`` the file's. Raises UserError for what its scheme does not take."""

    name: str
    scheme: str
    qat: bool = False
    embeddings: bool = True
    head: bool = False
    group_size: int | None = None
    symmetric: bool | None = None  # None: as if true
    calibration_rows: int | None = None
    start_step: int = 0
    learning_rate_scale: float = 1.0
    keep_float: tuple[str, ...] = ()  # patterns of names, as fnmatch reads them

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", tuple(self.keep_float))
        if self.scheme not in SCHEMES:
            raise UserError(
                f"quant.scheme={self.scheme}: known are {', '.join(SCHEMES)}.{nearest(self.scheme, SCHEMES)}"
            )
        check_training(self)
        check_taken(self)

    @property
    def of(self) -> Scheme:
        return SCHEMES[self.scheme]


def check_training(settings: Settings) -> None:
    if settings.qat and not settings.of.trainable:
        good = [name for name, scheme in SCHEMES.items() if scheme.trainable]
        raise UserError(
            f"quant.scheme={settings.scheme} cannot be trained: what it converts to differs from what was trained. "
            f"With quant.qat=true take {' or '.join(good)}."
        )
    for key, default in (("start_step", 0), ("learning_rate_scale", 1.0)):
        if getattr(settings, key) != default and not settings.qat:
            raise UserError(f"quant={settings.name} takes no quant.{key}: it quantizes after training.")
    if settings.start_step < 0 or not settings.learning_rate_scale > 0:
        raise UserError(f"quant={settings.name}: start_step is at least 0, learning_rate_scale more than 0.")


def check_taken(settings: Settings) -> None:
    scheme, group, rows = settings.of, settings.group_size, settings.calibration_rows
    if scheme.grouped != (group is not None):
        wants = "needs a quant.group_size" if scheme.grouped else "takes no quant.group_size"
        raise UserError(f"quant.scheme={settings.scheme} {wants}.")
    if group is not None and (group < 2 or group % 2):
        raise UserError(f"quant.group_size={group}: two weights share a byte, so it is an even number, such as 32.")
    if settings.symmetric is not None and not scheme.grouped:
        raise UserError(f"quant.scheme={settings.scheme} takes no quant.symmetric: its weights have no zero point.")
    if scheme.calibrated != (rows is not None):
        wants = "needs quant.calibration_rows" if scheme.calibrated else "takes no quant.calibration_rows"
        raise UserError(f"quant.scheme={settings.scheme} {wants}.")
    if rows is not None and rows < 1:
        raise UserError(f"quant.calibration_rows={rows}: it is at least 1.")
