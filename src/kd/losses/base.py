"""What a loss is to the rest of kd."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kd.errors import UserError
from kd.schedules import Schedule
from kd.tasks.base import Task

Signals = dict[str, Tensor]
Batch = dict[str, Any]
UNITS = {"examples": "rows", "tokens": "tokens", "labels": "labels", "logits": "compared outputs"}  # for people


class Loss(nn.Module):
    """One weighted term. A subclass sets ``unit`` and its signals in ``setup`` and computes ``forward``.

    ``forward(student, teacher, batch)`` gives ``(sum, count)``: the unweighted float32 sum over the units of this
    batch and how many there are. The module divides the sum by the number of units in the *global* batch (all ranks,
    all accumulation steps), found in ``batch["totals"][unit]``. So ``unit`` is part of the contract:

    * ``"examples"``: rows; also batch-coupled losses, which give their batch value times B, and B.
    * ``"tokens"``: real (unpadded) tokens of the student's encoding.
    * ``"labels"`` and ``"logits"``: what the task has a label for, and where its logits are compared (kd.units).

    ``formula`` is, for people, what the loss of one unit is: every constant, and every sum or mean inside it.
    """

    unit: str = "examples"
    formula: str

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not weight > 0:
            raise UserError(f"{type(self).__name__}: weight={weight} must be above 0; leave the term out instead.")
        self.weight = weight
        self.schedules: dict[str, tuple[float, Schedule]] = {}
        self.student_signals: tuple[str, ...] = ()
        self.teacher_signals: tuple[str, ...] = ()

    def setup(self, student_config: Any, teacher_config: Any, task: Task) -> None:
        """Validates against both models' transformers configs, builds projections, fixes signals and ``formula``."""
        raise NotImplementedError

    def follow(self, schedules: Mapping[str, Schedule]) -> None:
        """Lets ``weight`` and ``temperature`` change while training."""
        self.schedules = {name: (getattr(self, name), schedule) for name, schedule in schedules.items()}

    def at(self, share: float) -> None:
        """Called before each step: ``share`` (0 to 1) of the training is done."""
        for name, (value, schedule) in self.schedules.items():
            setattr(self, name, value * schedule.factor(share))

    def described(self) -> str:
        """The whole term, but for its name: weight, what is averaged, over what, and what changes."""
        changes = "".join(f"; {name} {schedule}" for name, (_, schedule) in self.schedules.items())
        weight = self.schedules["weight"][0] if "weight" in self.schedules else self.weight  # not as it has become
        return f"{weight:g} * mean over {UNITS[self.unit]} of {self.formula}{changes}"

    def forward(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Projection(nn.Linear):
    """In the precision of its weights, whatever the states': losses do not run under autocast."""

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.to(self.weight.dtype))


def projection(student_width: int, teacher_width: int, project: bool, bias: bool = False) -> nn.Module:
    """The student's states in the teacher's width: identity where they agree, else a learned map.

    Raises UserError if there would have to be a map and ``project`` forbids it. The map starts with orthonormal
    rows or columns, so that lengths and angles survive at the first step.
    """
    if student_width == teacher_width:
        return nn.Identity()
    if not project:
        raise UserError(
            f"project=false, but the student is {student_width} wide and its teacher {teacher_width}: their states "
            "cannot be compared. Take a student as wide as its teacher, or project=true."
        )
    linear = Projection(student_width, teacher_width, bias)
    nn.init.orthogonal_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def layers_of(pairs: Sequence[tuple[int, int]]) -> str:
    """For ``formula``: which student layer is compared with which of the teacher's."""
    return "layers student~teacher " + ", ".join(f"{student}~{teacher}" for student, teacher in pairs)


def above_zero(name: str, value: float) -> float:
    """The value of an argument that has to be so."""
    if not value > 0:
        raise UserError(f"{name}={value} must be above 0.")
    return value


def count_of(tensor: Tensor) -> Tensor:
    """The number of rows, as a tensor on the same device."""
    return torch.full((), float(len(tensor)), device=tensor.device)  # made there: no copy to wait for
