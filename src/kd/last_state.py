"""When the state of a training is saved: now and then and when asked to stop; and how it is put back, bit by bit."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from kd.callbacks import LossWatch
from kd.checkpoint import drop_kept, find_best, keep_best, random_state, restore_random_state
from kd.errors import Preempted, UserError
from kd.halving import resplit

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GO_ON, SAVE, LEAVE = 0, 1, 2  # what the ranks agree on; the highest wish wins


class LastState(Callback):
    """Saves ``last.ckpt`` now and then and when asked to stop, and puts back what Lightning leaves out.

    Lightning's checkpoint holds the weights, the optimizer, the schedule, the counters and the states of callbacks;
    here the random generators of every rank are added, and the key of the configuration. It is saved after an
    optimizer step that is followed by another one in its epoch, and when asked to stop (SIGTERM, Ctrl-C) also after
    an epoch: from an epoch's last step Lightning would go on without that epoch's validation.

    Args:
        path: of the checkpoint.
        every_seconds: between two of them; 0: after every step.
        key: a hash of what determines the training; equal on all ranks, and on resuming.
        parts: of a batch, which Lightning counts as batches.
    """

    def __init__(self, path: Path, every_seconds: float, key: str, parts: int = 1) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self.key = key
        self.parts = parts
        self.saved = time.monotonic()
        self.step = self.asked_step = self.saved_step = 0  # done; when the ranks asked each other; in last.ckpt
        self.saving = False
        self.stopped_by = 0  # the number of a signal
        self.found: list[dict[str, Any]] | None = None  # random states to be put back
        self.unlogged: dict[str, float] = {}  # the last step's metrics, where Lightning logs them after the saving

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """For the time of a fit. What happened at a signal before is what happens after it."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            if is_main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def note(self, number: int, _frame: Any) -> None:
        if self.stopped_by == number == signal.SIGINT:
            raise KeyboardInterrupt  # pressed again: at once
        self.stopped_by = number

    def leave_if_asked(self) -> None:
        """After saving; also after the fit, where it is too late for that, but what follows takes long."""
        number = max(gathered(self.stopped_by))
        if number:
            raise Preempted(self.saved_step, number)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        keys = gathered(self.key)
        if len(set(keys)) > 1:
            raise UserError(f"The processes of this job were started with different configurations: {keys}.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_main_thread():  # after Lightning has set its own handler, under which several ranks hang
            for number in SIGNALS:
                signal.signal(number, self.note)
        self.step = self.asked_step = self.saved_step = trainer.global_step
        if self.unlogged:
            for logger in trainer.loggers:
                logger.log_metrics(self.unlogged, step=self.step - 1)

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.found is not None:
            restore_random_state(self.found[trainer.global_rank])
            self.found = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch or trainer.global_step == trainer.max_steps
        if trainer.global_step == self.step or last:
            return
        self.step = trainer.global_step
        wish = self.agreed(trainer)
        if wish != GO_ON:
            self.unlogged = step_metrics(trainer)
            self.save(trainer, pl_module)
        if wish == LEAVE:
            self.leave_if_asked()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if max(gathered(self.stopped_by)) and trainer.global_step != trainer.max_steps:
            self.step, self.unlogged = trainer.global_step, {}
            self.save(trainer, pl_module)
            self.leave_if_asked()

    def agreed(self, trainer: L.Trainer) -> int:
        """What all ranks do now. Several of them ask each other no oftener than they log: it costs a message."""
        due = time.monotonic() - self.saved >= self.every_seconds
        wish = LEAVE if self.stopped_by else SAVE if due else GO_ON
        if trainer.world_size == 1:
            return wish
        if self.every_seconds > 0 and self.step - self.asked_step < trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return GO_ON
        self.asked_step = self.step
        return int(max(gathered(wish)))

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LossWatch):
                callback.check(module)  # nothing is saved after a loss that was no number
        for logger in trainer.loggers:
            logger.save()
        best = trainer.checkpoint_callback
        assert isinstance(best, ModelCheckpoint)
        if trainer.is_global_zero:
            keep_best(best.best_model_path, self.path.parent)
        self.saving = True
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saving = False
        if trainer.is_global_zero:
            drop_kept(best.best_model_path, self.path.parent)
        self.saved = time.monotonic()
        self.saved_step = self.step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.saving:
            checkpoint["kd"] = {
                "key": self.key, "random": gathered(random_state()), "metrics": self.unlogged, "parts": self.parts,
            }  # fmt: skip

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.found, self.unlogged = checkpoint["kd"]["random"], checkpoint["kd"]["metrics"]
        resplit(checkpoint, self.parts)
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("ModelCheckpoint"):
                find_best(state, self.path.parent, trainer.is_global_zero)


def is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def step_metrics(trainer: L.Trainer) -> dict[str, float]:
    """What this step logs; nothing between two logging steps."""
    if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return {}
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    return found | {"epoch": trainer.current_epoch}


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
