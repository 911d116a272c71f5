"""The schemes of quantization, and what a file of conf/quant/ says."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from kd import torchao_configs as configs
from kd.errors import UserError, nearest
from kd.static_linear import StaticLinears
from kd.torchao_linears import GroupedLinears, TorchaoLinears


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
    linears: Linears | None  # None: the whole network is cast, and nothing stays float32
    grouped: bool = False  # takes group_size and symmetric; else one scale a row
    trainable: bool = False  # converted logits equal the fake-quantized ones (measured: quantization tests)
    block: int = 1  # weights of a linear layer come in blocks of so many, and no part of one is left
    calibrated: bool = False  # reads ranges of activations from calibration_rows
    embedding_bits: int | None = None  # None: as many as the others
    devices: tuple[str, ...] = ("cpu", "cuda")  # where it runs
    capability: tuple[int, int] = (0, 0)  # the least that a CUDA device has to have
    config: Any = None  # makes torchao's config; transformers then reads the linear layers by itself


def torchao_scheme(bits: int, config: Any, fake: Any = None, **more: Any) -> Scheme:
    return Scheme(bits, TorchaoLinears(config, fake), trainable=fake is not None, config=config, **more)


SCHEMES = {
    "bf16": Scheme(16, None, capability=(8, 0)),
    "int8_dynamic": torchao_scheme(8, configs.int8_dynamic),
    "int8_dynamic_trained": torchao_scheme(8, configs.int8_dynamic_trained, configs.int8_dynamic_fake),
    "int8_weight_only": torchao_scheme(8, configs.int8_weight_only, configs.int8_weight_only_fake),
    "int4_weight_only": Scheme(4, GroupedLinears(activations=False), grouped=True, trainable=True),
    "int8_dynamic_int4_weight": Scheme(4, GroupedLinears(activations=True), grouped=True, trainable=True),
    "int8_static": Scheme(8, StaticLinears(), trainable=True, calibrated=True),
    "fp8_weight_only": torchao_scheme(8, configs.fp8_weight_only),
    # embeddings int8: one table for all words is where 4 bits cost most
    "nf4": Scheme(4, TorchaoLinears(configs.nf4), block=configs.NF4_BLOCK, embedding_bits=8),
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
    if settings.of.linears is None:
        for key, default in (("embeddings", True), ("head", False), ("keep_float", ())):
            if getattr(settings, key) != default:
                raise UserError(f"quant.scheme={settings.scheme} takes no quant.{key}: it is the whole network.")
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


def refusal(settings: Settings, device: str, capability: tuple[int, int] | None = None) -> str | None:
    """Why a scheme does not run on a ``device`` (``cpu``, ``cuda``, ``mps``), and which one does; None if it runs.

    ``capability`` is what ``torch.cuda.get_device_capability`` says.
    """
    scheme = settings.of
    if device not in scheme.devices:
        why = f"it runs on {' and '.join(scheme.devices)}, and this is {device}"
    elif device == "cuda" and capability is not None and capability < scheme.capability:
        has, needs = (".".join(map(str, numbers)) for numbers in (capability, scheme.capability))
        why = f"it needs a CUDA device of compute capability {needs}, and this one has {has}"
    else:
        return None
    runs = [
        name
        for name, other in SCHEMES.items()
        if device in other.devices
        and (capability is None or capability >= other.capability)
        and (other.trainable or not settings.qat)
    ]
    # of equally many bits, the first
    best = min(runs, key=lambda name: abs(SCHEMES[name].bits - scheme.bits), default=None)
    instead = f"scheme={best} is the nearest that does" if runs else "none of the schemes does; take quant=none"
    return f"quant={settings.name} cannot run here: {why}. Of quantization, {instead}."
