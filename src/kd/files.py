"""Your own files: tables become splits with names for their labels.

``assemble`` does it for the hub's data sets too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.columns import Columns, choose
from kd.errors import UserError
from kd.labels import name_labels
from kd.parts import Part, check_seen, complete_rows, say_overlap, split_off, unlabelled
from kd.sources import TextData
from kd.store import content_key
from kd.tables import Table, check_file, read_table


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
        raise UserError(
            "data=files needs a training file: data.train=reviews.csv (data.validation and data.test: if any)."
        )
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
    tables, columns = opened(files, text, label)
    return assemble(name, tables, columns, Settings(label_names, validation_share, split_seed, drop_empty))


def opened(
    files: dict[str, str | None], text: str | Sequence[str] | None, label: str | None
) -> tuple[dict[str, Table], Columns]:
    tables = {split: read_table(path) for split, path in check_paths(files).items()}
    columns = choose(tables["train"], text, label)
    for split in tables:
        tables[split].require([*columns.text, columns.label], "name its columns as in the training file")
    return tables, columns


def check(files: dict[str, str | None], text: Any, label: Any, settings: Settings) -> None:
    """Reads the files as ``read`` will and says nothing, so that what is wrong is answered before torch is loaded."""
    with contextlib.redirect_stdout(io.StringIO()):
        arranged(*opened(files, text, label), settings)


def assemble(name: str, tables: dict[str, Table], columns: Columns, settings: Settings) -> TextData:
    parts, names = arranged(tables, columns, settings)
    in_order = [split for split in ("train", "validation", "test") if split in parts]
    splits: dict[str, Any] = {split: dataset(parts[split], names) for split in in_order}
    return TextData(name, splits, names, content(parts, names), text_columns=columns.text)


def arranged(tables: dict[str, Table], columns: Columns, settings: Settings) -> tuple[dict[str, Part], list[str]]:
    """The rows of each split, checked, a missing validation part split off; and the labels' names, in order."""
    parts = {}
    for split, table in tables.items():
        if split == "test" and unlabelled(table, columns):
            print(f"{table.where} has no labels in the column {columns.label!r}; only validation is scored.")
            continue
        parts[split] = complete_rows(table, columns, settings.drop_empty)
    train = parts["train"]
    names, renamed = name_labels(train.table, columns.label, train.labels, settings.label_names)
    for part in parts.values():
        part.labels = [renamed.get(label, label) for label in part.labels]
    check_seen(parts)
    if "validation" not in parts:
        parts["train"], parts["validation"] = split_off(train, settings.validation_share, settings.split_seed)
    say_overlap(parts)
    return parts, names


def dataset(part: Part, names: Sequence[str]) -> Any:
    from datasets import Dataset

    number = {name: i for i, name in enumerate(names)}
    texts = zip(*part.texts, strict=True)
    columns: dict[str, Any] = {key: list(column) for key, column in zip(("text", "text_pair"), texts, strict=False)}
    return Dataset.from_dict(columns | {"label": [number[label] for label in part.labels]})


def content(parts: dict[str, Part], names: Sequence[str]) -> str:
    """A hash of every row as it is used; file format, share and seed are in it by what they lead to."""
    hashes = {}
    for split, part in parts.items():
        found = hashlib.sha256()
        for texts, label in zip(part.texts, part.labels, strict=True):
            for value in (*texts, label):
                found.update(f"{len(value)}:{value}".encode())
        hashes[split] = found.hexdigest()
    return content_key(rows=hashes, texts=len(parts["train"].texts[0]), labels=list(names))
