"""The training step: student signals and teacher signals into weighted losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from kd.losses.base import Batch, Loss, Signals
from kd.signals import Recorder
from kd.tasks.base import Task


class FrozenTeacher:
    """A teacher outside every module tree: in no checkpoint, no optimizer, no DDP; always in eval mode."""

    def __init__(self, model: Any, signals: tuple[str, ...]) -> None:
        self.model = model.requires_grad_(False).eval()
        self.recorder = Recorder(model, signals)

    def to(self, device: torch.device) -> None:
        self.model.to(device)

    @torch.no_grad()  # not inference_mode: its tensors cannot take part in the student's backward pass
    def __call__(self, inputs: dict[str, Tensor]) -> Signals:
        return self.recorder(**inputs)


class DistillationModule(L.LightningModule):
    """Trains ``student`` with the weighted sum of ``losses``; ``teacher`` may be None if no loss asks for it.

    Args:
        student: a transformers model with a head.
        task: metrics and the name of the metric that selects a checkpoint.
        losses: set-up loss terms; the name is the log key ``train/loss/<name>``.
        teacher: anything callable from encoded inputs to the signals that the losses need.
        optimizer: from parameter groups to an optimizer; biases and norms are in a group without weight decay.
        schedule: from ``(optimizer, steps)`` to a learning-rate scheduler stepped every step.
    """

    teacher: FrozenTeacher | None
    terms: dict[str, Loss]

    def __init__(
        self, student: Any, task: Task, losses: dict[str, Loss], teacher: FrozenTeacher | None,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler],
    ) -> None:  # fmt: skip
        super().__init__()
        self.student = student
        self.task = task
        self.losses = nn.ModuleDict(losses)  # for their projections
        self.__dict__["terms"] = losses
        self.__dict__["teacher"] = teacher  # past nn.Module's registration
        self.recorder = Recorder(student, ("logits", *(s for loss in losses.values() for s in loss.student_signals)))
        self.metrics = task.metrics()
        self.optimizer = optimizer
        self.schedule = schedule

    def on_fit_start(self) -> None:
        self.student.train()  # from_pretrained gives eval mode, and Lightning keeps it
        if self.teacher is not None:
            self.teacher.to(self.device)
        self.first_bad = {name: torch.tensor(-1, device=self.device) for name in self.losses}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        student = self.recorder(**batch["student"])
        teacher = {} if self.teacher is None else self.teacher(batch["teacher"])
        total = torch.zeros((), device=self.device)
        for name, loss in self.terms.items():
            value, count = loss(student, teacher, batch)
            self.note(name, value / count)
            total = total + loss.weight * value / batch["totals"][loss.unit]
        # Lightning averages over accumulated batches and ranks; the totals above already divide by all of them
        total = total * (self.trainer.world_size * self.trainer.accumulate_grad_batches)
        self.log("train/loss", total)
        return total

    def note(self, name: str, value: Tensor) -> None:
        """Logs a term and remembers, on the device, the first step at which it was not finite."""
        self.log(f"train/loss/{name}", value.detach())
        bad = ~torch.isfinite(value.detach()) & (self.first_bad[name] < 0)
        self.first_bad[name] = torch.where(bad, self.trainer.global_step, self.first_bad[name])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.metrics.update(self.student(**batch["student"]).logits.float(), batch["labels"])

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.metrics.compute().items()})
        self.metrics.reset()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or float("inf"))
        self.log("train/grad_norm", norm)
        self.log("train/lr", torch.full((), optimizer.param_groups[0]["lr"], device=self.device))

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = self.optimizer(groups)
        scheduler = self.schedule(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
