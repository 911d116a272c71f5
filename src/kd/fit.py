"""One training: of the teacher on its task, or of the student under its teacher."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from kd.callbacks import LossWatch, Progress, RestoreBest, ValidateLastStep
from kd.datamodule import TextDataModule
from kd.lit_module import DistillationModule, FrozenTeacher
from kd.losses import Loss
from kd.tasks.base import Task


@dataclass
class FitSettings:
    """``trainer`` goes to Lightning's Trainer; ``optimizer`` makes an optimizer from parameter groups."""

    trainer: dict[str, Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule_name: str
    warmup: float
    seed: int

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        from transformers import get_scheduler

        name = "constant_with_warmup" if self.schedule_name == "constant" else self.schedule_name
        scheduler: torch.optim.lr_scheduler.LRScheduler = get_scheduler(
            name, optimizer, num_warmup_steps=math.ceil(self.warmup * steps), num_training_steps=steps
        )
        return scheduler


@dataclass
class Fitted:
    module: DistillationModule
    curves: dict[str, list[tuple[int, float]]]
    best_score: float
    steps: int
    seconds: float
    trainer: L.Trainer


def log_interval(options: dict[str, Any], data: TextDataModule) -> int:
    """``log_every_n_steps``, or less for a short run, whose curve has some twenty points then."""
    batches = len(data.batches(ranks=options["devices"] if isinstance(options["devices"], int) else 1))
    steps: int = math.ceil(batches / options["accumulate_grad_batches"]) * options["max_epochs"]
    if options["max_steps"] > 0:
        steps = min(steps, options["max_steps"])
    return max(1, min(int(options["log_every_n_steps"]), steps // 20))


def fit(
    student: Any,
    task: Task,
    losses: dict[str, Loss],
    teacher: FrozenTeacher | None,
    data: TextDataModule,
    settings: FitSettings,
    directory: Path,
    title: str,
    loggers: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
) -> Fitted:
    """Trains ``student`` in place and leaves its best validated weights in it."""
    L.seed_everything(settings.seed, verbose=False)
    module = DistillationModule(student, task, losses, teacher, settings.optimizer, settings.schedule)
    watch = LossWatch(log_interval(settings.trainer, data))
    checkpoint = ModelCheckpoint(
        directory / "checkpoints", filename="best-step{step}", auto_insert_metric_name=False,
        monitor=f"val/{task.select}", mode="max",
    )  # fmt: skip
    options = settings.trainer | {"log_every_n_steps": watch.interval}
    trainer = L.Trainer(
        **options,
        default_root_dir=directory,
        logger=list(loggers) or False,
        callbacks=[Progress(title), watch, checkpoint, ValidateLastStep(), RestoreBest(), *callbacks],
        use_distributed_sampler=False,  # Batches deals the rows out itself
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=data)
    seconds = time.perf_counter() - start
    score = float(checkpoint.best_model_score) if checkpoint.best_model_score is not None else math.nan
    return Fitted(module, watch.curves, score, trainer.global_step, seconds, trainer)
