"""Your own files: tables become splits with names for their labels, and what does not fit is named.

``assemble`` does it for the hub's data sets too.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.columns import Columns, choose
from kd.errors import UserError, nearest
from kd.labels import is_missing, label_texts, name_labels
from kd.sources import TextData
from kd.store import content_key
from kd.tables import Table, check_file, read_table

SHOWN = 5  # row numbers in a message


@dataclass
class Part:
    """The rows of one split that are used."""

    table: Table
    rows: Sequence[int]
    texts: list[tuple[str, ...]]
    labels: list[Any]

    def select(self, kept: Sequence[int]) -> Part:
        return Part(
            self.table, [self.rows[i] for i in kept], [self.texts[i] for i in kept], [self.labels[i] for i in kept]
        )


@dataclass(frozen=True)
class Settings:
    """What the configuration says about labels and splits, under the names it has there."""

    label_names: Sequence[Any] | None
    validation_share: float
    split_seed: int
    drop_empty: bool


def check_paths(files: dict[str, str | None]) -> dict[str, Path]:
    """The files of each split. Raises UserError if one is not there or cannot be read; opens none."""
    if files["train"] is None:
        raise UserError("data=files needs a training file: data.train=reviews.csv (data.validation and data.test: if any).")
    paths = {}
    for split, name in files.items():
        if name is not None and not isinstance(name, str):
            raise UserError(f"data.{split}={name}: give one file.")
        if name is not None:
            paths[split] = Path(name).expanduser()
            check_file(paths[split], f"data.{split}")
    return paths


def read(
    name: str, files: dict[str, str | None], text: str | Sequence[str] | None, label: str | None,
    label_names: Sequence[Any] | None, validation_share: float, split_seed: int, drop_empty: bool,
) -> TextData:  # fmt: skip
    """The files of ``train`` and, where given, ``validation`` and ``test``."""
    tables = {split: read_table(path) for split, path in check_paths(files).items()}
    columns = choose(tables["train"], text, label)
    for split in tables:
        tables[split].require(columns.text, "the columns of the training file")
        tables[split].require([columns.label], "the columns of the training file")
    return assemble(name, tables, columns, Settings(label_names, validation_share, split_seed, drop_empty))


def assemble(name: str, tables: dict[str, Table], columns: Columns, settings: Settings) -> TextData:
    """Tables to TextData: rows checked, labels named and numbered, a missing validation part split off."""
    from datasets import Dataset

    parts = {}
    for split, table in tables.items():
        labels = label_texts(table, columns.label)
        if split == "test" and (set(labels) <= {None} or set(labels) == {"-1"}):
            print(f"{table.where} has no labels in the column {columns.label!r}; only validation is scored.")
            continue
        texts = [text_values(table, column) for column in columns.text]
        part = Part(table, table.rows, list(zip(*texts, strict=True)), labels)
        parts[split] = without_gaps(part, columns, settings.drop_empty)
    train = parts["train"]
    names, renamed = name_labels(train.table, columns.label, train.labels, settings.label_names)
    for part in parts.values():
        part.labels = [renamed.get(label, label) for label in part.labels]
    check_seen(parts)
    if "validation" not in parts:
        parts["train"], parts["validation"] = split_off(train, names, settings)
    say_overlap(parts)
    fields = ("text", "text_pair")[: len(columns.text)]
    splits = {}
    for split in ("train", "validation", "test"):
        if split in parts:
            texts = list(zip(*parts[split].texts, strict=True))
            numbered = {"label": [names.index(label) for label in parts[split].labels]}
            splits[split] = Dataset.from_dict({f: list(t) for f, t in zip(fields, texts, strict=True)} | numbered)
    return TextData(name, splits, names, content(parts, columns, names), text_columns=columns.text)


def text_values(table: Table, column: str) -> list[str]:
    """A column as text: numbers as they are written, nothing for what is missing."""
    values = []
    for row, value in zip(table.rows, table.column(column), strict=True):
        if not (is_missing(value) or isinstance(value, str | bool | int | float)):
            raise UserError(
                f"{table.where}, {table.unit} {row}: the text column {column!r} holds {type(value).__name__} values, not text."
            )
        values.append("" if is_missing(value) else str(value))
        if not values[-1].isascii() and any("\ud800" <= letter <= "\udfff" for letter in values[-1]):
            raise UserError(f"{table.where}, {table.unit} {row}: the text has half of a surrogate pair, which no file can hold.")
    return values


def without_gaps(part: Part, columns: Columns, drop: bool) -> Part:
    """The rows that have text and label. The others are left out, and counted, or raise UserError."""
    empty = [i for i, texts in enumerate(part.texts) if not all(text.strip() for text in texts)]
    unlabelled = [i for i, label in enumerate(part.labels) if label is None]
    said = []
    for gaps, what, names in (
        (empty, "an empty text", columns.text), (unlabelled, "no label", [columns.label]),
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
        raise UserError(f"{part.table.where}: {' and '.join(said)}. Fill them, or data.drop_empty=true leaves them out.")
    gone = {*empty, *unlabelled}
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
            listed = ", ".join(f"{label!r} ({count} rows)" for label, count in unseen.most_common(SHOWN))
            more = f" and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
            first = unseen.most_common(1)[0][0]
            raise UserError(
                f"{part.table.where}: {split} has labels that no training row has: {listed}{more}."
                f"{nearest(first, seen)} Correct them, or add such rows to the training data."
            )


def split_off(train: Part, names: Sequence[str], settings: Settings) -> tuple[Part, Part]:
    """Training and validation rows, each label shared out alike; both keep at least one row of a label with two."""
    import numpy as np

    random = np.random.default_rng(settings.split_seed)
    chosen: set[int] = set()
    single = []
    for name in names:
        rows = [i for i, label in enumerate(train.labels) if label == name]
        if len(rows) == 1:
            single.append(name)
        if len(rows) > 1:
            count = min(max(round(settings.validation_share * len(rows)), 1), len(rows) - 1)
            chosen |= {int(row) for row in random.permutation(rows)[:count]}
    if not chosen:
        raise UserError(f"{train.table.where}: no label has two rows, so no validation can be split off: add rows.")
    print(
        f"Validation: {len(chosen)} of {len(train.rows)} rows split off, {100 * settings.validation_share:g} % of each "
        f"label, data.split_seed={settings.split_seed}"
    )
    if single:
        print(f"Only one row has the label {', '.join(map(repr, single))}: it stays in train, validation has none")
    every = range(len(train.rows))
    return train.select([i for i in every if i not in chosen]), train.select(sorted(chosen))


def say_overlap(parts: dict[str, Part]) -> None:
    seen = set(parts["train"].texts)
    for split in [split for split in parts if split != "train"]:
        again = sum(texts in seen for texts in parts[split].texts)
        if again:
            print(f"{again} of {len(parts[split].texts)} {split} texts are also in train")


def content(parts: dict[str, Part], columns: Columns, names: Sequence[str]) -> str:
    """A hash of every row as it is used; file format, share and seed are in it by what they lead to."""
    hashes = {}
    for split, part in parts.items():
        found = hashlib.sha256()
        for texts, label in zip(part.texts, part.labels, strict=True):
            for value in (*texts, label):
                found.update(f"{len(value)}:{value}".encode())
        hashes[split] = found.hexdigest()
    return content_key(rows=hashes, texts=len(columns.text), labels=list(names))
