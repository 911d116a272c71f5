"""Linear layers quantized by torchao: with its own configs, and as int4 in groups on the grid of ``kd.grid``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kd import torchao_configs as configs
from kd.errors import UserError
from kd.grid import Grid, Quantized, pack, quantize, unpack
from kd.quantized_embedding import rounded


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def is_fake(module: nn.Module) -> bool:
    from torchao.quantization.qat.linear import FakeQuantizedLinear

    return isinstance(module, FakeQuantizedLinear)


class TorchaoLinears:
    """One torchao config. Layers stay nn.Linear; their weight becomes a tensor of torchao's.

    ``config`` makes it for a layer; ``fake`` the configs (activation, weight) to train with.
    """

    def __init__(self, config: Callable[[nn.Linear], Any], fake: Callable[[], tuple[Any, Any]] | None = None) -> None:
        self.config = config
        self.fake = fake

    def prepare(self, model: Any, names: Iterable[str], settings: Any) -> None:
        from torchao.quantization.qat import linear as qat

        for name in names:
            layer = model.get_submodule(name)
            replace(model, name, self.fake_quantized(qat.FakeQuantizedLinear, layer, settings).train(layer.training))

    def fake_quantized(self, kind: Any, layer: nn.Linear, settings: Any) -> Any:
        assert self.fake is not None
        return kind.from_linear(layer, *self.fake())

    def restore(self, model: Any) -> None:
        for name, module in list(model.named_modules()):
            if is_fake(module):
                replace(model, name, module.to_linear().train(module.training))

    def convert(self, model: Any, names: Iterable[str], settings: Any) -> None:
        for name in names:
            self.convert_one(model.get_submodule(name), settings)

    def convert_one(self, layer: nn.Linear, settings: Any) -> None:
        from torchao.quantization import quantize_

        quantize_(layer, self.config(layer), filter_fn=lambda module, _name: isinstance(module, nn.Linear))

    def is_quantized(self, module: nn.Module) -> bool:
        return type(getattr(module, "weight", None)) not in (Tensor, nn.Parameter)

    def packed(self, module: Any) -> dict[str, Tensor]:
        parts = {f"weight.{name}": getattr(module.weight, name) for name in module.weight.__tensor_flatten__()[0]}
        return parts | ({} if module.bias is None else {"bias": module.bias.detach()})

    def unpacked(self, linear: nn.Linear, tensors: dict[str, Tensor], settings: Any) -> nn.Module:
        made = copy.deepcopy(linear).requires_grad_(False)
        self.convert_one(made, settings)  # the same kind of tensor, of other numbers
        expected = self.packed(made)
        check_shapes(expected, tensors)
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
        return made


def check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    def shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}

    if shapes(expected) != shapes(found):
        raise UserError(f"its tensors are {shapes(found)}, and config.json asks for {shapes(expected)}")


class FakeQuantizer(nn.Module):
    """In place of torchao's for weights, which has neither float16 scales nor zero points."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.enabled = True

    def forward(self, weight: Tensor) -> Tensor:
        return rounded(weight, self.grid) if self.enabled else weight


class GroupedLinears(TorchaoLinears):
    """int4 weights in groups on the grid of ``kd.grid``; ``activations``: int8 by token, else they stay float."""

    def __init__(self, activations: bool) -> None:
        self.activations = activations

    def fake_quantized(self, kind: Any, layer: nn.Linear, settings: Any) -> Any:
        made = kind.from_linear(layer, configs.int8_per_token() if self.activations else None, None)
        made.weight_fake_quantizer = FakeQuantizer(Grid.of(4, settings))
        return made

    def convert_one(self, layer: nn.Linear, settings: Any) -> None:
        grid = Grid.of(4, settings)
        self.set_weight(layer, quantize(layer.weight.detach(), grid), grid)

    def set_weight(self, layer: Any, quantized: Quantized, grid: Grid) -> None:
        from torchao.quantization.quantize_.workflows.intx import intx_unpacked_to_int8_tensor as intx

        integers, scale, zero = quantized
        layer.grid = grid
        layer.weight = nn.Parameter(
            intx.IntxUnpackedToInt8Tensor(
                integers, scale, torch.zeros_like(scale, dtype=torch.int8) if zero is None else zero,
                torch.int4, (1, integers.shape[1] // scale.shape[1]), torch.float32,  # type: ignore[attr-defined]
                intx.IntxUnpackedToInt8TensorActivationQuantization.INT8_ASYM_PER_TOKEN if self.activations else None,
            ),
            requires_grad=False,
        )  # fmt: skip

    def packed(self, module: Any) -> dict[str, Tensor]:
        weight = module.weight
        bias = {} if module.bias is None else {"bias": module.bias.detach()}
        return pack((weight.qdata, weight.scale, weight.zero_point), module.grid) | bias

    def unpacked(self, linear: nn.Linear, tensors: dict[str, Tensor], settings: Any) -> nn.Module:
        made = copy.deepcopy(linear).requires_grad_(False)
        tensors, grid = dict(tensors), Grid.of(4, settings)
        if made.bias is not None:
            check_shapes({"bias": made.bias}, {"bias": tensors.get("bias", torch.empty(0))})
            made.bias.copy_(tensors.pop("bias"))
        self.set_weight(made, unpack(tensors, tuple(linear.weight.shape), grid), grid)
        return made
