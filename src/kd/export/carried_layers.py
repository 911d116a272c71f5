"""Quantized layers as ONNX operations, their integers and scales as initializers. They can be exported, not called."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx.ops import symbolic

from kd.quantized_embedding import QuantizedEmbedding
from kd.static_linear import StaticLinear


def dequantized(values: Tensor, scale: Tensor, zero_point: Tensor | None = None, **attributes: int) -> Tensor:
    inputs = [values, scale] + ([] if zero_point is None else [zero_point])
    return symbolic("DequantizeLinear", inputs, {**attributes}, dtype=torch.float32, shape=values.shape)


class Carried(nn.Module):
    """A linear layer. MatMul takes the weight as ``[I, O]``: it is kept so, for what a runtime would turn is float."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.T.contiguous())
        self.register_buffer("scale", scale.clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def shifted(self, result: Tensor) -> Tensor:
        return result if self.bias is None else result + self.bias


class CarriedInt8(Carried):
    """int8 weights ``[O, I]`` with scales ``[O]``, float inputs."""

    def forward(self, input: Tensor) -> Tensor:
        return self.shifted(input @ dequantized(self.weight, self.scale, axis=1))


class CarriedStatic(Carried):
    """Inputs to uint8 and back, beside int8 weights: runtimes multiply the integers of the two.

    A matrix becomes a batch of rows: of two matrices and a bias ONNX Runtime would make a Gemm of floats.
    """

    input_scale: Tensor
    input_zero_point: Tensor

    def __init__(self, layer: StaticLinear) -> None:
        super().__init__(layer.weight, layer.scale, layer.bias)
        self.register_buffer("input_scale", layer.input_scale.clone())
        self.register_buffer("input_zero_point", layer.input_zero_point.clone())

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() == 2:
            return self.forward(input[:, None])[:, 0]
        grid = self.input_scale, self.input_zero_point
        quantized = symbolic("QuantizeLinear", (input, *grid), dtype=torch.uint8, shape=input.shape)
        return self.shifted(dequantized(quantized, *grid) @ dequantized(self.weight, self.scale, axis=1))


def per_token(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Integers of 0 to 255 of each token, as float32, its scale and its zero point: torchao's arithmetic."""
    low, high = input.amin(-1, keepdim=True).clamp(max=0), input.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero_point = (-(low / scale).round()).clamp(0, 255)
    return ((input * (1.0 / scale)).round() + zero_point).clamp(0, 255), scale, zero_point


class CarriedPerToken(Carried):
    """int8 weights, and inputs that are quantized where they are: MatMulInteger, less the share of the zero points."""

    column_sums: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, scale, bias)
        self.register_buffer("column_sums", weight.sum(1, dtype=torch.int32))

    def forward(self, input: Tensor) -> Tensor:
        quantized, scale, zero_point = per_token(input)
        shape = (*input.shape[:-1], self.weight.shape[1])
        sums = symbolic("MatMulInteger", (quantized.to(torch.uint8), self.weight), dtype=torch.int32, shape=shape)
        centred = sums - zero_point.to(torch.int32) * self.column_sums
        return self.shifted(centred.float() * (scale * self.scale))


class CarriedInt4(nn.Module):
    """int4 weights ``[O, I]`` in groups, with scales and zero points ``[O, G]``; inputs float, or rounded by token."""

    int4_weight: Tensor
    int4_zero: Tensor | None
    scale: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, rounds_inputs: bool
    ) -> None:
        super().__init__()
        self.group, self.rounds_inputs = weight.shape[1] // scale.shape[1], rounds_inputs
        self.register_buffer("int4_weight", weight.T.contiguous())
        self.register_buffer("scale", scale.T.contiguous())
        self.register_buffer("int4_zero", None if zero is None else zero.T.contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        if self.rounds_inputs:
            quantized, scale, zero_point = per_token(input)
            input = (quantized - zero_point) * scale
        weight = dequantized(self.int4_weight, self.scale, self.int4_zero, axis=0, block_size=self.group)
        result = input @ weight
        return result if self.bias is None else result + self.bias


class CarriedEmbedding(nn.Module):
    """Integer rows are looked up, then turned into floats; of int4, two in a byte, which every runtime can look up."""

    weight: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, embedding: QuantizedEmbedding) -> None:
        super().__init__()
        self.int4, self.width = embedding.grid.bits == 4, embedding.weight.shape[1]
        kept: dict[str, Any] = embedding.packed()
        self.register_buffer("weight", kept["weight"])
        self.register_buffer("scale", kept["scale"])
        self.register_buffer("zero", kept.get("zero"))

    def forward(self, ids: Tensor) -> Tensor:
        scale = nn.functional.embedding(ids, self.scale).float()
        rows = nn.functional.embedding(ids, self.weight)
        if not self.int4:
            return rows.float() * scale
        grouped = signed(rows)[..., : self.width].reshape(*scale.shape, -1)
        if self.zero is not None:
            zero = signed(nn.functional.embedding(ids, self.zero))[..., : self.scale.shape[1]]
            grouped = grouped - zero[..., None]
        rounded: Tensor = (grouped * scale[..., None]).flatten(-2)
        return rounded


def signed(packed: Tensor) -> Tensor:
    """Bytes ``[..., N]`` to the ``[..., 2 N]`` numbers of -8 to 7 in their halves, float32 (``kd.grid.two_a_byte``)."""
    values = packed.float()
    high = (values / 16).floor()
    halves = torch.stack([values - 16 * high, high], dim=-1).flatten(-2)
    return halves - 16 * (halves / 8).floor()
