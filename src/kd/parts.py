"""The rows of each split that are used: complete ones, a validation part split off, what is wrong named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kd.columns import Columns
from kd.errors import UserError, nearest
from kd.labels import is_missing, label_texts
from kd.sources import stratified
from kd.tables import Table

SHOWN = 5  # row numbers in a message


@dataclass
class Part:
    """The rows of one split that are used."""

    table: Table
    rows: Sequence[int]
    texts: list[tuple[str, ...]]
    labels: list[Any]  # of texts; None where there is none

    def select(self, kept: Sequence[int]) -> Part:
        return Part(
            self.table, [self.rows[i] for i in kept], [self.texts[i] for i in kept], [self.labels[i] for i in kept]
        )


def complete_rows(table: Table, columns: Columns, drop: bool) -> Part:
    """The rows of a table that have text and label; see ``without_gaps``."""
    texts = [text_values(table, column) for column in columns.text]
    part = Part(table, table.rows, list(zip(*texts, strict=True)), list(label_texts(table, columns.label)))
    return without_gaps(part, columns, drop)


def unlabelled(table: Table, columns: Columns) -> bool:
    """Whether no row has a label, as in the test files of competitions (often they have -1)."""
    found = set(label_texts(table, columns.label))
    return found <= {None} or found == {"-1"}


def text_values(table: Table, column: str) -> list[str]:
    """A column as text: numbers as they are written, nothing for what is missing."""
    values = []
    for row, value in zip(table.rows, table.column(column), strict=True):
        if not (is_missing(value) or isinstance(value, str | bool | int | float)):
            raise UserError(
                f"{table.where}, {table.unit} {row}: the text column {column!r} holds {type(value).__name__} "
                "values, not text."
            )
        values.append("" if is_missing(value) else str(value))
        if not values[-1].isascii() and any("\ud800" <= letter <= "\udfff" for letter in values[-1]):
            raise UserError(
                f"{table.where}, {table.unit} {row}: the text has half of a surrogate pair, which no file can hold."
            )
    return values


def without_gaps(part: Part, columns: Columns, drop: bool) -> Part:
    """The rows that have text and label. The others are left out, and counted, or raise UserError."""
    empty = [i for i, texts in enumerate(part.texts) if not all(text.strip() for text in texts)]
    bare = [i for i, label in enumerate(part.labels) if label is None]
    said = []
    for gaps, what, names in (
        (empty, "an empty text", columns.text), (bare, "no label", [columns.label]),
    ):  # fmt: skip
        if gaps:
            numbers = ", ".join(str(part.rows[i]) for i in gaps[:SHOWN]) + (", ..." if len(gaps) > SHOWN else "")
            units = part.table.unit + ("s" if len(gaps) > 1 else "")
            have = "have" if len(gaps) > 1 else "has"
            named = " or ".join(map(repr, names))
            said.append(f"{len(gaps)} of {len(part.rows)} rows {have} {what} (column {named}; {units} {numbers})")
    if not said:
        return part
    if not drop:
        raise UserError(
            f"{part.table.where}: {' and '.join(said)}. Fill them, or data.drop_empty=true leaves them out."
        )
    gone = {*empty, *bare}
    left = part.select([i for i in range(len(part.rows)) if i not in gone])
    if not left.rows:
        raise UserError(f"{part.table.where}: no row has both text and label: {' and '.join(said)}.")
    print(f"{part.table.where}: {' and '.join(said)}; {len(gone)} rows left out (data.drop_empty=true)")
    return left


def check_seen(parts: dict[str, Part]) -> None:
    """Raises UserError for labels that are scored but never trained."""
    seen = set(parts["train"].labels)
    for split, part in parts.items():
        unseen = Counter(label for label in part.labels if label not in seen)
        if unseen:
            listed = ", ".join(
                f"{label!r} in {count} row{'s' * (count > 1)}" for label, count in unseen.most_common(SHOWN)
            )
            more = f" and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
            first = unseen.most_common(1)[0][0]
            raise UserError(
                f"{part.table.where}: {split} has labels that no training row has: {listed}{more}."
                f"{nearest(first, seen)} Correct them, or add such rows to the training data."
            )


def split_off(train: Part, share: float, seed: int) -> tuple[Part, Part]:
    """Training and validation rows, each label shared out alike; both keep at least one row of a label with two."""
    chosen = stratified(train.labels, share, seed)
    single = sorted(name for name, count in Counter(train.labels).items() if count == 1)
    if not chosen:
        raise UserError(f"{train.table.where}: no label has two rows, so no validation can be split off: add rows.")
    print(
        f"Validation: {len(chosen)} of {len(train.rows)} rows split off, {100 * share:g} % of each "
        f"label, data.split_seed={seed}"
    )
    if single:
        listed = ", ".join(map(repr, single[:SHOWN])) + (", ..." if len(single) > SHOWN else "")
        print(f"Labels with a single row stay in train, validation has none of them: {len(single)} ({listed})")
    every = range(len(train.rows))
    return train.select([i for i in every if i not in chosen]), train.select(sorted(chosen))


def say_overlap(parts: dict[str, Part]) -> None:
    seen = set(parts["train"].texts)
    for split in [split for split in parts if split != "train"]:
        again = sum(texts in seen for texts in parts[split].texts)
        if again:
            print(f"{again} of {len(parts[split].texts)} {split} texts are also in train")
