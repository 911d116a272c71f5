"""Whether a training takes the steps of its word embeddings row by row (``trainer.lazy_embeddings``), and why not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from kd.errors import UserError

LARGE = 1_000_000  # numbers in a table; below, a dense step costs no more than finding the rows
TIMES = 8  # as many rows as a step has tokens: then most rows are not touched
OTHER = ("amsgrad", "maximize", "capturable", "differentiable")  # ways of AdamW that are not supported


def decide(wanted: bool | str, student: Any, optimizer: Callable[..., Any], device: str, tokens: float) -> bool:
    """Says in a line what a training of ``student`` does, whose optimizer steps see so many ``tokens``.

    Raises UserError where ``wanted`` is True and it cannot be.
    """
    cannot = why_not(student, optimizer, device)
    if wanted is True and cannot:
        raise UserError(f"trainer.lazy_embeddings=true cannot be: {cannot}. Take auto, or false.")
    table = student.get_input_embeddings().weight
    does_not_pay = table.numel() < LARGE or len(table) < TIMES * tokens
    why = "trainer.lazy_embeddings=false" if wanted is False else cannot
    if why is None and wanted == "auto" and does_not_pay:
        why = f"the table is not large against the {tokens:,.0f} tokens of a step"
    size = f"{len(table):,} x {table.shape[1]}"
    how = f"every row at every step, for {why}" if why else "rows are updated when they are read, as AdamW would have"
    print(f"Word embeddings ({size}): {how}")
    return why is None


def why_not(student: Any, optimizer: Callable[..., Any], device: str) -> str | None:
    """Why dense steps are needed; None if they are not."""
    embedding = student.get_input_embeddings()
    if not isinstance(optimizer, functools.partial) or optimizer.func is not torch.optim.AdamW:
        return "the optimizer is not torch.optim.AdamW"
    try:
        settings = optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]
    except RuntimeError as error:  # fused=true and a device that has none
        return f"AdamW says: {error}"
    (beta1, beta2), rate = settings["betas"], settings["lr"]
    set_other = [name for name in OTHER if settings[name]]
    if set_other:
        return f"optimizer.{set_other[0]}=true is done for all rows"
    if isinstance(rate, torch.Tensor) or not (settings["eps"] > 0 and 0.9 <= beta2 < 1 and beta1**2 < beta2):
        return (
            "of optimizer.eps above 0 and betas with beta2 from 0.9 and beta1 below its root alone the sums are known"
        )
    if device != "cpu":
        return f"finding the rows makes a {device} device wait, where a dense step is short"
    if not embedding.weight.requires_grad:
        return "they are frozen"
    uses = sum(p is embedding.weight for m in student.modules() for p in m.parameters(recurse=False))
    if uses > 1:
        return "the decoder is the same table and reads all rows"
    if embedding.max_norm is not None or embedding.scale_grad_by_freq:
        return "they have max_norm or scale_grad_by_freq"
    return None
