"""After an out-of-memory error: every batch in two halves, with the same rows and steps as before."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import Sampler

from kd.batches import Batches, Draw
from kd.checkpoint import LAST, read
from kd.errors import UserError

Result = TypeVar("Result")
NO_SHARE = math.inf  # a total by which a loss is divided so that nothing is left of it


class Split(Sampler[Draw]):
    """The draws of ``batches``, each in as many ``parts``, so that one part after the other goes through the models.

    Totals stay those of the global batch, so that the parts' losses add up to the batch's. A batch with fewer rows
    than parts is filled up with its first row at no weight: every batch takes the same number of parts.
    """

    def __init__(self, batches: Batches, parts: int) -> None:
        self.batches = batches
        self.parts = parts

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.batches.set_epoch(epoch)

    def __iter__(self) -> Iterator[Draw]:
        for draw in self.batches:
            size = math.ceil(len(draw.rows) / self.parts)
            pieces = [draw.rows[i : i + size] for i in range(0, len(draw.rows), size)]
            yield from (Draw(rows, draw.totals, draw.epoch) for rows in pieces)
            for _ in range(self.parts - len(pieces)):
                yield Draw(draw.rows[:1], dict.fromkeys(draw.totals, NO_SHARE), draw.epoch)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.batches) * self.parts


def parts_begun(directory: Path) -> int:
    """Into how many parts the training in ``directory`` splits its batches since an earlier error; 1 without one."""
    last = directory / "checkpoints" / LAST
    return int(read(last)["kd"].get("parts", 1)) if last.is_file() else 1


def resplit(checkpoint: dict[str, Any], parts: int) -> None:
    """Lightning's counts of batches, in a loaded checkpoint, as they are with so many ``parts``."""
    before = checkpoint["kd"].get("parts", 1)
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        ready = counts["ready"]
        for name, count in counts.items():  # a batch whose step was saved is done, and not yet counted as completed
            counts[name] = ready * parts // before - (ready - count)


def is_out_of_memory(error: BaseException) -> bool:
    """An accelerator's error, or that of torch's allocator for the CPU, which has no type of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def within_memory(
    train: Callable[[int], Result], directory: Path, rows: int, several_devices: bool = False, tokens: int | None = None
) -> Result:
    """What ``train(parts)`` gives; after an out-of-memory error it is called again with twice as many parts.

    It goes on from the state that was saved last in ``directory``, or begins anew. Raises UserError where a part is
    one row already, and with several devices, whose other processes wait for the one that failed. ``rows`` are those of
    a batch, ``tokens`` the budget that made it.
    """
    parts = parts_begun(directory)
    while True:
        try:
            return train(parts)
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one
            if not is_out_of_memory(error):
                raise
            what = str(error).splitlines()[0][:160]
            check_halves(what, parts, rows, several_devices, tokens)
        parts *= 2  # outside of the block, whose error keeps the tensors of the failed step
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(
            f"\nOut of memory ({what}). Going on with batches of {math.ceil(rows / parts)} instead of "
            f"{math.ceil(2 * rows / parts)} rows, {parts} of them where there was one: same rows and steps "
            "(losses that compare the rows of a batch see fewer at once)."
        )


def check_halves(what: str, parts: int, rows: int, several_devices: bool, tokens: int | None) -> None:
    less = "student.gradient_checkpointing=true, a smaller data.max_length or a smaller student take less memory"
    if several_devices:
        half = f"data.tokens_per_batch={tokens // 2}" if tokens else f"data.batch_size={max(1, rows // 2)}"
        raise UserError(
            f"Out of memory ({what}). With several devices the batch is not halved by itself: set {half} and twice the "
            f"trainer.accumulate_grad_batches; {less}."
        )
    if parts >= rows:
        raise UserError(f"Out of memory with one row at a time ({what}): {less}.")
