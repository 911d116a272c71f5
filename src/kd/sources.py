"""Text with labels, from wherever conf/data/ says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.store import Wanted, content_key, fetch, file_hash, split_files


@dataclass
class TextData:
    """Splits (``train``, ``validation``, perhaps ``test``) with columns ``text``, ``label``, for pairs ``text_pair``.

    ``key`` is a hash of the content. ``tokenizer`` is the data's own, for models that bring none. ``text_columns`` is
    what the one or two text columns are called where the data come from.
    """

    name: str
    splits: dict[str, Any]
    label_names: list[str]
    key: str
    tokenizer: Any = field(default=None, repr=False)
    text_columns: tuple[str, ...] = ("text",)


def stored(
    name: str,
    hub_id: str,
    hub_columns: Mapping[str, str],
    label_names: Sequence[str],
    store: str,
    cache: str,
) -> TextData:
    """Parquet files of the store (columns ``text`` and ``label``) or of a hub data set (columns renamed)."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # reading parquet takes no time worth one
    wanted = Wanted("dataset", name, hub_id, Path(store).expanduser())
    directory = fetch(wanted)
    columns = {} if directory == wanted.directory else dict(hub_columns)
    files = {split: paths for split, paths in split_files(directory).items() if paths}
    splits = {}
    for split, paths in files.items():
        rows = Dataset.from_parquet([str(path) for path in paths], cache_dir=str(Path(cache).expanduser() / "text"))
        absent = sorted(set(columns) - set(rows.column_names))
        if absent:
            raise UserError(
                f"{directory}: the {split} files have no column {', '.join(absent)}, only "
                f"{', '.join(rows.column_names)}: set data.source.hub_columns."
            )
        rows = rows.rename_columns({old: new for old, new in columns.items() if old != new})
        if labelled(rows, split, len(label_names), directory):
            splits[split] = rows.select_columns(["text", "label"])
    hashes = {split: [file_hash(path) for path in paths] for split, paths in files.items()}
    key = content_key(files=hashes, columns=columns, labels=list(label_names))
    return TextData(name, splits, list(label_names), key)


def labelled(rows: Any, split: str, classes: int, directory: Path) -> bool:
    """Whether a split has labels (hub test sets often have -1); raises UserError for labels out of range."""
    missing = {"text", "label"} - set(rows.column_names)
    if missing:
        raise UserError(f"{directory}: the {split} files lack the column {', '.join(sorted(missing))}.")
    found = set(rows.unique("label"))
    if found == {-1} and split == "test":
        print("The test split has no labels; only validation is scored.")
        return False
    wrong = sorted(label for label in found if label not in range(classes))
    if wrong:
        raise UserError(f"{directory}: the {split} files have the labels {wrong[:5]}, known are 0 to {classes - 1}.")
    return True
