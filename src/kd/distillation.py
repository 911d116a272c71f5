"""The trainings of one run: of the student, and one more for each quantization scheme that is trained beside it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from kd import loggers
from kd.callbacks import QuantizationCallback
from kd.checkpoint import steps_done, steps_logged
from kd.datamodule import TextDataModule
from kd.fit import FitSettings, Fitted, fit
from kd.gradients import GradientWatch
from kd.halving import within_memory
from kd.lit_module import FrozenTeacher
from kd.losses import Loss
from kd.quantization import Converted
from kd.resume import settings_key
from kd.schemes import Settings
from kd.store import content_key
from kd.tasks import Task


@dataclass
class Distillation:
    """What the trainings have in common. Each starts from the same student, seed and losses.

    A scheme of several is trained in a directory of its own, and what comes out is what ``quant=NAME`` alone gives.
    """

    cfg: DictConfig
    student: Any
    task: Task
    losses: dict[str, Loss]
    teacher: FrozenTeacher | None
    rows: TextDataModule
    settings: FitSettings
    logs: loggers.Logs

    def train(self, scheme: Settings | None, of_the_run: bool = False) -> tuple[Fitted, Converted | None]:
        """The student, with fake quantization by ``scheme`` if there is one, and what it was converted to.

        The training ``of_the_run`` is the one whose float student is kept and whose logs lie in the run directory.
        """
        cfg, output = self.cfg, Path(self.cfg.paths.output)
        stage, title = "distil", f"Distilling {cfg.student.name} ({cfg.method.name})"
        if scheme is not None:
            title += f", {scheme.name}"
        if scheme is not None and not of_the_run:
            stage = f"qat/{scheme.name}"
            output /= stage
        key = content_key(settings=settings_key(cfg), data=self.rows.key)
        done = steps_done(output, key)
        if cfg.resume is not None:
            print(
                f"Resuming: {done} steps were done before"
                if done
                else "Resuming: no step was saved yet, it begins at 0"
            )
        balance = cfg.method.balance == "gradnorm"

        def once(parts: int) -> tuple[Fitted, Converted | None]:
            callback = QuantizationCallback(scheme, self.rows) if scheme else None
            fitted = fit(
                copy.deepcopy(self.student), self.task, copy.deepcopy(self.losses), self.teacher, self.rows,
                self.settings, output, key, title, self.logs.open(stage, steps_logged(output)),
                [callback] if callback else [], GradientWatch(balance) if balance or cfg.method.diagnose else None,
                parts,
            )  # fmt: skip
            return fitted, callback.result if callback else None

        several = (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1)
        return within_memory(once, output, self.rows.most_rows, several, self.rows.tokens_per_batch)
