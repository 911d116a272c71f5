"""The files that a training is gone on with from: written whole, checked, and the best weights that they name."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from kd.errors import UserError

LAST = "last.ckpt"
KEPT = "kept-"  # before the name of a best checkpoint that last.ckpt still speaks of


class WholeFiles(TorchCheckpointIO):
    """Writes beside the place and renames: a process killed while saving leaves the checkpoint of before.

    Lightning's own way goes through the directory for temporary files, which may lie on another disk; the move from
    there is a copy that can be cut off.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        place = Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)  # a full disk then is an OSError of ours, not a RuntimeError of the zip writer
        unfinished = place.with_name(f".{place.name}.unfinished")
        try:
            with unfinished.open("wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(place)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            error.filename = str(place)  # a full disk is met while writing, and then has no name
            raise


def steps_done(directory: Path, key: str | None = None) -> int:
    """The optimizer steps in the last saved state below ``directory``; 0 if there is none.

    Raises UserError for a state that cannot be read, or that was saved under another ``key`` than is given.
    """
    path = directory / "checkpoints" / LAST
    if not path.is_file():
        return 0
    if key is not None:
        check(path, key)
    return int(read(path)["global_step"])


def steps_logged(directory: Path) -> int:
    """How many of these steps' metrics are in the logs already; that of the last one may be in the state alone."""
    done = steps_done(directory)
    return done - bool(read(directory / "checkpoints" / LAST)["kd"]["metrics"]) if done else 0


def read(path: Path) -> dict[str, Any]:
    """A checkpoint, its tensors left on the disk. Raises UserError for a broken file."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path} cannot be read ({type(error).__name__}): the file is broken. Delete it to begin this training "
            "anew from step 0."
        ) from error
    return state


def check(path: Path, key: str, ranks: int | None = None) -> None:
    """Raises UserError for a checkpoint that other settings, other data or another number of devices left."""
    ours = read(path).get("kd", {})
    if ours.get("key") != key:
        raise UserError(
            f"{path} was saved by a run of another configuration than the config.yaml beside it says, or the data have "
            "changed since. Give resume= the directory that this checkpoint comes from, or delete the checkpoint to "
            "begin at step 0."
        )
    if ranks is not None and len(ours["random"]) != ranks:
        raise UserError(
            f"{path} was saved by {len(ours['random'])} processes, this is a run of {ranks}: resume it with as many "
            "devices as before."
        )


def random_state() -> dict[str, Any]:
    """All generators of this process, as what ``torch.load(weights_only=True)`` reads back."""
    name, keys, *rest = np.random.get_state(legacy=True)
    numpy_state = [name, np.asarray(keys).tolist(), *rest]
    state = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": numpy_state}
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(state["numpy"]))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu())


def keep_best(path: str, directory: Path) -> None:
    """A second name for the best checkpoint, for the time that last.ckpt speaks of it.

    Lightning deletes a best one as soon as there is a better; a process that is killed then goes on from before.
    """
    kept = directory / f"{KEPT}{Path(path).name}"
    if path and not kept.exists():
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, kept)


def drop_kept(path: str, directory: Path) -> None:
    """Once last.ckpt is written: the others are of no more use."""
    for kept in directory.glob(f"{KEPT}*"):
        if kept.name != f"{KEPT}{Path(path).name}":
            kept.unlink()


def find_best(state: dict[str, Any], directory: Path, leads: bool) -> None:
    """The best checkpoint lies beside the last one, also where the run directory was moved or copied.

    The rank that ``leads`` sees to it that it is there.
    """
    state["dirpath"] = str(directory)
    if not state["best_model_path"]:
        return
    best = directory / Path(state["best_model_path"]).name
    state["best_model_path"] = str(best)
    if not leads:
        return
    kept = directory / f"{KEPT}{best.name}"
    if not best.exists() and kept.exists():
        shutil.copyfile(kept, best)
    if not best.exists():
        raise UserError(f"{best} is missing, the best weights so far. Delete {directory / LAST} to begin at step 0.")
