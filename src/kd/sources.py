"""Text with labels, from wherever conf/data/ says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.store import Wanted, content_key, fetch, file_hash, source_of, split_files


@dataclass
class TextData:
    """Splits (``train``, ``validation``, perhaps ``test``) with columns ``text``, ``label``, for pairs ``text_pair``.

    ``key`` is a hash of the content. ``tokenizer`` is the data's own, for models that bring none. ``text_columns`` is
    what the one or two text columns are called where the data come from. ``task`` is the name of the task that the
    labels make, where the source can tell.
    """

    name: str
    splits: dict[str, Any]
    label_names: list[str]
    key: str
    tokenizer: Any = field(default=None, repr=False)
    text_columns: tuple[str, ...] = ("text",)
    task: str | None = None


def stored(
    name: str,
    hub_id: str | None,
    hub_columns: Mapping[str, str],
    label_names: Sequence[str],
    store: str,
    cache: str,
    columns: Mapping[str, str] | None = None,
    validation_share: float | None = None,
    split_seed: int = 0,
    validation_rows: int | None = None,
) -> TextData:
    """Parquet files of the store or of a hub data set, each with its columns renamed to ``text`` and ``label``.

    A label is a number of ``label_names``, a list of such numbers (rows of 0 and 1 are made of them), or a real
    number; words (``tokens``) have a list of such numbers, a tag each. Without ``label_names`` there is no label.
    ``validation_share`` splits validation off where there is none; ``validation_rows`` is the most that are taken.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # reading parquet takes no time worth one
    wanted = Wanted("dataset", name, hub_id, Path(store).expanduser(), splits=bool(validation_share))
    directory = fetch(wanted)
    as_stored = directory == wanted.directory and source_of(directory).get("columns") != "hub"
    renamed = dict((columns or {}) if as_stored else hub_columns)
    files = {split: paths for split, paths in split_files(directory).items() if paths}
    splits = {}
    for split, paths in files.items():
        rows = Dataset.from_parquet([str(path) for path in paths], cache_dir=str(Path(cache).expanduser() / "text"))
        rows = with_columns(rows, renamed, bool(label_names), f"{directory}: the {split} files")
        if not label_names or labelled(rows, split, len(label_names), directory):
            splits[split] = multi_hot(rows, len(label_names))
    if "validation" not in splits and validation_share:
        splits["train"], splits["validation"] = split_off(splits["train"], validation_share, split_seed)
    hashes = {split: [file_hash(path) for path in paths] for split, paths in files.items()}
    share = [validation_share, split_seed] if validation_share else None
    more: dict[str, int] = {"validation_rows": validation_rows} if validation_rows else {}
    if validation_rows and split_seed:
        more["split_seed"] = split_seed
    key = content_key(files=hashes, columns=renamed, labels=list(label_names), share=share, **more)
    if validation_rows and validation_rows < len(splits["validation"]):
        splits["validation"] = splits["validation"].shuffle(seed=split_seed).select(range(validation_rows))
    return TextData(name, splits, list(label_names), key)


def with_columns(rows: Any, renamed: Mapping[str, str], label: bool, where: str) -> Any:
    """The text (or its words) and, if ``label``, the label, under these names. Raises UserError for absent columns."""
    absent = sorted({*renamed} - set(rows.column_names))
    if absent:
        raise UserError(
            f"{where} have no column {', '.join(absent)}, only {', '.join(rows.column_names)}: set "
            "data.source.hub_columns."
        )
    before = {new: old for old, new in renamed.items()}  # other columns may have the new names
    texts = "tokens" if "tokens" in before else "text"
    wanted = [before.get(new, new) for new in ((texts, "label") if label else (texts,))]
    rows = rows.select_columns([column for column in wanted if column in rows.column_names])
    return rows.rename_columns({old: new for old, new in renamed.items() if old != new})


def labelled(rows: Any, split: str, classes: int, directory: Path) -> bool:
    """Whether a split has labels (hub test sets often have -1); raises UserError for labels out of range."""
    missing = {"tokens" if "tokens" in rows.column_names else "text", "label"} - set(rows.column_names)
    if missing:
        raise UserError(f"{directory}: the {split} files lack the column {', '.join(sorted(missing))}.")
    labels = rows["label"][:]  # read at once: row by row a column takes a hundred times as long
    found = {one for label in labels for one in label} if isinstance(labels[0], list) else set(labels)
    if found == {-1} and split == "test":
        print("The test split has no labels; only validation is scored.")
        return False
    if "tokens" in rows.column_names:
        uneven = [
            row for row, (words, tags) in enumerate(zip(rows["tokens"], labels, strict=True)) if len(words) != len(tags)
        ]
        if uneven:
            raise UserError(f"{directory}: row {uneven[0] + 1} of the {split} files has not as many tags as words.")
    if isinstance(labels[0], float):
        wrong = [label for label in found if not math.isfinite(label)]
    else:
        wrong = sorted(label for label in found if label not in range(classes))
    if wrong:
        raise UserError(f"{directory}: the {split} files have the labels {wrong[:5]}, known are 0 to {classes - 1}.")
    return True


def multi_hot(rows: Any, classes: int) -> Any:
    """Lists of label numbers as rows of 0 and 1; other labels as they are."""
    if "tokens" in rows.column_names or "label" not in rows.column_names or not isinstance(rows[0]["label"], list):
        return rows
    from datasets import Dataset

    marked = [[float(i in label) for i in range(classes)] for label in rows["label"][:]]
    return Dataset.from_dict({"text": rows["text"], "label": marked})


def split_off(rows: Any, share: float, seed: int) -> tuple[Any, Any]:
    """Training and validation rows, each label number shared out alike."""
    chosen = stratified(rows["label"][:], share, seed)
    print(f"Validation: {len(chosen)} of {len(rows)} training rows split off, {100 * share:g} % of each label")
    others = [i for i in range(len(rows)) if i not in chosen]
    return rows.select(others), rows.select(sorted(chosen))


def stratified(labels: Sequence[Any], share: float, seed: int) -> set[int]:
    """Rows that make a share of each label; of a label with two rows or more, one at least and not all."""
    import numpy as np

    random = np.random.default_rng(seed)
    rows_of: dict[Any, list[int]] = {label: [] for label in sorted(set(labels))}
    for i, label in enumerate(labels):
        rows_of[label].append(i)
    chosen: set[int] = set()
    for rows in rows_of.values():
        count = min(max(round(share * len(rows)), 1), len(rows) - 1)  # 0 of a single row
        chosen |= {int(row) for row in random.permutation(rows)[:count]}
    return chosen
