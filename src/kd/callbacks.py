"""When things happen during a fit: progress, the watch over the losses, the best weights, quantization."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from kd import quantization
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.lit_module import DistillationModule
from kd.quantization import Converted
from kd.schemes import Settings

Schedule = Callable[[Optimizer, int], LRScheduler]


class Progress(Callback):
    """One bar for the whole fit, with rate and time left; on a file it writes a line every half minute."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm[Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        seconds = 0.1 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(
            total=pl_module.steps,
            desc=self.title,
            unit="step",
            disable=not trainer.is_global_zero,
            mininterval=seconds,
            maxinterval=2 * seconds,
            initial=trainer.global_step,  # after resuming the rate counts what is done now
        )

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        assert self.bar is not None
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.bar is not None and isinstance(pl_module, DistillationModule):
            name = pl_module.task.select
            self.bar.set_postfix_str(f"validation {name} {trainer.callback_metrics[f'val/{name}']:.4f}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class LossWatch(Callback):
    """Keeps the loss curves and the time for the report and stops at a loss that is not a number.

    Reads the device at logging intervals only, and before anything is saved.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.curves: dict[str, list[tuple[int, float]]] = {}
        self.earlier = 0.0  # seconds, of the processes before this one
        self.start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.start

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "curves": self.curves, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen, self.curves, self.earlier = (state_dict[name] for name in ("seen", "curves", "seconds"))

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.global_step != self.seen:  # type: ignore[attr-defined]
            self.seen = trainer.global_step
            self.check(pl_module)
            for name, value in trainer.callback_metrics.items():
                if name.startswith("train/loss"):
                    self.curves.setdefault(name, []).append((trainer.global_step, float(value)))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.check(pl_module)

    def check(self, module: L.LightningModule) -> None:
        assert isinstance(module, DistillationModule)
        steps = torch.stack(list(module.first_bad.values()))
        if module.trainer.world_size > 1:  # all ranks stop, not only the one that saw it
            torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MAX)
        bad = {name: step for name, step in zip(module.first_bad, steps.tolist(), strict=True) if step >= 0}
        if bad:
            term = min(bad, key=bad.__getitem__)
            raise UserError(
                f"The loss term {term!r} was not a finite number at step {bad[term] + 1}; training stopped there, and "
                f"nothing after it was saved. Usual causes: a learning rate that is too high (optimizer.lr), "
                f"a weight that is too high (method.{term}.weight), or overflow in 16-mixed precision."
            )


class ValidateLastStep(Callback):
    """Validates also where ``max_steps`` ends in the middle of an epoch: only what was validated is saved."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.val_check_batch = 1


class RestoreBest(Callback):
    """Puts the best validated weights back when the fit ends."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if path:
            state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
            pl_module.load_state_dict(state)


class QuantizationCallback(Callback):
    """Fake quantization before the optimizer exists; a converted copy at the end. Comes after RestoreBest.

    The student that trains stays a float model, and so do its checkpoints. Until ``start_step`` it trains in float;
    it is validated with fake quantization from the beginning, so that the best checkpoint is the best quantized one.
    From that step on the learning rate is multiplied by ``learning_rate_scale``.
    """

    def __init__(self, settings: Settings, rows: TextDataModule) -> None:
        self.settings = settings
        self.rows = rows
        self.started = False
        self.result: Converted | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, DistillationModule)
        if self.settings.start_step >= pl_module.steps:
            raise UserError(
                f"quant.start_step={self.settings.start_step}: the training has {pl_module.steps} steps, so nothing "
                "would be trained with fake quantization. Take a smaller one, or the scheme without _qat."
            )
        quantization.prepare(pl_module.student, self.settings)
        self.calibrate(pl_module)
        pl_module.schedule = self.scaled(pl_module.schedule)

    def calibrate(self, module: DistillationModule) -> None:
        """Ranges of activations as they are now, if the scheme has such."""
        if self.settings.calibration_rows:
            quantization.switch(module.student, True)
            batches = self.rows.calibration_batches(self.settings.calibration_rows)
            quantization.calibrate(module.student, self.settings, batches)

    def scaled(self, schedule: Schedule) -> Schedule:
        """The schedule, its learning rates multiplied from start_step on."""
        start, scale = self.settings.start_step, self.settings.learning_rate_scale

        def from_start(rate: Callable[[int], float]) -> Callable[[int], float]:
            return lambda step: rate(step) * (scale if step >= start else 1.0)

        def scaled_schedule(optimizer: Optimizer, steps: int) -> LRScheduler:
            scheduler = schedule(optimizer, steps)
            assert isinstance(scheduler, LambdaLR)
            return LambdaLR(optimizer, [from_start(rate) for rate in scheduler.lr_lambdas])

        return schedule if scale == 1.0 else scaled_schedule

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DistillationModule)
        if not self.started and trainer.global_step >= self.settings.start_step:
            if trainer.global_step == self.settings.start_step > 0:  # the weights have moved since setup
                self.calibrate(pl_module)
                pl_module.student.train()
            self.started = True
        quantization.switch(pl_module.student, self.started)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        quantization.switch(pl_module.student, True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, DistillationModule)
        quantization.switch(pl_module.student, True)
        self.result = quantization.convert(pl_module.student, self.settings)
