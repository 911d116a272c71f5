"""``kd models convert``: somebody's checkpoint in an old format becomes a directory that kd and transformers load."""

from __future__ import annotations

from pathlib import Path

from kd.errors import UserError
from kd.library.addition import copied
from kd.library.checked import WEIGHTS, check_model
from kd.library.convert import convert
from kd.library.sources import PICKLED
from kd.store import new_directory


def convert_directory(directory: Path, out: Path, lower_case: bool | None) -> str:
    """Writes ``out``, which must not be there; what was done, for people. Raises UserError, leaving nothing."""
    if out.exists():
        raise UserError(f"{out} is there already: give another directory as --out.")
    pickled = (directory / PICKLED).is_file() and not (directory / WEIGHTS).is_file()
    try:
        with new_directory(out) as work:
            if pickled and (directory / "config.json").is_file():
                told = "; ".join(copied(directory, work))
            else:
                told = convert(directory, work, lower_case).told
            check(work, directory)
            for path in work.iterdir():
                path.chmod(0o644)
    except OSError as error:
        raise UserError(f"Writing {out} failed: {error.strerror}. Nothing is left of it.") from error
    return told


def check(work: Path, directory: Path) -> None:
    try:
        check_model(work)
    except UserError as error:
        raise UserError(str(error).replace(str(work), str(directory))) from error
