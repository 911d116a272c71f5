"""Any data set of the Hugging Face hub, or a directory that ``datasets`` understands, by its id.

``check`` runs before ``datasets`` is imported: without a network that library tries for half a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.columns import choose
from kd.errors import UserError, nearest
from kd.files import Settings, assemble
from kd.network import hub_address, hub_reachable, offline
from kd.sources import TextData
from kd.store import SPLITS
from kd.tables import SUFFIXES, Table, named_classes, suffix_of

NAMES = SPLITS | {"validation": ("validation", "dev", "valid", "val")}


def check(data_id: str | None) -> str:
    """What ``load_dataset`` is to be given: a directory, or the id. Raises UserError if it cannot be had."""
    if data_id is None:
        raise UserError("data=hub needs the name of a data set there: data.id=stanfordnlp/imdb (or a directory).")
    data_id = str(data_id)
    path = Path(data_id).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_file() or suffix_of(path) in SUFFIXES:
        raise UserError(f"data.id={data_id} names a file: data=files data.train={data_id} reads it.")
    if data_id.startswith((".", "/", "~")) or data_id.count("/") > 1:
        raise UserError(f"data.id={data_id}: there is no such directory, and names on the hub are like owner/name.")
    if hub_reachable():
        return data_id
    why = "HF_HUB_OFFLINE or KD_OFFLINE is set" if offline() else "it cannot be reached from here"
    go_offline()
    found = snapshot(data_id) or (data_id if prepared(data_id) else None)
    if found is None:
        raise UserError(
            f"data.id={data_id} is neither a directory nor in the cache of {hub_address()[0]} on this disk, and {why}. "
            f"With a network, fetch it once: hf download --repo-type dataset {data_id}"
        )
    return found


def go_offline() -> None:
    """For the rest of the process nothing asks the hub again."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it keeps a copy
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def snapshot(data_id: str) -> str | None:
    """The repository as ``hf download`` leaves it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return str(snapshot_download(data_id, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(f"data.id={data_id} is no name of a data set: {str(error).rstrip('.')}.") from error


def prepared(data_id: str) -> bool:
    """Whether ``load_dataset`` was called with this id before: it keeps ``owner___name``."""
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets")).expanduser()
    wanted = data_id.replace("/", "").replace("_", "").lower()
    return cache.is_dir() and any(entry.name.replace("_", "").lower() == wanted for entry in cache.iterdir())


def load(
    name: str, id: str | None, subset: str | None, splits: dict[str, str | None], task: str | None,
    text: str | Sequence[str] | None, label: str | None, label_names: Sequence[Any] | None, validation_share: float,
    split_seed: int, drop_empty: bool, cache: str,
) -> TextData:  # fmt: skip
    """The splits as named in ``splits``, or by their usual names."""
    source = check(id)
    assert id is not None
    found = fetched(source, id, subset, cache)
    chosen = choose_splits(id, list(found), splits)
    tables = {split: table_of(found[there], f"{id}, {there}") for split, there in chosen.items()}
    columns = choose(tables["train"], text, label, task)
    for split in [split for split in tables if split != "train"]:
        if split == "test" and columns.label is not None and columns.label not in tables[split].columns:
            print(f"{tables[split].where} has no column {columns.label!r}; only validation is scored.")
            del tables[split]
            continue
        tables[split].require(columns.all, "give data.text and data.label that all splits have")
    return assemble(name, tables, columns, Settings(task, label_names, validation_share, split_seed, drop_empty))


def fetched(source: str, data_id: str, subset: str | None, cache: str) -> Any:
    from datasets import DatasetDict, disable_progress_bars, enable_progress_bars, load_dataset

    on_hub = source == data_id and not Path(source).is_dir()
    (enable_progress_bars if on_hub and not os.environ.get("HF_HUB_OFFLINE") else disable_progress_bars)()
    try:
        # the library's own cache for what comes from the hub: it may have it from earlier
        found = load_dataset(source, subset, cache_dir=None if on_hub else str(Path(cache).expanduser() / "text"))
    except Exception as error:  # it raises many kinds; each means that there is nothing to read
        said = " ".join(str(error).split())
        hint = ". Give one as data.subset." if "onfig" in said else ""
        raise UserError(f"data.id={data_id}{f' data.subset={subset}' if subset else ''}: {said}{hint}") from error
    assert isinstance(found, DatasetDict)
    return found


def choose_splits(data_id: str, there: list[str], splits: dict[str, str | None]) -> dict[str, str]:
    """Which of the data set's splits are train, validation and test; what is not used is said."""
    chosen = {}
    for split, names in NAMES.items():
        wanted = splits[split]
        if wanted is not None and wanted not in there:
            raise UserError(
                f"data.{split}={wanted}: {data_id} has the splits {', '.join(there)}.{nearest(wanted, there)}"
            )
        usual = wanted or next((name for name in names if name in there), None)
        if usual is not None:
            chosen[split] = usual
    if "train" not in chosen:
        raise UserError(f"{data_id} has no split named train, only {', '.join(there)}: give data.train=NAME.")
    unused = [name for name in there if name not in chosen.values()]
    said = ", ".join(split if split == name else f"{split} ({name})" for split, name in chosen.items())
    print(f"{data_id}: splits {said}{'; not used: ' + ', '.join(unused) if unused else ''}")
    return chosen


def table_of(rows: Any, where: str) -> Table:
    classes = named_classes(rows.features.to_dict())
    columns = {name: rows.data.column(name) for name in rows.column_names}
    return Table(where, "row", columns, range(1, len(rows) + 1), classes)
