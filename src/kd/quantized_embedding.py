"""Embeddings with integer rows: looked up first, then rounded or made floats again.

torchao's own quantized embedding works on the whole table at every call, in training and afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST_SCALE = 1e-12


def quantize_rows(rows: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Symmetric integers of rows ``[N, H]`` and their scales ``[N, H / group]``.

    ``scale = max|x| / (2^(bits-1) - 1)`` of each group, ``q = round(x / scale)``: Q8BERT (Zafrir et al. 2019).
    """
    limit = 2 ** (bits - 1) - 1
    grouped = rows.float().reshape(*rows.shape[:-1], -1, group)
    scale = (grouped.abs().amax(-1) / limit).clamp(min=SMALLEST_SCALE)
    return (grouped / scale[..., None]).round().clamp(-limit, limit).to(torch.int8).flatten(-2), scale


def dequantize_rows(quantized: Tensor, scale: Tensor) -> Tensor:
    """``[N, H]`` integers and ``[N, G]`` scales back to float32 ``[N, H]``."""
    grouped = quantized.reshape(*scale.shape, -1).float()
    return (grouped * scale[..., None]).flatten(-2)


class PassGradient(torch.autograd.Function):
    """Forward: the quantized value. Backward: the gradient as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class FakeQuantizedEmbedding(nn.Embedding):
    """Trains float rows and looks them up rounded. Only the rows of the batch are touched."""

    bits: int
    group: int

    @classmethod
    def of(cls, embedding: nn.Embedding, bits: int, group: int) -> FakeQuantizedEmbedding:
        made = cls(1, 1, padding_idx=None)
        made.num_embeddings, made.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        made.padding_idx, made.weight = embedding.padding_idx, embedding.weight
        made.bits, made.group = bits, group
        return made.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight, self.padding_idx)
        with torch.no_grad():
            rounded = dequantize_rows(*quantize_rows(rows, self.bits, self.group)).to(rows.dtype)
        result: Tensor = PassGradient.apply(rows, rounded)  # type: ignore[no-untyped-call]
        return result

    def plain(self) -> nn.Embedding:
        made = nn.Embedding(1, 1)
        made.num_embeddings, made.embedding_dim = self.num_embeddings, self.embedding_dim
        made.padding_idx, made.weight = self.padding_idx, self.weight
        return made.train(self.training)


class QuantizedEmbedding(nn.Module):
    """Integer rows and their scales; looks up first, then turns only those rows into floats."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rows: int, width: int, group: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(rows, width, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(rows, width // group))

    @classmethod
    def of(cls, embedding: nn.Embedding, bits: int, group: int) -> QuantizedEmbedding:
        made = cls(1, group, group)
        made.weight, made.scale = quantize_rows(embedding.weight.detach(), bits, group)
        return made.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        return dequantize_rows(F.embedding(ids, self.weight), F.embedding(ids, self.scale))
