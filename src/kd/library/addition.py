"""One's own checkpoint as a model of the store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.library import document, record
from kd.library.catalogue import models
from kd.library.checked import WEIGHTS, check_model
from kd.library.installation import lock_of, put, today, work_of, writing
from kd.library.rewrite import rewrite
from kd.library.sources import PICKLED, TOKENIZERS
from kd.store import Wanted, locked


def add(name: str, path: Path, store: Path, licence: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Copies a model directory into the store under a new name, once it was checked; its architecture."""
    check_name(name, {model.name for model in models(store) if not model.added})
    if not (path / "config.json").is_file():
        what = "is no directory" if not path.is_dir() else "has no config.json, so it is no model directory"
        raise UserError(
            f"{path} {what}: give one with config.json, {WEIGHTS} and a tokenizer, as save_pretrained has it."
        )
    wanted = Wanted("model", name, None, store)
    with writing(store), locked(lock_of(wanted)):
        if wanted.directory.exists():
            raise UserError(f"{wanted.directory} is there already: take another name, or kd models remove {name}.")
        work = work_of(wanted.directory)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        try:
            notes = copied(path, work)
            architecture = check_model(work)
        except UserError as error:
            shutil.rmtree(work)
            raise UserError(str(error).replace(str(work), str(path))) from error
        record.write(work, {"name": name, "kind": "model", "source": "added", "from": str(path.resolve()),
                            "licence": licence, "date": today(), "notes": notes})  # fmt: skip
        put(work, wanted.directory)
        document.write(store)
    return wanted.directory, architecture


def check_name(name: str, taken: set[str]) -> None:
    if not name.replace("-", "_").isidentifier() or name != name.strip("-_"):
        raise UserError(f"{name}: a name has letters, digits, _ and -, and begins with a letter.")
    if name in taken:
        raise UserError(f"{name} is the name of something else that kd knows: take another one.")


def copied(path: Path, work: Path) -> list[str]:
    """The files of a model that are needed, weights as safetensors; what there is to say about them."""
    notes: list[str] = []
    for file in ("config.json", "kd.json", WEIGHTS, *TOKENIZERS):
        if (path / file).is_file():
            shutil.copyfile(path / file, work / file)
    if not (work / WEIGHTS).is_file() and (path / PICKLED).is_file():
        count = rewrite(path / PICKLED, work / WEIGHTS)
        notes.append(f"{PICKLED} was read without running anything in it; its {count} tensors are in {WEIGHTS}")
    return notes
