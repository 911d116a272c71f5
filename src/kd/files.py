"""Your own files: tables become splits with names for their labels.

``assemble`` does it for the hub's data sets too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.columns import Columns, choose
from kd.errors import UserError
from kd.labels import KINDS, Kind
from kd.labels.detect import detect
from kd.parts import Part, check_seen, say_overlap, split_off, without_gaps
from kd.sources import TextData
from kd.store import content_key
from kd.tables import Table, check_file, read_table


@dataclass(frozen=True)
class Settings:
    """What the configuration says about task, labels and splits, under the names it has there."""

    task: str | None
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
    name: str, files: dict[str, str | None], task: str | None, text: str | Sequence[str] | None, label: str | None,
    label_names: Sequence[Any] | None, validation_share: float, split_seed: int, drop_empty: bool,
) -> TextData:  # fmt: skip
    """The files of ``train`` and, where given, ``validation`` and ``test``."""
    tables, columns = opened(files, text, label, task)
    return assemble(name, tables, columns, Settings(task, label_names, validation_share, split_seed, drop_empty))


def opened(
    files: dict[str, str | None], text: str | Sequence[str] | None, label: str | None, task: str | None
) -> tuple[dict[str, Table], Columns]:
    tables = {split: read_table(path) for split, path in check_paths(files).items()}
    columns = choose(tables["train"], text, label, task)
    for split in tables:
        tables[split].require(columns.all, "name its columns as in the training file")
    return tables, columns


def check(files: dict[str, str | None], text: Any, label: Any, settings: Settings) -> None:
    """Reads the files as ``read`` will and says nothing, so that what is wrong is answered before torch is loaded."""
    with contextlib.redirect_stdout(io.StringIO()):
        arranged(*opened(files, text, label, settings.task), settings)


def assemble(name: str, tables: dict[str, Table], columns: Columns, settings: Settings) -> TextData:
    from datasets import Dataset

    parts, kind = arranged(tables, columns, settings)
    in_order = [split for split in ("train", "validation", "test") if split in parts]
    splits: dict[str, Any] = {split: Dataset.from_dict(kind.data(parts[split])) for split in in_order}
    key = content(parts, kind)
    return TextData(name, splits, kind.names, key, text_columns=columns.text, task=kind.task)


def arranged(tables: Mapping[str, Table], columns: Columns, settings: Settings) -> tuple[dict[str, Part], Kind]:
    """The rows of each split, checked, a missing validation part split off; and what is known of their labels."""
    kind = KINDS[settings.task or detect(tables["train"], columns)](columns, settings.label_names)
    parts = {}
    for split, table in tables.items():
        part = kind.part(table)
        if split == "test" and kind.is_bare(part.labels):
            print(f"{table.where} has no labels in the column {columns.label!r}; only validation is scored.")
            continue
        parts[split] = without_gaps(part, columns, settings.drop_empty)
    train = parts["train"]
    kind.settle(train)
    for part in parts.values():
        kind.convert(part)
    check_seen(parts, kind)
    if "validation" not in parts:
        parts["train"], parts["validation"] = split_off(
            train, settings.validation_share, settings.split_seed, kind.even
        )
    say_overlap(parts)
    return parts, kind


def content(parts: dict[str, Part], kind: Kind) -> str:
    """A hash of every row as it is used; file format, share and seed are in it by what they lead to."""
    hashes = {}
    for split, part in parts.items():
        found = hashlib.sha256()
        for texts, label in zip(part.texts, part.labels, strict=True):
            found.update(kind.hashed(texts, label).encode())
        hashes[split] = found.hexdigest()
    task = {} if kind.task == "classification" else {"task": kind.task}  # which was the only one at first
    return content_key(rows=hashes, texts=len(parts["train"].texts[0]), labels=kind.names, **task)
