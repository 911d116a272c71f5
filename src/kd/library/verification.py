"""Whether what is in the store is still what came there."""

from __future__ import annotations

from pathlib import Path

from kd.errors import UserError
from kd.library import record
from kd.library.checked import check_model
from kd.store import complete, source_of, split_files


def verified_model(directory: Path) -> tuple[bool, str]:
    """Whether it is right, and what there is to say: sums first, then whether its files fit each other."""
    if not directory.is_dir():
        return False, f"it is not in the store: there is no {directory}"
    try:
        wrong = record.differing(directory)
        if wrong:
            return False, ("; ".join(wrong) + f". Remove it and get it again: kd models remove {directory.name}")
        found = check_model(directory)
    except UserError as error:
        return False, str(error)
    shape = f"{found['model_type']}, {found['num_hidden_layers']} layers, {found['hidden_size']} wide"
    return True, f"{checked(directory)}; {shape}, weights, tokenizer and config.json fit"


def verified_data(directory: Path) -> tuple[bool, str]:
    from pyarrow import ArrowInvalid, parquet

    if not complete("dataset", directory, splits=True):
        return False, f"it is not in the store: there are no parquet files in {directory}"
    try:
        wrong = record.differing(directory)
        counts = {
            split: sum(parquet.ParquetFile(file).metadata.num_rows for file in files)
            for split, files in split_files(directory).items()
            if files
        }
    except (UserError, ArrowInvalid) as error:
        return False, str(error)
    if wrong:
        return False, ("; ".join(wrong) + f". Remove it and get it again: kd data remove {directory.name}")
    return True, f"{checked(directory)}; rows: {', '.join(f'{split} {count:,}' for split, count in counts.items())}"


def checked(directory: Path) -> str:
    count = len(source_of(directory).get("files", ()))
    return f"{count} files have the sha256 that was noted" if count else "no checksums were noted (put there by hand)"
