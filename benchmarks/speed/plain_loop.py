"""A loop in plain PyTorch over rows that were padded to the longest length allowed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.data import DataLoader

from speed import program
from speed.clock import Clock
from speed.objective import loss, make_optimizer, projections, read_rows
from speed.work import Work


def train(work: Work, setting: dict[str, Any], teacher: Any, student: Any, clock: Clock) -> None:
    """``setting`` goes to the DataLoader."""
    from transformers import get_linear_schedule_with_warmup

    maps = projections(work, student, teacher)
    _, rows = read_rows(work, "train", padding="max_length")
    loader = DataLoader(rows.with_format("torch"), batch_size=work.batch, shuffle=True, **setting)
    optimizer = make_optimizer(work, student, maps)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(work.warmup * work.steps), work.steps)
    learned = [*student.parameters(), *maps.parameters()]
    states = {"output_hidden_states": bool(work.pairs)}
    clock.start()
    for _ in range(work.epochs):
        for batch in loader:
            labels = batch.pop("labels")
            with torch.no_grad():
                wanted = teacher(**batch, **states)
            torch.autograd.backward(loss(work, student(**batch, labels=labels, **states), wanted, maps))
            torch.nn.utils.clip_grad_norm_(learned, work.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    program.main(train)
