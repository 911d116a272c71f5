"""Dropout for the CPU that draws 16 random bits for each number instead of one float: a fraction of torch's own time.

What is dropped has the probability p to the nearest 1/65536, and what is kept is scaled by just that, so that the mean
is exact. Elsewhere the same module is torch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

LEVELS = 2**16


def drawn(shape: Sequence[int], dropped: int, dtype: torch.dtype) -> Tensor:
    """A mask of 0 and 1 / (1 - p); p is ``dropped`` of LEVELS, 1 at least.

    Torch's generator gives a seed, with which numpy draws the bits: torch takes more than twice as long for them.
    """
    count = math.prod(shape)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw((count + 3) // 4)
    bits = torch.from_numpy(words.view(np.int16))[:count].view(shape)
    # 0 and 1, by arithmetic on 16 bits: a comparison and the cast of what it gives take five times as long
    last = dropped - LEVELS // 2 - 1  # of the numbers that mean dropped
    ones = bits.clamp_(last, last + 1).sub_(last)
    scale = torch.tensor(LEVELS / (LEVELS - dropped), dtype=dtype)
    if dtype.itemsize == 2:
        return ones.mul_(scale.view(torch.int16)).view(dtype)
    return ones.to(dtype).mul_(scale)


def kept(shape: Sequence[int], p: float, dtype: torch.dtype) -> Tensor | None:
    """The mask of a dropout with the probability ``p``, below 1; None where nothing is dropped."""
    dropped = round(p * LEVELS)
    return drawn(shape, dropped, dtype) if dropped else None


class DropByBits(torch.autograd.Function):
    """``x`` times what ``drawn`` gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dropped: int) -> Tensor:
        mask = drawn(x.shape, dropped, x.dtype)
        ctx.save_for_backward(mask)
        return x * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return gradients[0] * ctx.saved_tensors[0], None


class FastDropout(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(input, self.p, self.training, self.inplace)
        dropped = round(self.p * LEVELS)
        found: Tensor = DropByBits.apply(input, dropped) if 0 < dropped < LEVELS else F.dropout(input, self.p)  # type: ignore[no-untyped-call]
        return found


def draw_bits(model: nn.Module) -> None:
    """Every dropout of ``model`` is the fast one from now on."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = FastDropout


class TrainsWithFastDropout(Callback):
    """The student's dropout is the fast one while it trains; what is made of it afterwards knows nothing of it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        draw_bits(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for module in pl_module.modules():
            if type(module) is FastDropout:
                module.__class__ = nn.Dropout  # type: ignore[assignment]

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
