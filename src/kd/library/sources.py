"""Where a thing can come from, in the order that it is tried: hub, Google's archives, a mirror. None needs a token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlparse

import httpx2

from kd.errors import UserError
from kd.library import download
from kd.library.archive import unpack
from kd.library.checked import WEIGHTS
from kd.library.convert import convert
from kd.library.download import ChangedError, NotThereError, Received, RefusedError, UnreachableError
from kd.library.known import Known
from kd.library.places import Place
from kd.library.sizes import BYTES, parameters
from kd.store import SOURCE, SPLITS, Wanted, file_hash

PICKLED = "pytorch_model.bin"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
              "merges.txt")  # fmt: skip
SMALL = 64 << 20  # bytes of a file that holds no weights
MOST_DATA = 4 << 30  # bytes of a data file
CONVERTED = "refs/convert/parquet"  # where the hub keeps data sets as parquet that were uploaded otherwise


@dataclass
class Session:
    """One download of one thing: its connection, and the checksums that it must have or that it found."""

    wanted: Wanted
    known: Known
    architecture: Mapping[str, Any] | None
    recorded: Mapping[str, str]
    client: httpx2.Client
    sums: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unreached: set[str] = field(default_factory=set)
    columns: str | None = None  # of a data set: "hub" where they are called as there

    @property
    def most(self) -> int:
        """Bytes that weights may have: four times what the architecture takes, for heads and optimizer slots."""
        return SMALL + 4 * BYTES * parameters(self.architecture) if self.architecture else 16 << 30

    def get(self, url: str, path: Path, key: str, pinned: str | None = None, most: int = SMALL) -> Received:
        """Downloads a file; ``key`` is what its checksum is recorded under, the same wherever the server is."""
        host = urlparse(url).netloc
        if host in self.unreached:
            raise UnreachableError(f"{host} cannot be reached")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            received = download.download(self.client, url, path, pinned or self.recorded.get(key), most)
        except UnreachableError:
            self.unreached.add(host)
            raise
        except RefusedError as error:
            if pinned is None and key in self.recorded and "sha256" in str(error):
                raise ChangedError(str(error)) from error
            raise
        self.sums[key] = received.sha256
        self.files[path.name] = {"url": received.url, "sha256": received.sha256, "bytes": received.bytes}
        if received.commit:
            self.files[path.name]["commit"] = received.commit
        return received


def bring(place: Place, session: Session, work: Path) -> Path:
    """Downloads into ``work``, and returns the directory in it that has the files. Raises RefusedError."""
    if place.layout == "archive":
        return archived_model(session, work, place.address)
    if place.layout == "store":
        return stored(session, work, place.address)
    return (hub_model if session.wanted.kind == "model" else hub_data)(session, work, place.endpoint)


def hub_model(session: Session, work: Path, endpoint: str) -> Path:
    """config.json, weights and tokenizer; weights that are pickled are rewritten."""
    hub_id, directory = session.wanted.hub_id, work / "files"

    def get(name: str, most: int = SMALL) -> None:
        pinned = session.known.hub.get(name)
        session.get(f"{endpoint}/{hub_id}/resolve/main/{name}", directory / name, f"{hub_id}/{name}", pinned, most)

    get("config.json")
    try:
        get(WEIGHTS, session.most)
    except NotThereError:
        get(PICKLED, session.most)
        rewritten(session, directory)
    for name in TOKENIZERS:
        try:
            get(name)
        except NotThereError:  # each tokenizer has some of them; whether it is whole is checked later
            continue
    return directory


def rewritten(session: Session, directory: Path) -> None:
    from kd.library.rewrite import rewrite

    try:
        count = rewrite(directory / PICKLED, directory / WEIGHTS)
    except UserError as error:
        raise RefusedError(str(error)) from error
    (directory / PICKLED).unlink()
    session.notes.append(f"{PICKLED} was read without running anything in it; its {count} tensors are in {WEIGHTS}")


def archived_model(session: Session, work: Path, url: str) -> Path:
    """Google's zip file, converted."""
    directory, unpacked, archive = work / "files", work / "unpacked", work / "archive.zip"
    session.get(url, archive, str(session.known.archive), most=session.most)
    for one in (directory, unpacked):
        shutil.rmtree(one, ignore_errors=True)
    unpack(archive, unpacked, session.most)
    for name, sha256 in session.known.archived.items():
        for path in unpacked.rglob(name):
            if file_hash(path) != sha256:
                raise RefusedError(f"{url}: {name} in it does not have the sha256 {sha256}")
    directory.mkdir()
    try:
        made = convert(unpacked, directory, session.known.lower_case)
    except UserError as error:
        raise RefusedError(str(error).replace(f"{unpacked}/", "")) from error
    session.notes.append(f"TensorFlow checkpoint: {made.told}")
    return directory


