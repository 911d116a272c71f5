"""How a loss term's weight or temperature changes while training: factors over the share of it that is done.

Torch is not imported here, so that a wrong schedule is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kd.errors import UserError, nearest

KEYS = {"weight_schedule": "weight", "temperature_schedule": "temperature"}  # of a term, beside its arguments
WORDS: dict[str, dict[str, Any]] = {
    "constant": {"name": "linear", "start": 1.0, "end": 1.0},
    "linear_up": {"name": "linear", "start": 0.0, "end": 1.0},
    "linear_down": {"name": "linear", "start": 1.0, "end": 0.0},
    "cosine": {"name": "cosine", "start": 1.0, "end": 0.0},
}
FIELDS = {"linear": ("start", "end"), "cosine": ("start", "end"), "step": ("at", "factors")}


@dataclass(frozen=True)
class Schedule:
    """Piece by piece: ``factors[i]`` from the share ``at[i - 1]`` on; or from ``factors[0]`` to ``factors[1]``."""

    name: str
    factors: tuple[float, ...]
    at: tuple[float, ...] = ()

    def factor(self, share: float) -> float:
        """What to multiply with when ``share`` (0 to 1) of the optimizer steps is done."""
        if self.name == "step":
            return self.factors[sum(share >= border for border in self.at)]
        start, end = self.factors
        passed = share if self.name == "linear" else (1 - math.cos(math.pi * share)) / 2
        return start + (end - start) * passed

    def __str__(self) -> str:
        if self.name == "step":
            then = [f"{factor:g} from {border:.0%}" for border, factor in zip(self.at, self.factors[1:], strict=True)]
            return f"times {self.factors[0]:g}, {', '.join(then)} of the steps"
        return f"times {self.factors[0]:g} to {self.factors[1]:g}, {self.name}"


def schedules_of(term: str, settings: Mapping[str, Any]) -> dict[str, Schedule]:
    """What changes while training, by attribute, of the settings of one term; ``term`` is their key."""
    found = {}
    for key, attribute in KEYS.items():
        if settings.get(key) is None:
            continue
        if attribute not in settings:
            raise UserError(f"{term}.{key}: this term has no {attribute}. Leave the schedule out.")
        found[attribute] = schedule(f"{term}.{key}", settings[key])
    return found


def schedule(key: str, given: Any) -> Schedule:
    """From a word of WORDS or a mapping with ``name`` and FIELDS. Raises UserError, naming ``key``."""
    if isinstance(given, str) and given not in WORDS:
        raise UserError(f"{key}={given}:{nearest(given, WORDS)} Known: {', '.join(WORDS)}, or {examples()}.")
    fields = WORDS[given] if isinstance(given, str) else given
    if not isinstance(fields, Mapping) or str(fields.get("name")) not in FIELDS:
        raise UserError(f"{key}={given}: give one of {', '.join(WORDS)}, or {examples()}.")
    name = str(fields["name"])
    if {*fields} != {"name", *FIELDS[name]}:
        raise UserError(f"{key}={dict(fields)}: {name} takes {' and '.join(FIELDS[name])}, such as {examples()}.")
    if name != "step":
        made = Schedule(name, numbers(key, [fields["start"], fields["end"]]))
    else:
        made = Schedule(name, numbers(key, fields["factors"]), numbers(key, fields["at"]))
        if len(made.factors) != len(made.at) + 1 or list(made.at) != sorted({*made.at}):
            raise UserError(f"{key}: factors have one entry more than at, whose shares rise, such as {examples()}.")
        if not all(0 < border < 1 for border in made.at):
            raise UserError(f"{key}.at={list(made.at)}: these are shares of the steps, above 0 and below 1.")
    if min(made.factors) < 0 or max(made.factors) == 0:
        raise UserError(f"{key}: factors are 0 or more, and not all of them are 0.")
    if key.endswith("temperature_schedule") and min(made.factors) == 0:
        raise UserError(f"{key}: a temperature is above 0, and these factors reach 0. Take another end: {examples()}.")
    return made


def numbers(key: str, given: Any) -> tuple[float, ...]:
    wrong = not isinstance(given, Sequence) or isinstance(given, str)
    if wrong or any(isinstance(n, bool) or not isinstance(n, int | float) or not math.isfinite(n) for n in given):
        raise UserError(f"{key}: {given} is no list of numbers. Such as {examples()}.")
    return tuple(float(number) for number in given)


def examples() -> str:
    return "{name: linear, start: 1, end: 0.25} or {name: step, at: [0.75], factors: [1, 0]}"
