"""Linear layers with fixed integer grids for weights and inputs: what runtimes for int8 execute, and its training.

Inputs are uint8 with one scale and zero point a layer, weights int8 with one scale an output channel:
``y = s_x s_w sum (q_x - z_x) q_w + b`` (Jacob et al. 2018, eq. 4 and 7). In float32 the sum is computed on the integers
themselves, exactly below 2^24; so the trained model, the converted one and integer kernels give the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.errors import UserError
from kd.grid import Grid, quantize
from kd.input_range import InputRange, Observer, grid, integers
from kd.torchao_linears import check_shapes, replace

WEIGHTS = Grid(bits=8)  # symmetric, a scale an output channel


class OnTheGrid(torch.autograd.Function):
    """``[..., I]`` inputs, ``[O, I]`` weights and the two ``bounds`` of the inputs to ``[..., O]``, all float32.

    Backward: rounding passes gradients on (Bengio et al. 2013), clipping does not. The bounds get those of the
    quantized inputs, as in LSQ (Esser et al. 2020, eq. 3): where clipped, one; elsewhere the rounding error.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bounds: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, weight, bounds)
        quantized, weight_scale, _ = quantize(weight, WEIGHTS)
        scale, zero_point = grid(bounds)
        return integer_linear(integers(inputs, scale, zero_point), zero_point, quantized, scale, weight_scale[:, 0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inputs, weight, bounds = ctx.saved_tensors
        with torch.autocast(inputs.device.type, enabled=False):
            gradient = gradients[0].float()
            quantized, weight_scale, _ = quantize(weight, WEIGHTS)
            scale, zero_point = grid(bounds)
            steps = integers(inputs, scale, zero_point) - zero_point
            to_inputs = gradient @ (quantized * weight_scale)
            to_weight = gradient.flatten(0, -2).T @ (steps * scale).flatten(0, -2)
            error = steps - inputs / scale  # of rounding at most one half; what is larger was clipped
            clipped = error.abs() > 0.5
            rounding = (to_inputs * error).masked_fill(clipped, 0).sum() / 255
            lost = to_inputs.masked_fill(~clipped, 0)
            to_bounds = torch.stack([(lost * (error > 0)).sum() - rounding, (lost * (error < 0)).sum() + rounding])
            return to_inputs.masked_fill(clipped, 0), to_weight, to_bounds


def integer_linear(inputs: Tensor, zero_point: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor) -> Tensor:
    """``[..., I]`` and ``[O, I]`` integers to ``[..., O]``: first the sums, then one multiplication a channel."""
    return F.linear(inputs - zero_point, weight.float()) * (scale * weight_scale)


class FakeStaticLinear(nn.Linear):
    """A linear layer that trains float weights and computes with rounded ones on rounded inputs.

    Layers that see the same tensor share one ``input_range``: a runtime quantizes it once. While ``enabled`` is off it
    is the plain layer.
    """

    input_range: InputRange
    enabled: bool

    @classmethod
    def of(cls, linear: nn.Linear, input_range: InputRange) -> FakeStaticLinear:
        made = cls(1, 1, bias=False)
        made.in_features, made.out_features = linear.in_features, linear.out_features
        made.weight, made.bias = linear.weight, linear.bias
        made.input_range, made.enabled = input_range.to(linear.weight.device), True
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        if self.input_range.observer is not None:
            self.input_range.observer.see(input)
        if not self.enabled:  # the sum keeps the parameter in the graph, as DDP wants it
            return super().forward(input) + 0 * self.input_range.stretch.sum()
        with torch.autocast(input.device.type, enabled=False):
            result: Tensor = OnTheGrid.apply(input.float(), self.weight.float(), self.input_range())  # type: ignore[no-untyped-call]
            return result if self.bias is None else result + self.bias

    def plain(self) -> nn.Linear:
        made = nn.Linear(1, 1, bias=False)
        made.in_features, made.out_features = self.in_features, self.out_features
        made.weight, made.bias = self.weight, self.bias
        return made.train(self.training)


class StaticLinear(nn.Module):
    """``weight`` int8 ``[O, I]``, ``scale`` ``[O]``; ``input_scale`` and ``input_zero_point`` (uint8) of all inputs."""

    weight: Tensor
    scale: Tensor
    input_scale: Tensor
    input_zero_point: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_features))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    @classmethod
    def of(cls, linear: FakeStaticLinear) -> StaticLinear:
        made = cls(1, 1, bias=False)
        made.weight, scale, _ = quantize(linear.weight.detach(), WEIGHTS)
        made.scale = scale[:, 0]
        made.input_scale, zero_point = grid(linear.input_range().detach())
        made.input_zero_point = zero_point.to(torch.uint8)
        made.bias = None if linear.bias is None else linear.bias.detach().clone()
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            zero_point = self.input_zero_point.float()
            quantized = integers(input.float(), self.input_scale, zero_point)
            result = integer_linear(quantized, zero_point, self.weight, self.input_scale, self.scale)
            return result if self.bias is None else result + self.bias


