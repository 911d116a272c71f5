"""The rows of each split that are used: complete ones, a validation part split off, what is wrong named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kd.columns import Columns
from kd.errors import UserError, nearest
from kd.sources import stratified
from kd.tables import Table, is_missing

if TYPE_CHECKING:
    from kd.labels import Kind

SHOWN = 5  # row numbers in a message


@dataclass
class Part:
    """The rows of one split that are used."""

    table: Table
    rows: Sequence[int]
    texts: list[tuple[Any, ...]]  # of each row its texts, or its tokens
    labels: list[Any]  # None where there is none

    def select(self, kept: Sequence[int]) -> Part:
        return Part(
            self.table, [self.rows[i] for i in kept], [self.texts[i] for i in kept], [self.labels[i] for i in kept]
        )


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
        check_letters(table, row, values[-1])
    return values


def check_letters(table: Table, row: int, *texts: str) -> None:
    """Raises UserError for what JSON can say and Unicode cannot."""
    for text in texts:
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError(
                f"{table.where}, {table.unit} {row}: the text has half of a surrogate pair, which no file can hold."
            )


def without_gaps(part: Part, columns: Columns, drop: bool) -> Part:
    """The rows that have text and label. The others are left out, and counted, or raise UserError."""
    empty = [i for i, texts in enumerate(part.texts) if not all(has_text(text) for text in texts)]
    bare = [i for i, label in enumerate(part.labels) if label is None]
    said = []
    for gaps, what, names in (
        (empty, "an empty text", columns.text), (bare, "no label", [str(columns.label)]),
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


def has_text(text: str | tuple[str, ...]) -> bool:
    return any(piece.strip() for piece in text)  # a letter of a text, or a token of several


def check_seen(parts: dict[str, Part], kind: Kind) -> None:
    """Says which labels have no training row. Raises UserError for those that are scored all the same."""
    trained = {name for label in parts["train"].labels for name in kind.singles(label)}
    empty = [name for name in kind.names if name not in trained] if trained else []
    if empty:
        print(f"Labels without a training row: {', '.join(empty[:10])}{', ...' if len(empty) > 10 else ''}")
    seen = {*kind.names} if kind.listed else trained
    for split, part in parts.items():
        unseen = Counter(
            name for label in part.labels for name in dict.fromkeys(kind.singles(label)) if name not in seen
        )
        if unseen:
            listed = ", ".join(
                f"{label!r} in {count} row{'s' * (count > 1)}" for label, count in unseen.most_common(SHOWN)
            )
            more = f" and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
            first = unseen.most_common(1)[0][0]
            raise UserError(
                f"{part.table.where}: {split} has labels that no training row has: {listed}{more}."
                f"{nearest(first, seen)} Correct them, or add such rows to the training data"
                f"{', or list all labels as data.label_names' * kind.listed}."
            )


def split_off(train: Part, share: float, seed: int, even: bool) -> tuple[Part, Part]:
    """Training and validation rows. ``even``: each label shared out alike, both with a row of a label with two."""
    groups = train.labels if even else ["every row"] * len(train.rows)
    chosen = stratified(groups, share, seed)
    single = sorted(name for name, count in Counter(groups).items() if count == 1)
    if not chosen:
        what = "no label has two rows" if even else "there is one row"
        raise UserError(f"{train.table.where}: {what}, so no validation can be split off: add rows.")
    print(
        f"Validation: {len(chosen)} of {len(train.rows)} rows split off, {100 * share:g} %{' of each label' * even}, "
        f"data.split_seed={seed}"
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
