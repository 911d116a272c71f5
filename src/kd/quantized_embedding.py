"""Embeddings with integer rows: looked up first, then rounded or made floats again.

torchao's own quantized embedding works on the whole table at every call, in training and afterwards.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.grid import Grid, Quantized, dequantize, pack, quantize, unpack


class PassGradient(torch.autograd.Function):
    """Forward: the quantized value. Backward: the gradient as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, quantized: Tensor) -> Tensor:
        return quantized

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def rounded(rows: Tensor, grid: Grid) -> Tensor:
    """Rows as the grid has them, of the same dtype; the gradient passes."""
    with torch.no_grad():
        on_grid = dequantize(*quantize(rows, grid)).to(rows.dtype)
    result: Tensor = PassGradient.apply(rows, on_grid)  # type: ignore[no-untyped-call]
    return result


class FakeQuantizedEmbedding(nn.Embedding):
    """Trains float rows and looks them up rounded. Only the rows of the batch are touched."""

    grid: Grid
    enabled = True

    @classmethod
    def of(cls, embedding: nn.Embedding, grid: Grid) -> FakeQuantizedEmbedding:
        made = cls(1, 1, padding_idx=None)
        made.num_embeddings, made.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        made.padding_idx, made.weight, made.sparse = embedding.padding_idx, embedding.weight, embedding.sparse
        made.grid = grid
        return made.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        rows = F.embedding(ids, self.weight, self.padding_idx, sparse=self.sparse)
        return rounded(rows, self.grid) if self.enabled else rows

    def plain(self) -> nn.Embedding:
        made = nn.Embedding(1, 1)
        made.num_embeddings, made.embedding_dim = self.num_embeddings, self.embedding_dim
        made.padding_idx, made.weight = self.padding_idx, self.weight
        return made.train(self.training)


class QuantizedEmbedding(nn.Module):
    """Integer rows ``[N, H]`` and their scales ``[N, G]``; looks up first, then turns only those rows into floats."""

    weight: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, quantized: Quantized, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        for name, tensor in zip(("weight", "scale", "zero"), quantized, strict=True):
            self.register_buffer(name, tensor)

    @classmethod
    def of(cls, embedding: nn.Embedding, grid: Grid) -> QuantizedEmbedding:
        return cls(quantize(embedding.weight.detach(), grid), grid).train(embedding.training)

    @classmethod
    def unpacked(cls, embedding: nn.Embedding, tensors: dict[str, Tensor], grid: Grid) -> QuantizedEmbedding:
        """What ``packed`` gave these tensors; ``embedding`` has its shape. Raises UserError for another shape."""
        return cls(unpack(tensors, (embedding.num_embeddings, embedding.embedding_dim), grid), grid)

    def packed(self) -> dict[str, Tensor]:
        return pack((self.weight, self.scale, self.zero), self.grid)

    def forward(self, ids: Tensor) -> Tensor:
        zero = None if self.zero is None else F.embedding(ids, self.zero)
        return dequantize(F.embedding(ids, self.weight), F.embedding(ids, self.scale), zero)
