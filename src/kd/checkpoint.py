"""The state of a training on disk: saved now and then and at SIGTERM, and what is needed to go on bit by bit alike."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from kd.callbacks import LossWatch
from kd.errors import Preempted, UserError

LAST = "last.ckpt"
GO_ON, SAVE, LEAVE = 0, 1, 2  # what the ranks agree on; the highest wish wins


class WholeFiles(TorchCheckpointIO):
    """Writes beside the place and renames: a process killed while saving leaves the checkpoint of before.

    Lightning's own way goes through the directory for temporary files, which may lie on another disk; the move from
    there is a copy that can be cut off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # a full disk then is an OSError of ours, not a RuntimeError of the zip writer
        unfinished = place.with_name(f".{place.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(place)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            error.filename = str(place)  # a full disk is met while writing, and then has no name
            raise


def steps_done(directory: Path) -> int:
    """The optimizer steps in the last saved state below ``directory``; 0 if there is none."""
    path = directory / "checkpoints" / LAST
    return int(read(path)["global_step"]) if path.is_file() else 0


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, its tensors left on the disk. Raises UserError for a broken file."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): the file is broken. Delete it to begin this training "
            "anew from step 0."
        ) from error
    return state


def check(path: Path, key: str, ranks: int) -> None:
    """Raises UserError for a checkpoint that other settings, other data or another number of devices left."""
    ours = read(path).get("kd", {})
    if ours.get("key") != key:
        raise UserError(
            f"{path} was saved by a run of another configuration than the config.yaml beside it says, or the data have "
            "changed since. Give resume= the directory that this checkpoint comes from, or delete the checkpoint to "
            "begin at step 0."
        )
    if len(ours["random"]) != ranks:
        raise UserError(
            f"{path} was saved by {len(ours['random'])} processes, this is a run of {ranks}: resume it with as many "
            "devices as before."
        )


def random_state() -> dict[str, Any]:
    """All generators of this process, as what ``torch.load(weights_only=True)`` reads back."""
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [name, np.asarray(keys).tolist(), *rest]
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy_state}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextlib.contextmanager
def sigterm_noted() -> Iterator[list[int]]:
    """A list that is no longer empty once SIGTERM has arrived. Only the main thread can listen."""
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived
        return
    before = signal.signal(signal.SIGTERM, lambda number, _frame: arrived.append(number))
    try:
        yield arrived
    finally:
        signal.signal(signal.SIGTERM, before)


class LastState(Callback):
    """Saves ``last.ckpt`` every so many seconds and at SIGTERM, and puts back what Lightning leaves out.

    Lightning's checkpoint holds the weights, the optimizer, the schedule, the counters and the states of callbacks;
    here the random generators of every rank are added, and the key of the configuration. It is saved only after an
    optimizer step that is not an epoch's last: from there Lightning would go on without that epoch's validation.

    Args:
        path: of the checkpoint.
        every_seconds: between two of them; 0: after every step.
        key: a hash of what determines the training; equal on all ranks, and on resuming.
    """

    def __init__(self, path: Path, every_seconds: float, key: str) -> None:
        self.path = path
        self.every_seconds = every_seconds
        self.key = key
        self.saved = time.monotonic()
        self.step = 0  # done
        self.saved_step = 0
        self.saving = False
        self.found: list[dict[str, Any]] | None = None  # random states to be put back
        self.unlogged: dict[str, float] = {}  # the metrics of the last step, which Lightning logs after the saving
        self.signals = contextlib.ExitStack()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        keys = gathered(self.key)
        if len(set(keys)) > 1:
            raise UserError(f"The processes of this job were started with different configurations: {keys}.")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After Lightning has set its own handler, under which several ranks hang.
        self.arrived = self.signals.enter_context(sigterm_noted())
        self.step = self.saved_step = trainer.global_step
        if self.unlogged:
            for logger in trainer.loggers:
                logger.log_metrics(self.unlogged, step=self.step - 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if max(gathered(len(self.arrived))):  # too late for this process to save again, and the report takes long
            raise Preempted(self.saved_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.signals.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.signals.close()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if self.found is not None:
            restore_random_state(self.found[trainer.global_rank])
            self.found = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step or trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        self.step = trainer.global_step
        wish = self.agreed(trainer)
        if wish != GO_ON:
            self.save(trainer, pl_module)
        if wish == LEAVE:
            raise Preempted(self.saved_step)

    def agreed(self, trainer: L.Trainer) -> int:
        """What all ranks do now. Several of them ask each other at logging steps only: it costs a message."""
        due = time.monotonic() - self.saved >= self.every_seconds
        wish = LEAVE if self.arrived else SAVE if due else GO_ON
        if trainer.world_size == 1:
            return wish
        if self.every_seconds > 0 and self.step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return GO_ON
        return int(max(gathered(wish)))

    def save(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, LossWatch):
                callback.check(module)  # nothing is saved after a loss that was no number
        for logger in trainer.loggers:
            logger.save()
        self.saving = True
        trainer.save_checkpoint(self.path, weights_only=False)
        self.saving = False
        self.saved = time.monotonic()
        self.saved_step = self.step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.saving:
            checkpoint["kd"] = {"key": self.key, "random": gathered(random_state()), "metrics": step_metrics(trainer)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.found, self.unlogged = checkpoint["kd"]["random"], checkpoint["kd"]["metrics"]
        for name, state in checkpoint["callbacks"].items():
            if name.startswith("ModelCheckpoint"):
                move(state, self.path.parent)


def step_metrics(trainer: L.Trainer) -> dict[str, float]:
    """What this step logs; nothing between two logging steps."""
    if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
        return {}
    found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
    return found | {"epoch": trainer.current_epoch}


def move(state: dict[str, Any], directory: Path) -> None:
    """The best checkpoint lies beside the last one, also where the run directory was moved or copied."""
    state["dirpath"] = str(directory)
    if state["best_model_path"]:
        state["best_model_path"] = str(directory / Path(state["best_model_path"]).name)


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in their order."""
    if not torch.distributed.is_initialized():
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
