"""One label out of several a row: from what stands in the column to names in order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from kd.errors import UserError
from kd.labels.base import Kind, check_alike
from kd.parts import Part
from kd.tables import Table, is_missing

WHOLE = re.compile(r"-?(0|[1-9]\d*)(\.0*)?")  # 007 is a code, not a number
REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
BOOLEANS = {"false", "true"}


class Classes(Kind):
    task = "classification"
    even = True
    listed = False
    renamed: dict[str, str]

    def read(self, table: Table) -> list[str | None]:
        return plain_numbers(table, self.column, label_texts(table, self.column))

    def settle(self, train: Part) -> None:
        check_classes(train.table, self.column, train.labels)
        self.names, self.renamed = name_labels(train.table, self.column, train.labels, self.wanted)

    def convert(self, part: Part) -> None:
        part.labels = [self.renamed.get(label, label) for label in part.labels]

    def singles(self, label: str) -> Iterable[str]:
        return (label,)

    def number(self, label: str) -> int:
        return self.names.index(label)

    def hashed(self, texts: tuple[Any, ...], label: str) -> str:
        return "".join(f"{len(value)}:{value}" for value in (*texts, label))


def label_texts(table: Table, column: str) -> list[str | None]:
    """Each row's label as text: 1 for 1.0 and "1.0", true for True, a class by its name; None where there is none."""
    values = table.column(column)
    classes = table.classes.get(column)
    texts: list[str | None] = []
    for row, value in zip(table.rows, values, strict=True):
        if not (is_missing(value) or isinstance(value, str | bool | int | float)):
            raise UserError(
                f"{table.where}, {table.unit} {row}: the label column {column!r} holds {type(value).__name__} values. "
                "One label a row is expected."
            )
        if classes is not None and not is_missing(value):
            texts.append(None if value < 0 else str(classes[value]))
        else:
            texts.append(None if is_missing(value) else str(value).strip() or None)
    return texts


def are_real(texts: Collection[str]) -> bool:
    """Whether all are numbers, and not all of them whole."""
    numbers = bool(texts) and all(REAL.fullmatch(text) for text in texts)
    return numbers and any(not float(text).is_integer() for text in texts)


def plain_numbers(table: Table, column: str, texts: list[str | None]) -> list[str | None]:
    """1.0 as 1 and True as true, if all labels are such. Raises UserError for real numbers."""
    found = {text for text in texts if text is not None}
    if column in table.classes:
        return texts
    if found and all(WHOLE.fullmatch(text) for text in found):
        names = {text: str(int(text.partition(".")[0])) for text in found}
    elif {text.lower() for text in found} <= BOOLEANS:
        names = {text: text.lower() for text in found}
    elif are_real(found):
        examples = ", ".join(
            f"{float(text):g}" for text in [text for text in sorted(found) if not WHOLE.fullmatch(text)][:3]
        )
        raise UserError(
            f"{table.where}: the label column {column!r} holds real numbers ({examples}, ...), and those are neither "
            "classes nor levels. data.task=regression learns them as numbers."
        )
    else:
        return texts
    return [None if text is None else names[text] for text in texts]


def in_order(found: Sequence[str]) -> list[str]:
    """Whole numbers by size, everything else by letters."""
    names = sorted(set(found))
    return sorted(names, key=int) if all(WHOLE.fullmatch(name) for name in names) else names


def name_labels(
    table: Table, column: str, labels: Sequence[str], wanted: Sequence[str] | None
) -> tuple[list[str], dict[str, str]]:
    """The names in order, and the name of each text. ``wanted`` (data.label_names) orders, or names numbers."""
    found = in_order(labels)
    renamed = {text: text for text in found}
    if wanted is None:
        names = table.classes.get(column) or found
    else:
        names = list(wanted)
        if not set(found) <= set(names):
            renamed = rename(found, table.classes.get(column), names)
            print("Labels: " + ", ".join(f"{old} is {new}" for old, new in renamed.items()) + " (data.label_names)")
    check_alike(table.where, names)
    return list(names), renamed


def check_classes(table: Table, column: str, labels: Sequence[str]) -> None:
    counts = Counter(labels)
    if len(counts) == 1:
        raise UserError(
            f"{table.where}: every row has the label {next(iter(counts))!r} in the column {column!r}. A classifier "
            "needs two labels or more."
        )
    if column not in table.classes and len(counts) >= 3 and 2 * len(counts) > len(labels):
        examples = ", ".join(repr(text) for text in list(counts)[:3])
        known = sum(REAL.fullmatch(text) is not None for text in counts)
        numbers = ", or data.task=regression for numbers" if 2 * known > len(counts) else ""
        raise UserError(
            f"{table.where}: the label column {column!r} has {len(counts)} different values in {len(labels)} rows "
            f"({examples}, ...): those are no classes. Give another column with data.label{numbers}."
        )


def rename(found: list[str], classes: Sequence[str] | None, names: list[str]) -> dict[str, str]:
    """New names for numbers, booleans and classes: by number where the numbers count the names, else by order."""
    old = list(classes or found)
    numbers = all(WHOLE.fullmatch(text) for text in found)
    if numbers and classes is None and all(0 <= int(text) < len(names) for text in found):
        return {text: names[int(text)] for text in found}
    meant = not numbers or not set(found) & set(names)  # 1, 2, 4 for [1,2,3] are no other names but a slip
    if meant and len(old) == len(names) and (numbers or classes is not None or set(found) <= BOOLEANS):
        return dict(zip(old, names, strict=True))
    absent = [text for text in found if text not in names]
    raise UserError(
        f"data.label_names={names} lacks the label {absent[0]!r} of the data. The data have "
        f"{', '.join(found)}: list each of them once."
    )
