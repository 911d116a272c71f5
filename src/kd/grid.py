"""Integers of weights and their scales: the one rounding that training, conversion and the file share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.errors import UserError

SMALLEST_SCALE = {torch.float32: 1e-12, torch.float16: 2.0**-24}


@dataclass(frozen=True)
class Grid:
    """Integers of ``bits`` bits; ``group`` neighbours in a row share a scale (0: the whole row does).

    Not ``symmetric``: they share a zero point too. Scales of less than 8 bits are float16 numbers, so that a file
    with float16 scales holds the same model.
    """

    bits: int
    group: int = 0
    symmetric: bool = True

    @classmethod
    def of(cls, bits: int, settings: Any) -> Grid:
        """The grid of a scheme's Settings; ``bits``: of the layers it is for."""
        return cls(bits, settings.group_size or 0, settings.symmetric is not False)

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float32 if self.bits == 8 else torch.float16


Quantized = tuple[Tensor, Tensor, Tensor | None]  # int8 [N, H], float32 scale [N, G], int8 zero point [N, G] or None


def quantize(rows: Tensor, grid: Grid) -> Quantized:
    """Rows ``[..., H]`` on the grid.

    Symmetric: ``scale = max|x| / (2^(bits-1) - 1)``, ``q = round(x / scale)``, Q8BERT (Zafrir et al. 2019). Else:
    ``scale = (max - min) / (2^bits - 1)`` over the group and 0, ``q = round(x / scale) + zero``, Jacob et al. 2018.
    """
    limit = 2 ** (grid.bits - 1)
    grouped = rows.float().reshape(*rows.shape[:-1], -1, grid.group or rows.shape[-1])
    high, low = grouped.amax(-1).clamp(min=0), grouped.amin(-1).clamp(max=0)
    wide = torch.maximum(high, -low) / (limit - 1) if grid.symmetric else (high - low) / (2 * limit - 1)
    scale = wide.clamp(min=SMALLEST_SCALE[grid.scale_dtype]).to(grid.scale_dtype).float()
    integers = (grouped / scale[..., None]).round()
    if grid.symmetric:
        return integers.clamp(1 - limit, limit - 1).to(torch.int8).flatten(-2), scale, None
    zero = (-limit - low / scale).round().clamp(-limit, limit - 1)
    return (integers + zero[..., None]).clamp(-limit, limit - 1).to(torch.int8).flatten(-2), scale, zero.to(torch.int8)


def dequantize(integers: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """``[..., H]`` integers back to float32: ``(q - zero) * scale``."""
    grouped = integers.reshape(*scale.shape, -1).float()
    if zero is not None:
        grouped = grouped - zero[..., None].float()
    return (grouped * scale[..., None]).flatten(-2)


def pack(quantized: Quantized, grid: Grid) -> dict[str, Tensor]:
    """What a file keeps: int4 as two weights a byte (the first in the low half), scales float16; int8 as it is."""
    integers, scale, zero = quantized
    if grid.bits == 8:
        return {"weight": integers, "scale": scale}
    kept = {"weight": two_a_byte(integers), "scale": scale.half()}
    assert torch.equal(kept["scale"].float(), scale.float()), "scales are float16 numbers"
    if not grid.symmetric:
        assert zero is not None
        kept["zero"] = two_a_byte(zero)
    return kept


def unpack(tensors: dict[str, Tensor], shape: tuple[int, ...], grid: Grid) -> Quantized:
    """The inverse of ``pack`` for a weight ``[N, H]`` of this shape. Raises UserError if the tensors are of another."""
    rows, width = shape
    groups = width // grid.group if grid.group else 1
    wanted = {"weight": (rows, width), "scale": (rows, groups)}
    if grid.bits == 4:
        wanted |= {"weight": (rows, (width + 1) // 2)} | ({} if grid.symmetric else {"zero": (rows, (groups + 1) // 2)})
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != wanted:
        raise UserError(f"its tensors are {found}, and by config.json they are {wanted}")
    scale = tensors["scale"].float()
    if grid.bits == 8:
        return tensors["weight"], scale, None
    zero = None if grid.symmetric else one_a_byte(tensors["zero"], groups)
    return one_a_byte(tensors["weight"], width), scale, zero


def two_a_byte(integers: Tensor) -> Tensor:
    """int8 ``[N, H]`` of -8 to 7 to uint8 ``[N, H / 2]``; an odd row ends with an empty half."""
    even = F.pad(integers, (0, integers.shape[1] % 2)).view(torch.uint8)
    return (even[:, 0::2] & 15) | (even[:, 1::2] << 4)


def one_a_byte(packed: Tensor, width: int) -> Tensor:
    """The inverse of ``two_a_byte``."""
    halves = torch.stack([packed << 4, packed & 240], dim=-1).flatten(1).view(torch.int8)
    return (halves >> 4)[:, :width].contiguous()  # shifting a signed integer back spreads its sign
