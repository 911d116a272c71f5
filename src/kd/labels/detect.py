"""Which task a column of labels makes, where it can be one only."""

from __future__ import annotations

from kd.columns import Columns, holds_lists
from kd.errors import UserError
from kd.labels.classes import WHOLE, are_real
from kd.labels.multilabel import SEPARATORS
from kd.tables import Table, is_missing


def detect(table: Table, columns: Columns) -> str:
    """The task's name; what it is seen by is printed."""
    task, why = reading(table, columns)
    print(f"Task: {task} ({why} in {columns.label!r}; data.task overrides)")
    return task


def reading(table: Table, columns: Columns) -> tuple[str, str]:
    label = columns.label
    assert label is not None
    if holds_lists(table, label):
        tokens = holds_lists(table, columns.text[0])
        return ("token_classification", "a list of tags a row") if tokens else ("multilabel", "a list of labels a row")
    if label in table.classes:
        return "classification", "classes"
    texts = {str(value).strip() for value in table.column(label) if not is_missing(value)} - {""}
    if are_real(texts):
        return "regression", "real numbers"
    refuse_several(table, label, texts)
    whole = bool(texts) and all(WHOLE.fullmatch(text) for text in texts)
    return "classification", "whole numbers" if whole else "names"


def refuse_several(table: Table, column: str, texts: set[str]) -> None:
    """Raises UserError where "joy, anger" stands beside "joy" and "anger": one label or two, nothing tells."""
    for mark in SEPARATORS:
        for text in sorted(text for text in texts if mark in text):
            if {piece.strip() for piece in text.split(mark)} <= texts:
                raise UserError(
                    f"{table.where}: in the column {column!r} {text!r} may be one label or several, which occur by "
                    "themselves too. Say data.task=multilabel, or data.task=classification."
                )
