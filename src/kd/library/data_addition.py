"""One's own files as a data set of the store, checked as ``data=files`` checks them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kd import files
from kd.errors import UserError
from kd.library import document, record
from kd.library.addition import check_name
from kd.library.catalogue import NO_DATA, data_sets
from kd.library.installation import lock_of, put, today, work_of, writing
from kd.store import SPLITS, Wanted, locked
from kd.tables import SUFFIXES, read_table, suffix_of

STORED = {"train": "train", "validation": "dev", "test": "test"}
VALIDATION_SHARE = 0.1  # as conf/data/files.yaml has it


def add_data(name: str, path: Path, store: Path, task: str | None, text: str | None, label: str | None) -> Path:
    """Copies a file, or a directory with train.* and perhaps validation.* and test.*, into the store as parquet."""
    check_name(name, {one.name for one in data_sets(store) if not one.added} | {*NO_DATA})
    given = {split: str(found) if found else None for split, found in files_of(path).items()}
    columns: Any = text.split(",") if text and "," in text else text
    files.check(given, columns, label, files.Settings(task, None, VALIDATION_SHARE, 0, False))
    wanted = Wanted("dataset", name, None, store, splits=True)
    with writing(store), locked(lock_of(wanted)):
        if wanted.directory.exists():
            raise UserError(f"{wanted.directory} is there already: take another name, or kd data remove {name}.")
        work = work_of(wanted.directory)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for split, found in given.items():
            if found:
                write_parquet(Path(found), work / f"{STORED[split]}.parquet")
        record.write(work, {"name": name, "kind": "dataset", "source": "added", "from": str(path.resolve()),
                            "date": today(), "task": task, "text": columns, "label": label})  # fmt: skip
        put(work, wanted.directory)
        document.write(store)
    return wanted.directory


def files_of(path: Path) -> dict[str, Path | None]:
    """The file of each split. Raises UserError if there is none to train on, or several for one split."""
    if not path.is_dir():
        return {"train": path, "validation": None, "test": None}
    found: dict[str, Path | None] = {}
    for split, names in SPLITS.items():
        there = [
            one for one in sorted(path.iterdir()) if suffix_of(one) in SUFFIXES and one.name.split(".")[0] in names
        ]
        if len(there) > 1:
            raise UserError(f"{path} has several files for {split}: {', '.join(one.name for one in there)}. Leave one.")
        found[split] = there[0] if there else None
    if found["train"] is None:
        raise UserError(f"{path} has no file named train ({', '.join(SUFFIXES)}): give one file, or name it train.")
    return found


def write_parquet(source: Path, path: Path) -> None:
    """The rows of any file that kd reads; a parquet file as it is, with the names of its classes."""
    import pyarrow
    from pyarrow import parquet

    if source.suffix == ".parquet":
        shutil.copyfile(source, path)
    else:
        parquet.write_table(pyarrow.table(dict(read_table(source).columns)), path)
