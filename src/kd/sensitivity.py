"""Which layers suffer from quantization: the score lost when each one alone is quantized, and which to keep float."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kd import quantization
from kd.datamodule import TextDataModule
from kd.report import logits_of
from kd.schemes import Settings
from kd.table import markdown_table
from kd.tasks import Task

NEAR = 0.997  # of the float student's score: a quantized student with that needs no more float layers
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Loss:
    """What quantizing some layers costs on validation: the score they lose, the share of answers that change."""

    layers: tuple[str, ...]
    score: float  # in units of the task's metric; above 0 is worse
    changed: float
    retention: float

    @property
    def badness(self) -> tuple[float, float]:
        return self.score, self.changed


@dataclass
class Sensitivity:
    """Scores partly quantized copies of the float ``student`` on validation; ``labels`` are what counts there."""

    student: Any
    settings: Settings
    rows: TextDataModule
    task: Task
    labels: Tensor

    def __post_init__(self) -> None:
        self.layers = quantization.layers_to_quantize(self.student, self.settings).quantized
        self.answers, self.score = self.scored(self.student, "float")

    def scored(self, model: Any, title: str) -> tuple[Tensor, float]:
        logits = logits_of(model, self.rows, "validation", "student", self.task, CPU, f"Sensitivity: {title}")
        decision = self.task.decide(logits, self.labels)
        metrics = self.task.metrics(decision)
        metrics.update(logits, self.labels)
        return self.task.answers(logits, decision), float(metrics.compute()[self.task.select])

    def lost(self, layers: Sequence[str]) -> Loss:
        """By quantizing these layers and no others."""
        others = tuple(name for name in self.layers if name not in layers)
        settings = replace(self.settings, keep_float=(*self.settings.keep_float, *others))
        rows = self.settings.calibration_rows
        batches = self.rows.calibration_batches(rows) if rows else None
        answers, score = self.scored(quantization.convert(self.student, settings, batches)[0], layers[0])
        lost = self.score - score if self.task.higher_is_better else score - self.score
        changed = 1 - self.task.agreement(answers, self.answers)
        return Loss(tuple(layers), lost, changed, self.task.retention(score, self.score))

    def of_layers(self) -> list[Loss]:
        """Of each layer alone, the worst first."""
        return sorted((self.lost([name]) for name in self.layers), key=lambda loss: loss.badness, reverse=True)

    def kept(self, found: Sequence[Loss], say: Callable[[str], None] = print) -> Settings:
        """Settings that keep as many of the worst layers float as it takes for NEAR of the float student's score.

        At most half of them: with more there is little left to gain from the scheme.
        """
        names = [loss.layers[0] for loss in found]
        for count in range(len(names) // 2 + 1):
            whole = self.lost(names[count:])
            if whole.retention >= NEAR:
                break
        kept = tuple(names[:count])
        say(
            f"quant.keep_float=auto ({self.settings.name}): {', '.join(kept) or 'no layer'} kept float, with "
            f"{100 * whole.retention:.2f} % of the float student's validation {self.task.select}"
        )
        return replace(self.settings, keep_float=(*self.settings.keep_float, *kept))


def table(found: Sequence[Loss], select: str) -> str:
    """In markdown, the worst layer first."""
    header = ["layer", f"validation {select} lost", "answers changed"]
    return markdown_table(
        header, [[loss.layers[0], f"{loss.score:+.4f}", f"{100 * loss.changed:.2f} %"] for loss in found]
    )