class StaticLinears:
    """How the scheme int8_static treats the linear layers of a model: see ``kd.schemes.Linears``."""

    def prepare(self, model: Any, names: Iterable[str], settings: Any) -> None:
        for together in sharing(model, names):
            first = model.get_submodule(together[0])
            shared = InputRange(first.in_features)
            for name in together:
                replace(model, name, FakeStaticLinear.of(model.get_submodule(name), shared))

    @contextmanager
    def calibrating(self, model: Any) -> Iterator[None]:
        """While open, layers compute in float and look; then they take over the ranges of what they saw."""
        layers = fake_layers(model)
        ranges = {layer.input_range for layer in layers}
        enabled = [layer.enabled for layer in layers]
        for one in ranges:
            one.observer = Observer()
        for layer in layers:
            layer.enabled = False
        try:
            yield
            for one in ranges:
                one.settle()
        finally:
            for one in ranges:
                one.observer = None
            for layer, before in zip(layers, enabled, strict=True):
                layer.enabled = before

    def restore(self, model: Any) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, FakeStaticLinear):
                replace(model, name, module.plain())

    def convert(self, model: Any, names: Iterable[str], settings: Any) -> None:
        for name in names:
            module = model.get_submodule(name)
            if not isinstance(module, FakeStaticLinear):
                raise UserError(
                    f"quant={settings.name} needs the ranges of its inputs: prepare and calibrate it first."
                )
            replace(model, name, StaticLinear.of(module))

    def is_quantized(self, module: nn.Module) -> bool:
        return isinstance(module, StaticLinear)

    def packed(self, module: nn.Module) -> dict[str, Tensor]:
        return dict(module.named_buffers())

    def unpacked(self, linear: nn.Linear, tensors: dict[str, Tensor], settings: Any) -> StaticLinear:
        made = StaticLinear(linear.in_features, linear.out_features, linear.bias is not None)
        check_shapes(self.packed(made), tensors)
        made.load_state_dict(tensors, assign=True)
        return made


def fake_layers(model: nn.Module) -> list[FakeStaticLinear]:
    return [module for module in model.modules() if isinstance(module, FakeStaticLinear)]


@torch.no_grad()
def sharing(model: Any, names: Iterable[str]) -> list[list[str]]:
    """The layers, together those that are given the same tensor, as query, key, value. Runs the model on 3 tokens."""
    seen: list[tuple[Tensor, list[str]]] = []  # tensors stay alive, so that none takes the place of another

    def note(name: str, tensor: Tensor) -> None:
        for before, together in seen:
            if before is tensor:
                together.append(name)
                return
        seen.append((tensor, [name]))

    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda _module, given, name=name: note(name, given[0]))
        for name in names
    ]
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    model(input_ids=torch.zeros(1, 3, dtype=torch.long, device=device), attention_mask=torch.ones(1, 3, device=device))
    model.train(training)
    for handle in handles:
        handle.remove()
    return [together for _, together in seen]
