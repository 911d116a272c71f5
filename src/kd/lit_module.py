"""The training step: student signals and teacher signals into weighted losses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from kd.errors import OtherStepsError
from kd.gradients import GradientWatch
from kd.kept_signals import completed
from kd.lazy_rows import LazyAdamW, LazyRows
from kd.losses.base import Batch, Loss, Signals
from kd.signals import Recorder
from kd.tasks.base import Task
from kd.units import logits_at


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
        teacher: anything callable from encoded inputs to the signals that the losses need, where batches carry none.
        optimizer: from parameter groups to an optimizer; biases and norms are in a group without weight decay.
        schedule: from ``(optimizer, steps)`` to a learning-rate scheduler stepped every step.
        steps: of the optimizer, in the whole training.
        lazy: the word embeddings' rows are updated when they are read; ``optimizer`` then is a partial of AdamW.
        gradients: looks at each term's share of the gradient, and may balance the weights by it.
    """

    teacher: FrozenTeacher | None
    terms: dict[str, Loss]

    def __init__(
        self, student: Any, task: Task, losses: dict[str, Loss], teacher: FrozenTeacher | None,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[[torch.optim.Optimizer, int], torch.optim.lr_scheduler.LRScheduler], steps: int,
        gradients: GradientWatch | None = None, lazy: bool = False,
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
        self.steps = steps
        self.gradients = gradients
        self.lazy = lazy
        self.rows: LazyRows | None = None  # once there is an optimizer

    def setup(self, stage: str) -> None:
        self.student.get_input_embeddings().sparse = self.lazy  # before DDP asks which gradients are sparse

    def on_fit_start(self) -> None:
        if self.trainer.global_rank > 0:  # dropout of its own; the first rank's is that of a run on one device
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)
        self.student.train()  # from_pretrained gives eval mode, and Lightning keeps it
        if self.teacher is not None:
            self.teacher.to(self.device)
        self.sums = torch.zeros((), device=self.device)  # of the terms and their counts, in this step so far
        self.first_bad = {name: torch.tensor(-1, device=self.device) for name in self.losses}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        part = self.trainer.profiler.profile  # type: ignore[attr-defined]  # of the step, for kd.step_profile
        with part("student"):
            student = self.recorder(**batch["student"])
        with part("teacher"):
            teacher = self.taught(batch)
        found, means = {}, {}
        # losses take what they are given as float32
        with part("losses"), torch.autocast(self.device.type, enabled=False):
            for name, loss in self.terms.items():
                loss.at(self.trainer.global_step / self.steps)
                found[name] = loss(student, teacher, batch)
                means[name] = found[name][0] / batch["totals"][loss.unit]
        self.watch(means, batch_idx)
        total = torch.stack([self.weight(name) * mean for name, mean in means.items()]).sum()
        with part("logging"):
            weightless = math.isinf(batch["totals"]["examples"])  # a row that fills a part up (kd.halving)
            self.note({name: (value.detach(), count) for name, (value, count) in found.items()}, batch_idx, weightless)
        # Lightning averages over accumulated batches and ranks; the totals above already divide by all of them
        return total * (self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def taught(self, batch: Batch) -> Signals:
        """What the losses need of the teacher: kept with the rows, or computed now."""
        if "signals" in batch:
            return completed(batch["signals"], {s for loss in self.terms.values() for s in loss.teacher_signals})
        return {} if self.teacher is None else self.teacher(batch["teacher"])

    def weight(self, name: str) -> float:
        """A term's at this step."""
        return self.terms[name].weight * (1.0 if self.gradients is None else self.gradients.factor(name))

    def watch(self, means: dict[str, Tensor], batch_idx: int) -> None:
        """Looks at the terms' gradients, where that was asked for and is due."""
        step, weights = self.trainer.global_step, {name: loss.weight for name, loss in self.terms.items()}
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        if self.gradients is None or not self.gradients.due(step, first, weights):
            return
        self.gradients.look(means, weights, [p for p in self.student.parameters() if p.requires_grad])
        for warning in self.gradients.warnings(step) if self.trainer.is_global_zero else ():
            print(f"\n{warning}")
        self.log_dict({f"train/gradient/{n}": self.weight(n) * norm for n, norm in self.gradients.norms.items()})

    def note(self, found: dict[str, tuple[Tensor, Tensor]], batch_idx: int, weightless: bool) -> None:
        """Remembers, on the device, the first step at which a term was not finite; logs means over the global batch.

        With accumulation the last of a step's batches logs what the step is about, over those before it.
        """
        for name, (value, _) in found.items():
            bad = ~torch.isfinite(value) & (self.first_bad[name] < 0)
            self.first_bad[name] = torch.where(bad, self.trainer.global_step, self.first_bad[name])
        if not self.logs_this_step():
            return
        sums = torch.stack([torch.stack(pair) for pair in found.values()])
        if weightless:
            sums = torch.zeros_like(sums)
        if batch_idx % self.trainer.accumulate_grad_batches:
            sums = sums + self.sums
        self.sums = sums.clone()
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(sums)
        means = dict(zip(found, sums[:, 0] / sums[:, 1].clamp(min=1), strict=True))
        self.log_dict({f"train/loss/{name}": mean for name, mean in means.items()})
        self.log_dict({f"train/weight/{name}": self.weight(name) for name in self.terms if self.changes(name)})
        self.log("train/loss", torch.stack([self.weight(name) * mean for name, mean in means.items()]).sum())

    def logs_this_step(self) -> bool:
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0  # type: ignore[attr-defined,no-any-return]

    def changes(self, name: str) -> bool:
        """Whether a term's weight is another one at other steps."""
        return "weight" in self.terms[name].schedules or (self.gradients is not None and self.gradients.balance)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = logits_at(self.student, **batch["student"]).float()
        labels = batch["labels"]
        if self.task.scored_against_teacher:
            assert self.teacher is not None
            labels = self.teacher(batch["teacher"])["logits"].float()
        self.metrics.update(self.task.digest(logits, labels), labels)

    def on_validation_start(self) -> None:
        if self.rows is not None:
            self.rows.flush()

    def on_train_end(self) -> None:
        if self.rows is not None:
            self.rows.detach()

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self.metrics.compute().items()})
        self.metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.gradients is not None:
            checkpoint["gradients"] = self.gradients.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        lazy = "rows" in checkpoint["optimizer_states"][0]
        if lazy != self.lazy:
            raise OtherStepsError(
                f"The run was saved with word embeddings updated {'when they are read' if lazy else 'at every step'}, "
                "which this machine does not do with trainer.lazy_embeddings as it is: resume it where it ran."
            )
        if self.gradients is not None:
            self.gradients.load_state_dict(checkpoint["gradients"])

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # not self.parameters(): walking all modules takes longer than looking at the gradients of a small student
        trained = (p for group in optimizer.param_groups for p in group["params"])
        parameters: list[Tensor] = [p for p in trained if p.grad is not None]
        if self.rows is not None:
            parameters = [p for p in parameters if p is not self.rows.table] + self.rows.touched()
        if gradient_clip_val or self.logs_this_step():
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            # on a CPU the norm is there to be looked at, and most gradients need no clipping
            if gradient_clip_val and not (norm.device.type == "cpu" and norm + 1e-6 <= gradient_clip_val):
                torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
            if self.logs_this_step():
                self.log("train/grad_norm", norm)
                self.log("train/lr", torch.full((), optimizer.param_groups[0]["lr"], device=self.device))

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self.lazy:
            assert isinstance(self.optimizer, functools.partial)
            optimizer: torch.optim.Optimizer = LazyAdamW(groups, **self.optimizer.keywords)
            self.rows = optimizer.attach(self.student.get_input_embeddings())  # type: ignore[attr-defined]
        else:
            optimizer = self.optimizer(groups)
        scheduler = self.schedule(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
