"""A number a row: the target of a regression, or how similar the texts of a pair are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kd.columns import Columns
from kd.errors import UserError
from kd.labels.base import Kind
from kd.labels.classes import REAL, label_texts
from kd.parts import Part
from kd.tables import Table


def numbers(table: Table, column: str) -> list[float | None]:
    """The column as numbers. Raises UserError for text and for what is not finite, with the row."""
    found: list[float | None] = []
    for row, text in zip(table.rows, label_texts(table, column), strict=True):
        if text is not None and not (REAL.fullmatch(text) and math.isfinite(float(text))):
            raise UserError(
                f"{table.where}, {table.unit} {row}: the target column {column!r} holds {text!r}, which is no number. "
                "Numbers are written like 3, -0.5 or 1e-3: correct it, or name another column with data.label."
            )
        found.append(None if text is None else float(text))
    return found


class Numbers(Kind):
    task = "regression"

    def read(self, table: Table) -> list[float | None]:
        return numbers(table, self.column)

    def settle(self, train: Part) -> None:
        if self.wanted is not None and len(self.wanted) != 1:
            raise UserError(f"data.label_names={self.wanted}: a regression has one number, and so one name.")
        self.names = self.wanted or [self.column]


class Unlabelled(Kind):
    """Text alone."""

    task = "masked_lm"

    def __init__(self, columns: Columns, wanted: Sequence[Any] | None) -> None:
        super().__init__(columns, wanted)
        if self.wanted is not None:
            raise UserError(f"data.label_names={self.wanted}: data.task={self.task} has no labels. Leave it out.")
        self.check_columns()

    def check_columns(self) -> None:
        if len(self.columns.text) > 1:
            raise UserError(
                f"data.task=masked_lm reads one text a row, and {', '.join(self.columns.text)} are two: "
                f"data.text={self.columns.text[0]}."
            )

    def read(self, table: Table) -> list[Any]:
        return [()] * len(table.rows)

    def data(self, part: Part) -> dict[str, list[Any]]:
        columns = super().data(part)
        del columns["label"]
        return columns


class Similarities(Unlabelled):
    """Texts, or pairs of them; of pairs perhaps a number."""

    task = "feature_extraction"

    def check_columns(self) -> None:
        if self.columns.label is not None and len(self.columns.text) == 1:
            raise UserError(
                f"data.label={self.columns.label}: data.task=feature_extraction takes a label for pairs of texts only, "
                "how similar they are. Leave it out, or give two columns: data.text=[FIRST,SECOND]."
            )

    def read(self, table: Table) -> list[Any]:
        return super().read(table) if self.columns.label is None else numbers(table, self.column)

    def data(self, part: Part) -> dict[str, list[Any]]:
        return super().data(part) if self.columns.label is None else Kind.data(self, part)
