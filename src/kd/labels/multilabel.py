"""Any number of labels a row: lists of names or of numbers, rows of 0 and 1, names with a separator between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kd.errors import UserError, nearest
from kd.labels.base import Kind, check_alike
from kd.labels.classes import WHOLE, in_order
from kd.parts import Part
from kd.tables import Table, is_missing

SEPARATORS = (",", ";", "|")


class Several(Kind):
    """Which of the forms it is, the training rows tell, and ``settle`` keeps: a row in another one is refused."""

    task = "multilabel"
    separator: str | None = None  # between names, where a row is one string
    width: int | None = None  # of rows of 0 and 1
    counted = False  # whether numbers count the names

    def read(self, table: Table) -> list[Any]:
        """Strings as they stand, lists as tuples of names or numbers."""
        values = [None if is_missing(value) else value for value in table.column(self.column)]
        shape = next((type(value) for value in values if isinstance(value, str | list)), list)
        form: type | None = None  # of the labels in lists
        found: list[Any] = []
        for row, value in zip(table.rows, values, strict=True):
            where = f"{table.where}, {table.unit} {row}"
            if value is not None and not isinstance(value, shape):
                raise UserError(
                    f"{where}: the label column {self.column!r} holds {value!r}. Several labels a row are a list of "
                    "them (JSON lines, parquet), or one string such as joy, anger, in all rows alike."
                )
            kinds = {kind_of(one) for one in value} if isinstance(value, list) else set()
            if not kinds <= {str, int} or len(kinds | ({form} - {None})) > 1:
                raise UserError(
                    f"{where}: the labels {value!r} in the column {self.column!r} mix kinds, within the row or with "
                    "rows above. Write names everywhere, or whole numbers."
                )
            form = next(iter(kinds), form)
            found.append(self.tuple_of(table, where, value) if isinstance(value, list) else value)
        return found

    def tuple_of(self, table: Table, where: str, value: list[Any]) -> tuple[str, ...]:
        classes = table.classes.get(self.column)
        if classes is None:
            return tuple(one.strip() if isinstance(one, str) else str(int(one)) for one in value)
        wrong = [one for one in value if one not in range(len(classes))]
        if wrong:
            raise UserError(f"{where}: the label {wrong[0]} is out of range: there are {len(classes)}, from 0 on.")
        return tuple(str(classes[one]) for one in value)

    def is_bare(self, labels: Sequence[Any]) -> bool:
        return all(not label or label == ("-1",) for label in labels)

    def settle(self, train: Part) -> None:
        where, classes = train.table.where, train.table.classes.get(self.column)
        if any(isinstance(label, str) and label for label in train.labels):
            self.separator = separator_of(train, self.column, self.wanted)
        rows = [self.split(train, row, label) for row, label in zip(train.rows, train.labels, strict=True)]
        found = in_order([label for labels in rows for label in labels])
        numeric = classes is None and bool(found) and all(WHOLE.fullmatch(label) for label in found)
        if numeric and set(found) <= {"0", "1"} and len({len(labels) for labels in rows}) == 1 and len(rows[0]) > 1:
            self.width = len(rows[0])  # as numbers of labels each row would say one of them twice, or all the same
            check_width(where, self.column, self.width, self.wanted)
        self.counted = numeric and self.wanted is not None and not set(found) <= set(self.wanted)
        self.names = list(self.wanted or classes or found)
        if len(self.names) < 2:
            raise UserError(
                f"{where}: the column {self.column!r} has {len(self.names)} different labels; two or more are needed."
            )
        check_alike(where, self.names)

    def convert(self, part: Part) -> None:
        part.labels = [
            self.named(part, row, self.split(part, row, label))
            for row, label in zip(part.rows, part.labels, strict=True)
        ]

    def split(self, part: Part, row: int, label: Any) -> tuple[str, ...]:
        where = f"{part.table.where}, {part.table.unit} {row}: "
        if not isinstance(label, str):
            pieces = tuple(label)
        elif self.separator is None and label.strip():
            raise UserError(f"{where}the labels {label!r} are text, and those of train are lists. Write them alike.")
        else:
            pieces = tuple(piece.strip() for piece in label.split(self.separator)) if label.strip() else ()
        if "" in pieces:
            shown = label if isinstance(label, str) else list(label)
            raise UserError(f"{where}one of the labels {shown!r} in the column {self.column!r} is empty. Take it out.")
        return pieces

    def named(self, part: Part, row: int, labels: Sequence[str]) -> frozenset[str]:
        where, count = f"{part.table.where}, {part.table.unit} {row}", len(self.names)
        if self.width is not None:
            if len(labels) != self.width or not set(labels) <= {"0", "1"}:
                raise UserError(
                    f"{where}: [{', '.join(labels)}] is no row of {count} zeros and ones, as those of train."
                )
            return frozenset(name for name, one in zip(self.names, labels, strict=True) if one == "1")
        if self.counted:
            wrong = [one for one in labels if not (WHOLE.fullmatch(one) and int(one) in range(count))]
            if wrong:
                raise UserError(
                    f"{where}: the label {wrong[0]} in the column {self.column!r} is out of range: data.label_names "
                    f"has {count} names, for 0 to {count - 1}."
                )
            return frozenset(self.names[int(one)] for one in labels)
        wrong = [one for one in labels if self.wanted is not None and one not in self.wanted]
        if wrong:
            raise UserError(
                f"{where}: data.label_names={self.wanted} lacks the label {wrong[0]!r} of the data."
                f"{nearest(wrong[0], self.names)} List each of them once."
            )
        return frozenset(labels)

    def singles(self, label: Iterable[str]) -> Iterable[str]:
        return label

    def number(self, label: frozenset[str]) -> list[float]:
        return [float(name in label) for name in self.names]

    def hashed(self, texts: tuple[Any, ...], label: Any) -> str:
        return super().hashed(texts, self.number(label))


def kind_of(value: Any) -> type:
    """str, int for anything that is a whole number (0 and 1 are written false and 1.0 too), else its type."""
    whole = isinstance(value, bool | int) or (isinstance(value, float) and value.is_integer())
    return int if whole else type(value)


def check_width(where: str, column: str, width: int, wanted: Sequence[str] | None) -> None:
    if wanted is None:
        raise UserError(
            f"{where}: the column {column!r} has rows of {width} zeros and ones, one for each label, and nothing says "
            f"what the labels are called: data.label_names=[...] with {width} names."
        )
    if len(wanted) != width:
        raise UserError(
            f"{where}: the column {column!r} has rows of {width} zeros and ones, data.label_names has {len(wanted)} "
            "names: give one for each place."
        )


def separator_of(train: Part, column: str, wanted: Sequence[str] | None) -> str:
    """What stands between the labels of a row. Raises UserError where nothing does, or more than one could."""
    texts = [label for label in train.labels if label]
    where = f"{train.table.where}: the labels in the column {column!r}"
    if any(text.startswith(("[", "{", "(")) for text in texts):
        raise UserError(
            f"{where} are lists that were written as text, such as {texts[0]}: write the names alone, joy, anger, or "
            "real lists in JSON lines or parquet."
        )
    there = [mark for mark in SEPARATORS if any(mark in text for text in texts)]
    if len(there) > 1 and wanted is not None:
        there = [mark for mark in there if all(piece.strip() in wanted for text in texts for piece in text.split(mark))]
    if not there:
        raise UserError(
            f"{where} are single ones, such as {texts[0]!r}: between several {' or '.join(SEPARATORS)} is expected, "
            "and none occurs. If a row has one label at most, data.task=classification."
        )
    if len(there) > 1:
        examples = "; ".join(next(repr(text) for text in texts if mark in text) for mark in there)
        raise UserError(
            f"{where} have {' and '.join(there)} in them ({examples}), so it cannot be seen which one separates. "
            "Write one of them throughout, or list the names as data.label_names."
        )
    print(f"Labels in {column!r}: separated by {there[0]}")
    return there[0]
