"""Whether the files of an artefact are those that were saved: checksums in kd.json, and no pickle among them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.store import ABOUT, file_hash

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz")  # run code when loaded, or may


def sums(directory: Path) -> dict[str, str]:
    """The sha256 of each file that decides what a model answers, by name."""
    deciding = (*directory.glob("*.safetensors"), *directory.glob("*.json"), *directory.glob("*.txt"))
    return {path.name: file_hash(path) for path in sorted(deciding) if path.name != ABOUT}


def refuse_pickles(directory: Path, known: Collection[str] = ()) -> None:
    """Raises UserError for a file that some library would unpickle: nothing here reads or needs one.

    ``known`` are files of a runtime's own format that have such a name, as OpenVINO's model.bin.
    """
    for path in sorted(directory.iterdir()):
        if path.suffix.lower() in PICKLES and path.name not in known:
            raise UserError(
                f"{path} can hold a pickle, which runs code when it is loaded, and no model that kd wrote has one. If "
                "you put it there, move it elsewhere; else do not trust this directory."
            )


def check(directory: Path, about: dict[str, Any], required: bool) -> None:
    """Raises UserError for a file that is missing or differs from what ``about`` (kd.json) noted of it.

    ``required``: also if it noted nothing of the weights.
    """
    if required and "model.safetensors" not in about.get("sha256", {}):
        raise UserError(f"{directory / ABOUT} has no checksum of the weights: copy the whole directory again.")
    for name, noted in about.get("sha256", {}).items():
        path = directory / name
        if not path.is_file():
            raise UserError(
                f"{path} is missing: it was there when the model was saved. Copy the whole directory again."
            )
        if file_hash(path) != noted:
            raise UserError(
                f"{path} is not what was saved: it has {path.stat().st_size} bytes and its sha256 is not the one in "
                f"{ABOUT}, so it was cut off or changed. Copy the whole directory again; if you meant to change the "
                f'file, take it out of "sha256" in {ABOUT}.'
            )
