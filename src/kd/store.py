"""A name becomes files on this disk: the store first, the hub's cache next, then a download (``kd.library``).

Also what keeps stored things right: content keys, locks, and directories that appear whole or not at all.
Nothing heavy is imported, so a missing file is named before torch is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from kd.errors import OccupiedError, UserError
from kd.network import OFFLINE, offline, reachable

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ABOUT = "kd.json"  # what kd says about a directory of its own, beside what transformers reads
SOURCE = "source.json"  # beside what kd downloaded or was given: where it comes from, and its checksums
CLAIMED: list[Any] = []  # the locks of run directories that this process holds
SPLITS = {"train": ("train",), "validation": ("dev", "validation", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class Wanted:
    """Something to be found by name: a ``model`` or a ``dataset`` (the hub's words for them)."""

    kind: str
    name: str
    hub_id: str | None
    store: Path
    splits: bool = False  # a data set without validation will do: a part of train is split off

    @property
    def directory(self) -> Path:
        return self.store / ("models" if self.kind == "model" else "data") / self.name

    @property
    def by_id(self) -> Path:
        """Where it lies if its name stands for something else."""
        return self.directory.with_name(str(self.hub_id).replace("/", "--"))

    @property
    def fix(self) -> str:
        """The command that brings it: kd's for a name that it knows, else that of the hub's client."""
        from kd.library.catalogue import named_things

        if any(one.wanted(self.store).name == self.name and one.hub_id == self.hub_id for one in named_things(self)):
            return f"kd {'models' if self.kind == 'model' else 'data'} download {self.name}"
        return f"hf download {'--repo-type dataset ' if self.kind == 'dataset' else ''}{self.hub_id}"


def weights_file(directory: Path) -> Path | None:
    return next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)


def split_files(directory: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, by how their names begin (``dev.parquet``, ``train-00000-of-00001.parquet``)."""
    files = sorted(directory.rglob("*.parquet"))
    return {
        split: [file for file in files if file.stem.split("-")[0] in prefixes] for split, prefixes in SPLITS.items()
    }


def complete(kind: str, directory: Path, splits: bool = False) -> bool:
    if kind == "model":
        return (directory / "config.json").is_file() and weights_file(directory) is not None
    found = split_files(directory)
    return bool(found["train"] and (splits or found["validation"]))


def store_directory() -> Path:
    """The store of this machine, as conf/config.yaml has it: KD_STORE, or a directory of the cache."""
    cache = os.environ.get("KD_CACHE", "~/.cache/kd")
    return Path(os.environ.get("KD_STORE") or f"{cache}/store").expanduser()


def source_of(directory: Path) -> dict[str, Any]:
    """What kd noted of files that it brought (``kd.library``); empty for others'. Raises UserError if it is broken."""
    path = directory / SOURCE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}): remove {directory} and download it again.") from error
    return found


