"""Levels in order: whole numbers by size, or names in the order that data.label_names gives."""

from __future__ import annotations

from collections.abc import Sequence

from kd.errors import UserError
from kd.labels.classes import WHOLE, Classes, in_order, name_labels
from kd.parts import Part

MOST = 1000  # levels that are looked at: a scale has few


class Levels(Classes):
    task = "ordinal"
    listed = True

    def settle(self, train: Part) -> None:
        """Raises UserError where the labels are no scale."""
        found = in_order(train.labels)
        if len(found) < 2:
            raise UserError(
                f"{train.table.where}: every row has the level {found[0]!r} in the column {self.column!r}: a scale has "
                "two or more."
            )
        if self.wanted is None and self.column not in train.table.classes:
            check_scale(f"{train.table.where}: the levels in the column {self.column!r} are", found)
        self.names, self.renamed = name_labels(train.table, self.column, train.labels, self.wanted)
        print(f"Levels: {' < '.join(self.names)}")


def check_scale(where: str, found: Sequence[str]) -> None:
    """Raises UserError for names, which have no order of their own, and for whole numbers with a gap."""
    listed = ", ".join(found[:10]) + (", ..." if len(found) > 10 else "")
    if not all(WHOLE.fullmatch(name) for name in found):
        raise UserError(
            f"{where} names ({listed}), and alphabetical order is no scale: give them from the lowest to the highest, "
            "data.label_names=[LOWEST,...,HIGHEST]."
        )
    low, high, there = int(found[0]), int(found[-1]), set(found)
    missing = [str(level) for level in range(low, min(high, low + MOST)) if str(level) not in there]
    if missing:
        names = f"[{','.join(str(level) for level in range(low, high + 1))}]" if high - low < 20 else "[LOWEST,...]"
        raise UserError(
            f"{where} {listed}; no training row has {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. If "
            f"the scale has that level all the same, list all of them: data.label_names={names}. If not, number the "
            "levels without a gap."
        )
