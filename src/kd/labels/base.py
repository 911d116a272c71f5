"""What the kinds of labels have in common: from a table's rows to the columns that a task trains on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from kd.columns import Columns
from kd.errors import UserError
from kd.parts import Part, text_values
from kd.tables import Table


class Kind:
    """The labels of one task. ``part`` reads a table, ``settle`` fixes ``names`` by the training rows, ``convert``
    puts them into a part, and ``data`` makes the columns of the data set.

    ``even`` kinds have one label a row out of few, which a split can share out alike. ``listed`` ones may be scored on
    labels without a training row, if data.label_names has them.
    """

    task: str
    even = False
    listed = True

    def __init__(self, columns: Columns, wanted: Sequence[Any] | None) -> None:
        """``wanted`` is data.label_names."""
        self.columns = columns
        self.wanted = None if wanted is None else [written(name) for name in wanted]
        self.names: list[str] = []

    @property
    def column(self) -> str:
        assert self.columns.label is not None
        return self.columns.label

    def part(self, table: Table) -> Part:
        """Texts and labels as they stand; None where there is no label. Raises UserError with the row."""
        return Part(table, table.rows, self.texts(table), self.read(table))

    def texts(self, table: Table) -> list[tuple[Any, ...]]:
        return list(zip(*(text_values(table, column) for column in self.columns.text), strict=True))

    def read(self, table: Table) -> list[Any]:
        raise NotImplementedError

    def is_bare(self, labels: Sequence[Any]) -> bool:
        """Whether no row has a label, as in the test files of competitions, where often all are -1."""
        return set(labels) <= {None} or set(labels) in ({"-1"}, {-1.0})

    def settle(self, train: Part) -> None:
        """Fixes ``names``. Raises UserError for labels that this task cannot have."""

    def convert(self, part: Part) -> None:
        """Puts names where numbers stand, and the like. Raises UserError with the row."""

    def singles(self, label: Any) -> Iterable[str]:
        """The names in one row's label."""
        return ()

    def number(self, label: Any) -> Any:
        """A row's label as the task takes it."""
        return label

    def data(self, part: Part) -> dict[str, list[Any]]:
        """The data set's columns: ``text``, for pairs ``text_pair``, and ``label``."""
        texts = zip(*part.texts, strict=True)
        columns = {key: list(column) for key, column in zip(("text", "text_pair"), texts, strict=False)}
        return columns | {"label": [self.number(label) for label in part.labels]}

    def hashed(self, texts: tuple[Any, ...], label: Any) -> str:
        """A row as one string, another one for every other row."""
        line = json.dumps([texts, label])
        return f"{len(line)}:{line}"


def written(name: Any) -> str:
    """A name of data.label_names as labels are read: true for True."""
    return str(name).lower() if isinstance(name, bool) else str(name)


def check_alike(where: str, names: Sequence[str]) -> None:
    folded = Counter(name.lower() for name in names)
    alike = [name for name in names if folded[name.lower()] > 1]
    if alike:
        raise UserError(
            f"{where}: the labels {', '.join(map(repr, alike))} differ in case alone, or not at all: write them "
            "alike, or rename one."
        )