def find(wanted: Wanted) -> Path | None:
    """Where the thing lies on this disk, or None. Opens no connection."""
    for directory in (wanted.directory, *([wanted.by_id] if wanted.hub_id else [])):
        if complete(wanted.kind, directory, wanted.splits):
            ids = {source_of(directory).get("hub_id"), wanted.hub_id} - {None}
            if len(ids) < 2:  # else kd brought another model under this name
                return directory
    if wanted.hub_id is None:
        return None
    from huggingface_hub import constants

    if not Path(constants.HF_HUB_CACHE, f"{wanted.kind}s--{wanted.hub_id.replace('/', '--')}").is_dir():
        return None  # without the import of what follows
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(wanted.hub_id, repo_type=wanted.kind, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if complete(wanted.kind, snapshot, wanted.splits) else None


def addresses(wanted: Wanted) -> list[str]:
    """Where a download would ask, in order."""
    from kd.library.catalogue import facts
    from kd.library.places import places

    return [place.address for place in places(wanted, facts(wanted)[0])]


def require(wanted: list[Wanted]) -> None:
    """Raises UserError, in one paragraph for all, if something is neither on the disk nor to be had."""
    missing = [item for item in dict.fromkeys(wanted) if find(item) is None]
    if not missing or (not offline() and all(reachable(addresses(item)) for item in missing)):
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    hosts = dict.fromkeys(urlparse(one).netloc for item in missing for one in addresses(item))
    set_to = [name for name in OFFLINE if os.environ.get(name)]
    why = f"a download is ruled out ({set_to[0]} is set)" if offline() else "nothing else is to be asked"
    if hosts and not offline():
        why = f"{' and '.join(hosts)} cannot be reached from here"
    what = " and ".join(f"the {item.kind} {item.name} ({item.hub_id or 'on no hub'})" for item in missing)
    where = ", ".join(str(item.directory) for item in missing)
    fixes = "\n".join(f"  {item.fix}" for item in missing if item.hub_id)
    raise UserError(
        f"Missing: {what}. Looked in {where}, then in the hub's cache {HF_HUB_CACHE}; {why}. "
        f"With a network, fetch once:\n{fixes}\n"
        f"or copy config.json, model.safetensors and the tokenizer (a data set: train.parquet and dev.parquet) "
        f"into the directory named for it (KD_STORE moves them). Without any weights or "
        f"data, experiment=demo runs everything on made-up text."
    )


def fetch(wanted: Wanted) -> Path:
    """The directory of the thing, downloaded into the store if it is not on the disk."""
    found = find(wanted)
    if found is not None:
        return found
    require([wanted])
    from kd.library.installation import install

    return install(wanted)


def content_key(**parts: Any) -> str:
    """A short hash of everything given; equal parts give equal keys on every machine."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def directory_hash(directory: Path) -> str:
    """A hash of the contents of all files of a model directory, but for the note where they come from."""
    files = sorted(path for path in directory.iterdir() if path.is_file() and path.name != SOURCE)
    return content_key(**{path.name: file_hash(path) for path in files})


@contextlib.contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Holds a lock beside ``path``: a second process waits until the first has made it, saying ``waiting``."""
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(waiting, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``path`` when the block ends well; an interrupted one is never ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{path.name}.unfinished-", dir=path.parent))
    unfinished.chmod(0o755)
    try:
        yield unfinished
        if path.exists():
            shutil.rmtree(path)
        unfinished.rename(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file that appears whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def said_about(directory: Path) -> dict[str, Any]:
    """The kd.json of an artefact; empty where there is none, as beside a model of another maker."""
    path = directory / ABOUT
    if not path.is_file():
        return {}
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is broken ({error}): take the artefact from its run again.") from error
    return about


def text_columns(directory: Path) -> tuple[str, ...]:
    """How the text columns were called that a model was trained on; empty where its kd.json does not say."""
    return tuple(said_about(directory).get("text_columns", ()))


def claim(output: Path, config: str, resume: bool) -> None:
    """Makes the run directory this process's own until it ends, and writes config.yaml.

    Raises OccupiedError for a directory in which another process runs, or ran if this run does not ``resume`` it: two
    would overwrite each other's files.
    """
    if rank() > 0:  # the first rank does it
        return
    from filelock import FileLock, Timeout

    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OccupiedError(
            f"{output} is in use: another process trains there. Wait for its end, or stop it."
        ) from None
    CLAIMED.append(lock)  # the system lets go of it when the process ends, whatever ends it
    path = output / "config.yaml"
    if resume:
        return
    if path.exists():
        raise OccupiedError(
            f"{output} already belongs to a run (there is a config.yaml). Go on with it by resume={output}, or name "
            "another directory with hydra.run.dir=..."
        )
    write_text(path, config)


def local_rank() -> int:
    """The number of the device that this process has on its machine; 0 but for jobs on several."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def rank() -> int:
    """The number of this process in its job over all machines: 0 speaks, writes and logs."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # torchrun; Lightning's further processes; srun
    return int(next((os.environ[name] for name in names if name in os.environ), "0"))
