"""What somebody added to the store, as conf/ would have it: so ``teacher=NAME`` and ``data=NAME`` find it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.library.shape import shape
from kd.store import SOURCE, source_of, split_files, store_directory


def names(group: str) -> list[str]:
    """The added names that a group of conf/ takes."""
    place = {"teacher": "models", "student": "models", "data": "data"}.get(group)
    return sorted(path.name for path in directories(place, store_directory())) if place else []


def directories(place: str, store: Path) -> list[Path]:
    """Those of a place in this machine's store; a broken one is told of and left out, so that others can be used."""
    found = []
    for path in sorted((store / place).glob(f"[!.]*/{SOURCE}")):
        try:
            if source_of(path.parent).get("source") == "added":
                if place == "models":
                    shape(path.parent)
                found.append(path.parent)
        except (UserError, OSError) as error:
            print(f"Left out: {error}", file=sys.stderr)
    return found


def register() -> None:
    """Gives hydra a node for each of them. May be called again: what was there is replaced."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for path in directories("models", store_directory()):
        for role in ("teacher", "student"):
            store.store(group=role, name=path.name, node=model_node(path))
    for path in directories("data", store_directory()):
        store.store(group="data", name=path.name, node=data_node(path))


def model_node(path: Path) -> dict[str, Any]:
    return {"name": path.name, "hub_id": None, "architecture": shape(path)}


def data_node(path: Path) -> dict[str, Any]:
    """``data=files`` with these files, and with what was said when they were added."""
    files = {split: str(paths[0]) if paths else None for split, paths in split_files(path).items()}
    about = source_of(path)
    said = {key: about[key] for key in ("task", "text", "label") if about.get(key) is not None}
    return {"defaults": ["files", "_self_"], "name": path.name, **files, **said}
