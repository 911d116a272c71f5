"""One training: of the teacher on its task, or of the student under its teacher."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from kd.callbacks import LossWatch, Progress, RestoreBest, ValidateLastStep
from kd.checkpoint import LAST, WholeFiles, check
from kd.compilation import CompiledLayers
from kd.compilation import decide as compiles_layers
from kd.datamodule import TextDataModule
from kd.fast_dropout import TrainsWithFastDropout
from kd.fused_layers import TrainsFusedLayers
from kd.gradients import GradientWatch
from kd.last_state import LastState
from kd.lazy_embeddings import decide as updates_when_read
from kd.lit_module import DistillationModule, FrozenTeacher
from kd.losses import Loss
from kd.step_profile import StepProfile
from kd.tasks.base import Task
from kd.utilisation import StepClock


@dataclass
class FitSettings:
    """``trainer`` goes to Lightning's Trainer; ``optimizer`` makes an optimizer from parameter groups."""

    trainer: dict[str, Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    schedule_name: str
    warmup: float
    seed: int
    checkpoint_seconds: float = 300.0
    lazy_embeddings: bool | str = "auto"
    profile: bool = False  # kd.step_profile
    compile: str = "off"  # kd.compilation

    def passes(self, data: TextDataModule) -> float:
        """Over the training rows, that a training makes, whatever ends it."""
        epochs, steps, devices, nodes, accumulate = (
            int(self.trainer[key])
            for key in ("max_epochs", "max_steps", "devices", "num_nodes", "accumulate_grad_batches")
        )
        batches = len(data.batches(ranks=devices * nodes))
        return min(epochs, steps * accumulate / batches) if steps > 0 else epochs

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
    clock: StepClock


def optimizer_steps(trainer: L.Trainer, data: TextDataModule) -> int:
    """Of the whole training. Lightning's own estimate opens the data before it knows where a resumed run stands."""
    batches = len(data.batches(ranks=trainer.world_size))
    assert trainer.max_epochs is not None
    steps = math.ceil(batches / (trainer.accumulate_grad_batches // data.parts)) * trainer.max_epochs
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def tokens_of_a_step(trainer: L.Trainer, data: TextDataModule) -> float:
    """The mean over optimizer steps, of all ranks."""
    batches = len(data.batches(ranks=trainer.world_size)) * data.parts
    return float(data.splits["train"].lengths.sum()) / math.ceil(batches / trainer.accumulate_grad_batches)


@contextlib.contextmanager
def no_rank_left_behind(trainer: L.Trainer) -> Iterator[None]:
    """Ends the further processes of a job whose first one fails: they would wait for it in a collective, or for ever.

    They are taken off the list first, or Lightning's watch over them would kill this process, too.
    """
    try:
        yield
    except BaseException:
        processes = getattr(trainer.strategy.launcher, "procs", [])
        ended, processes[:] = list(processes), []
        for process in ended:
            process.kill()
            process.wait()
        raise


def make_trainer(
    settings: FitSettings, data: TextDataModule, directory: Path, loggers: Sequence[Any], callbacks: Sequence[Callback]
) -> tuple[L.Trainer, int]:
    """The trainer, and how many optimizer steps it will make."""
    accumulate = settings.trainer["accumulate_grad_batches"] * data.parts
    trainer = L.Trainer(
        **settings.trainer | {"accumulate_grad_batches": accumulate},
        default_root_dir=directory,
        logger=list(loggers) or False,
        callbacks=list(callbacks),
        plugins=[WholeFiles()],
        profiler=StepProfile(directory) if settings.profile else None,
        use_distributed_sampler=False,  # Batches deals the rows out itself
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    steps = optimizer_steps(trainer, data)
    # a short run's curve has some twenty points
    interval = max(1, min(int(settings.trainer["log_every_n_steps"]), steps // 20))
    trainer.log_every_n_steps = interval  # type: ignore[attr-defined]
    return trainer, steps


def fit(
    student: Any,
    task: Task,
    losses: dict[str, Loss],
    teacher: FrozenTeacher | None,
    data: TextDataModule,
    settings: FitSettings,
    directory: Path,
    key: str,
    title: str,
    loggers: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    gradients: GradientWatch | None = None,
    parts: int = 1,
) -> Fitted:
    """Trains ``student`` in place and leaves its best validated weights in it.

    Goes on from ``directory/checkpoints/last.ckpt`` if an earlier process left one of the same ``key``. A batch goes
    through the models in so many ``parts`` (kd.halving).
    """
    L.seed_everything(settings.seed, verbose=False)
    data.parts = parts
    checkpoints = directory / "checkpoints"
    last, watch = checkpoints / LAST, LossWatch()
    state = LastState(last, settings.checkpoint_seconds, key, parts)
    best = ModelCheckpoint(
        checkpoints, filename="best-step{step}", auto_insert_metric_name=False, monitor=f"val/{task.select}",
        mode="max" if task.higher_is_better else "min", save_weights_only=True, enable_version_counter=False,
    )  # fmt: skip
    clock = StepClock()
    own = [Progress(title), TrainsWithFastDropout(), watch, state, best, ValidateLastStep(), RestoreBest(), clock]
    trainer, steps = make_trainer(settings, data, directory, loggers, [*own, *callbacks])
    device, tokens = trainer.strategy.root_device.type, tokens_of_a_step(trainer, data)
    module = DistillationModule(
        student, task, losses, teacher, settings.optimizer, settings.schedule, steps, gradients,
        updates_when_read(settings.lazy_embeddings, student, settings.optimizer, device, tokens),
    )  # fmt: skip
    if last.is_file():
        check(last, key, trainer.world_size)
    compiles, why = compiles_layers(settings.compile, trainer.strategy.root_device, steps)
    trainer.callbacks.insert(0, CompiledLayers() if compiles else TrainsFusedLayers())  # type: ignore[attr-defined]
    if trainer.is_global_zero and settings.compile != "off":
        print(f"Compile: {'on' if compiles else 'off'}; {why}")
    with state.listening(), no_rank_left_behind(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=last if last.is_file() else None, weights_only=True)
    state.leave_if_asked()
    score = float(best.best_model_score) if best.best_model_score is not None else math.nan
    return Fitted(module, watch.curves, score, trainer.global_step, watch.seconds, trainer, clock)