def hub_data(session: Session, work: Path, endpoint: str) -> Path:
    """The parquet files of a data set, or those that the hub made of its other files."""
    hub_id, directory = session.wanted.hub_id, work / "files"
    for revision in ("main", CONVERTED):
        listing = work / f"listing-{revision.replace('/', '-')}.json"
        url = f"{endpoint}/api/datasets/{hub_id}/revision/{quote(revision, safe='')}"
        try:
            listing.unlink(missing_ok=True)  # it may have changed, and is small
            session.get(url, listing, f"listing of {hub_id} at {revision}")
        except NotThereError:
            continue
        finally:
            session.sums.pop(f"listing of {hub_id} at {revision}", None)
            session.files.pop(listing.name, None)
        wanted = parquet_files(listing, session.known.folder)
        for name, stored_as in wanted.items():
            base = f"{endpoint}/datasets/{hub_id}/resolve/{quote(revision, safe='')}"
            session.get(f"{base}/{name}", directory / stored_as, f"datasets/{hub_id}/{name}", most=MOST_DATA)
        if wanted:
            session.columns = "hub"
            return directory
    raise NotThereError(f"{endpoint}/datasets/{hub_id}: there are no parquet files of train, validation or test")


def parquet_files(listing: Path, folder: str) -> dict[str, str]:
    """Of the hub's listing of a repository, the files of known splits and how they are stored.

    Files are named by their split (``data/train-00000-of-00001.parquet``) or lie in a directory that is
    (``default/train/0000.parquet``).
    """
    try:
        there = [str(one["rfilename"]) for one in json.loads(listing.read_text(encoding="utf-8"))["siblings"]]
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"the hub's listing of files cannot be read ({type(error).__name__}: {error})") from error
    known, found = {name for names in SPLITS.values() for name in names}, {}
    for name in sorted(there):
        path = PurePosixPath(name)
        if path.suffix != ".parquet" or (folder and folder not in path.parts) or ".." in path.parts:
            continue
        if path.stem.split("-")[0] in known:
            found[name] = path.name
        elif path.parent.name in known:
            found[name] = f"{path.parent.name}-{path.name}"
    if len({*found.values()}) < len(found):
        raise RefusedError(f"it has several data sets ({', '.join(found)}), and conf/ does not say which is meant")
    return found


def stored(session: Session, work: Path, base: str) -> Path:
    """What another store has under the name, by its source.json."""
    directory, key = work / "files", f"{session.wanted.directory.parent.name}/{session.wanted.directory.name}"
    about = work / "mirror.json"
    about.unlink(missing_ok=True)
    session.get(f"{base}/{SOURCE}", about, f"{key}/{SOURCE}")
    session.sums.pop(f"{key}/{SOURCE}", None)
    session.files.pop(about.name, None)
    try:
        noted = json.loads(about.read_text(encoding="utf-8"))
        files = {str(name): str(one["sha256"]) for name, one in noted["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{base}/{SOURCE} cannot be read ({type(error).__name__}: {error})") from error
    for name, sha256 in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or path.suffix in (".bin", ".pkl", ".py"):
            raise RefusedError(f"{base} has a file that kd does not take: {name}")
        pinned = session.recorded.get(f"{key}/{name}", sha256)
        session.get(f"{base}/{name}", directory / name, f"{key}/{name}", pinned, max(session.most, MOST_DATA))
    session.notes += [*noted.get("notes", ()), f"from {noted.get('from', 'unknown')} by the mirror"]
    session.columns = noted.get("columns")
    return directory
