"""Whether a task can learn from the labels that a data set has."""

from __future__ import annotations

from typing import Any

from kd.errors import UserError

TAKES = {
    "classification": "a class",
    "ordinal": "a class",
    "regression": "a real number",
    "multilabel": "any number of labels",
    "token_classification": "a tag for each token",
}


def form_of(label: Any) -> str:
    if isinstance(label, list):
        return TAKES["multilabel"] if all(isinstance(one, float) for one in label) else TAKES["token_classification"]
    return TAKES["regression"] if isinstance(label, float) else TAKES["classification"]


def check_fit(task: str, data_name: str, rows: Any) -> None:
    """Raises UserError if ``task`` needs labels of another form than those of ``rows``."""
    if task not in TAKES:  # it needs no labels
        return
    there = form_of(rows[0]["label"]) if "label" in rows.column_names else "no label"
    if there != TAKES[task]:
        fitting = [name for name, form in TAKES.items() if form == there]
        raise UserError(
            f"data.task={task} needs {TAKES[task]} a row, and data={data_name} has {there} there"
            f"{': take data.task=' + ' or '.join(fitting) if fitting else ''}."
        )
