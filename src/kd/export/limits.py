"""What an export must reach against the model it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from kd.errors import UserError, nearest

LOOSEST = {"agreement": 0.99, "score": 0.5}  # an export that is further from its model than this is another model


@dataclass(frozen=True)
class Limits:
    """On validation rows.

    Args:
        mean_difference: of logits, absolute, at most; null: not asked.
        agreement: share of equal answers, at least.
        score: points (of the task's own score, times 100) that it may differ by, up or down; of a score where lower is
            better, percent.
    """

    mean_difference: float | None = None
    agreement: float = LOOSEST["agreement"]
    score: float = LOOSEST["score"]


CARRIED = Limits(mean_difference=2e-3, agreement=0.995, score=0.2)


def limits(where: str, stored: Any) -> Limits:
    """Of a mapping, as it stands in a file. Raises UserError for a key that there is not, for what is no number, and
    for limits so loose that they would pass another model.
    """
    known = [each.name for each in fields(Limits)]
    if not isinstance(stored, dict):
        raise UserError(f"{where}={said(stored)}: give limits by name, {', '.join(known)}.")
    for key, value in stored.items():
        if key not in known:
            raise UserError(f"{where}.{key}: there is no such limit.{nearest(key, known)} Known: {', '.join(known)}.")
        if not (is_number(value) or (value is None and key == "mean_difference")):
            raise UserError(f"{where}.{key}={said(value)}: give a number{' or null' * (key == 'mean_difference')}.")
    found = Limits(**stored)
    if found.agreement < LOOSEST["agreement"] or found.score > LOOSEST["score"]:
        raise UserError(
            f"{where}: agreement={found.agreement:g} and score={found.score:g} are looser than the loosest, "
            f"{LOOSEST['agreement']:g} and {LOOSEST['score']:g}."
        )
    if found.agreement > 1 or found.score < 0 or (found.mean_difference or 0) < 0:
        raise UserError(
            f"{where}: no export reaches these. agreement is a share, at most 1; the others are at least 0."
        )
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def said(value: Any) -> str:
    """As in a YAML file."""
    return "null" if value is None else str(value)
