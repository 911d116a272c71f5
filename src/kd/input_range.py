"""The range of a layer's inputs and its grid of 256 values: calibrated on real rows, then learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GAIN = 10.0  # steps of an optimizer made for weights move a range by lr * GAIN of itself
SMALLEST = 1e-6
SAMPLE = 8192  # values of each batch that the search looks at
TRIED = torch.linspace(0.1, 1, 46)  # shares of the smallest and the largest value seen


def grid(bounds: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32 scalars, of ``bounds`` (lowest at most 0, highest at least 0). Zero is on the grid.

    ``s = (high - low) / 255, z = round(-low / s)``: Jacob et al. 2018, section 3.
    """
    scale = ((bounds[1] - bounds[0]) / 255).clamp(min=SMALLEST)
    return scale, (-bounds[0] / scale).round().clamp(0, 255)


def integers(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """``round(x / s) + z`` between 0 and 255, halves to even, as float32: QuantizeLinear of ONNX."""
    return (values / scale).round().add(zero_point).clamp(0, 255)


class ScaledGradient(torch.autograd.Function):
    """Forward: the value. Backward: the gradient times ``factor``."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class Observer:
    """Extremes of all values it saw and a random sample of each batch: at even steps it would be of few channels."""

    def __init__(self) -> None:
        self.lowest = self.highest = 0.0  # zero is always within
        self.samples: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(0)

    def see(self, values: Tensor) -> None:
        flat = values.detach().flatten().float()
        low, high = torch.aminmax(flat)
        self.lowest, self.highest = min(self.lowest, low.item()), max(self.highest, high.item())
        places = torch.randint(len(flat), (min(SAMPLE, len(flat)),), generator=self.generator)
        self.samples.append(flat[places.to(flat.device)].cpu())

    def bounds(self) -> Tensor:
        """Those with the smallest mean squared error among shares of the extremes; one side after the other, twice.

        Sung et al. 2015; Nagel et al. 2021, section 3.1. The extremes themselves cost more: a few values far out would
        make every step coarse.
        """
        sample, found = torch.cat(self.samples), torch.tensor([self.lowest, self.highest])
        if found[1] - found[0] < SMALLEST:
            return torch.tensor([0.0, SMALLEST])
        extremes = found.clone()
        for side in (1, 0, 1, 0):
            tried = found.repeat(len(TRIED), 1)
            tried[:, side] = extremes[side] * TRIED
            found = tried[int(torch.stack([error(sample, bounds) for bounds in tried]).argmin())]
        return found


def error(sample: Tensor, bounds: Tensor) -> Tensor:
    if bounds[1] - bounds[0] < SMALLEST:
        return torch.tensor(torch.inf)
    scale, zero_point = grid(bounds)
    return ((integers(sample, scale, zero_point) - zero_point) * scale - sample).square().mean()


class InputRange(nn.Module):
    """``bounds`` (lowest, highest) from calibration, and ``stretch``, learned: each is times ``exp(GAIN * it)``.

    Ranges are learned as in LSQ (Esser et al. 2020), with its factor ``1 / sqrt(255 N)`` on the gradient for N
    features, but as logarithms (Jain et al. 2020): steps are then as large for wide ranges as for narrow ones.
    Padding changes nothing: no loss depends on it, so its gradient is zero.
    """

    bounds: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("bounds", torch.zeros(2))
        self.stretch = nn.Parameter(torch.zeros(2))
        self.factor = (255 * features) ** -0.5
        self.observer: Observer | None = None

    def forward(self) -> Tensor:
        """``[2]``, what is in force. Raises AssertionError before calibration."""
        stretch: Tensor = ScaledGradient.apply(self.stretch, self.factor)  # type: ignore[no-untyped-call]
        return self.bounds * (GAIN * stretch).exp()

    @torch.no_grad()
    def settle(self) -> None:
        """Takes over what was seen and forgets what was learned."""
        assert self.observer is not None
        assert self.observer.samples, "no batch was seen"
        self.bounds.copy_(self.observer.bounds())
        self.stretch.zero_()
