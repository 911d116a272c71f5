"""A function on two ranks: processes of their own, joined by gloo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

RANKS = 2


def on_two_ranks(function: Callable[[int], Any], directory: Path) -> list[Any]:
    """What ``function(rank)`` gives on each; it must be importable by its name, and its result made of tensors."""
    spawn(run, (function, directory), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(RANKS)]


def run(rank: int, function: Callable[[int], Any], directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory / 'meeting'}", rank=rank, world_size=RANKS)
    torch.save(function(rank), directory / f"rank{rank}.pt")
    dist.destroy_process_group()
