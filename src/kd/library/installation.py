"""A name's files into the store, and out of it. What is there is always whole and noted."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.library import document, record
from kd.library.catalogue import facts, named_things
from kd.library.checked import WEIGHTS, check_model
from kd.library.download import SPARE_BYTES, ChangedError, RefusedError, new_client
from kd.library.places import Place, places
from kd.library.sizes import BYTES, parameters
from kd.library.sources import Session, bring
from kd.network import OFFLINE, offline
from kd.store import SOURCE, Wanted, complete, locked


def install(wanted: Wanted, new_checksums: bool = False) -> Path:
    """The directory in the store, downloaded from the first source that has it. One process downloads, others wait.

    ``new_checksums`` accepts another content than the one recorded at an earlier download; pinned sums hold always.
    Raises UserError with what each source said.
    """
    wanted = under_own_name(wanted)
    there = places_of(wanted)
    if offline():
        named = next(name for name in OFFLINE if os.environ.get(name))
        raise UserError(
            f"{wanted.name} is not in the store {wanted.store}, and {named} in the environment rules downloads out: "
            "unset it where there is a network."
        )
    if not there:
        raise UserError(f"{wanted.name} is to be had nowhere by that name: {no_source(wanted)}")
    with writing(wanted.store), locked(lock_of(wanted), f"Another process is downloading {wanted.name}; waiting ..."):
        if complete(wanted.kind, wanted.directory, wanted.splits):
            return wanted.directory
        check_free(wanted.directory)
        work = work_of(wanted.directory)
        work.mkdir(parents=True, exist_ok=True)
        try:
            return from_first(wanted, there, work, new_checksums)
        except UserError:  # and not a Ctrl-C: then all that arrived is gone on with
            tidy(work)
            raise


def under_own_name(wanted: Wanted) -> Wanted:
    """A known name with another hub_id is another model: it is kept by that id."""
    known = {thing.wanted(wanted.store).name: thing.hub_id for thing in named_things(wanted)}
    if wanted.hub_id is None or known.get(wanted.name, wanted.hub_id) == wanted.hub_id:
        return wanted
    return replace(wanted, name=wanted.by_id.name)


def places_of(wanted: Wanted) -> list[Place]:
    return places(wanted, facts(wanted)[0])


def no_source(wanted: Wanted) -> str:
    command = "kd models add NAME DIR" if wanted.kind == "model" else "kd data add NAME FILE"
    return f"copy it to {wanted.directory}, or set KD_MIRROR to a store that has it. Your own: {command}."


def from_first(wanted: Wanted, there: list[Place], work: Path, new_checksums: bool) -> Path:
    known, architecture = facts(wanted)
    recorded = {} if new_checksums else record.checksums(wanted.store)
    said, changed = [], False
    with new_client() as client:
        unreached: set[str] = set()
        for number, source in enumerate(there):
            session = Session(wanted, known, architecture, recorded, client, unreached=unreached)
            print(f"Downloading {wanted.name} from {source.address} ...", flush=True)
            try:
                here = work / f"{number}-{source.kind}"
                here.mkdir(exist_ok=True)
                check_room(session, source)
                directory = bring(source, session, here)
                check(wanted, directory, session)
            except RefusedError as error:
                changed = changed or isinstance(error, ChangedError)
                said.append(f"{source.address}: {error}".replace(f"{source.address}: {source.address}", source.address))
                continue
            finish(session, source, directory)
            shutil.rmtree(work)
            return wanted.directory
    hint = ""
    if changed:
        hint = " If its makers changed it and you trust them, --new-checksums accepts what is there now."
    others = f" Other ways: its files in {wanted.directory}, or KD_MIRROR=ADDRESS of a store that has it."
    raise UserError(f"{wanted.name} could not be downloaded. " + "; ".join(said) + f".{hint or others}")


def check_room(session: Session, source: Place) -> None:
    """Raises UserError if the disk is too small for what its architecture will take, before anything is asked for."""
    if session.architecture:
        copies = 3 if source.layout == "archive" else 1  # packed, unpacked and converted
        needed, store = copies * BYTES * parameters(session.architecture), session.wanted.store
        free = shutil.disk_usage(store).free
        if free < needed + SPARE_BYTES:
            raise UserError(
                f"{session.wanted.name} takes about {needed / 1e6:,.0f} MB while it is fetched, and the disk of "
                f"{store} has {free / 1e6:,.0f} MB free: make room, or name another store with KD_STORE."
            )


def check(wanted: Wanted, directory: Path, session: Session) -> None:
    """Raises RefusedError if what arrived is not what was wanted."""
    try:
        if wanted.kind == "model":
            say_family(directory, session.architecture)
            check_model(directory, session.architecture)
        elif not complete(wanted.kind, directory, wanted.splits):
            raise UserError(f"there are no parquet files for train{'' if wanted.splits else ' and validation'}")
    except UserError as error:
        raise RefusedError(str(error).replace(f"{directory}/", "").replace(str(directory), "what arrived")) from error


def say_family(directory: Path, architecture: Mapping[str, Any] | None) -> None:
    """Older checkpoints do not say their model_type; the name does."""
    path = directory / "config.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is broken ({error})") from error
    if architecture and "model_type" not in stored:
        path.write_text(json.dumps({"model_type": architecture["model_type"], **stored}, indent=2), encoding="utf-8")


def finish(session: Session, source: Place, directory: Path) -> None:
    """Notes where the files come from, and gives them their name."""
    wanted = session.wanted
    for path in directory.rglob("*"):
        if path.name.startswith(".") or path.suffix == ".part":
            path.unlink()  # what downloads noted, and a part of what is no longer there
        elif path.is_file():
            path.chmod(0o644)
    about = {
        "name": wanted.name, "kind": wanted.kind, "hub_id": wanted.hub_id, "source": source.kind,
        "from": source.address,
        "licence": session.known.licence, "date": today(), "columns": session.columns, "notes": session.notes,
        "downloaded": session.files,
    }  # fmt: skip
    record.write(directory, about)
    record.note_checksums(wanted.store, session.sums)
    put(directory, wanted.directory)
    document.write(wanted.store)


def put(directory: Path, place: Path) -> None:
    if place.exists():  # what kd brought there before, and is no longer whole
        shutil.rmtree(place)
    directory.replace(place)


def check_free(place: Path) -> None:
    """Raises UserError for a directory of that name that kd did not make: it is never overwritten."""
    if place.exists() and not (place / SOURCE).is_file() and any(place.iterdir()):
        raise UserError(
            f"{place} is there, but is not complete (a model has config.json, {WEIGHTS} and a tokenizer; data have "
            "train.parquet and dev.parquet), and kd did not make it: complete it, or move it away."
        )


@contextlib.contextmanager
def writing(store: Path) -> Iterator[None]:
    """Raises UserError for a store that cannot be written, and for a disk that is full."""
    try:
        (store / record.LOCKS).mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if isinstance(error, PermissionError) or error.errno == 30:
            raise UserError(
                f"The store {store} cannot be written ({error.strerror}): set KD_STORE to a directory of your own, or "
                "have someone do it who may."
            ) from error
        raise UserError(
            f"Writing {error.filename or store} failed: {error.strerror}. Nothing there looks finished that is not; "
            "make room and repeat the command, which goes on from here."
        ) from error


def lock_of(wanted: Wanted) -> Path:
    return wanted.store / record.LOCKS / f"{wanted.kind}-{wanted.name}"


def work_of(place: Path) -> Path:
    """Where a download of it lies until it is whole."""
    return place.with_name(f".{place.name}.download")


def tidy(work: Path) -> None:
    """Leaves of a download that failed what can be gone on with: the beginning of a file."""
    if not any(work.rglob("*.part")):
        shutil.rmtree(work)


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def remove(wanted: Wanted) -> int:
    """Takes it out of the store, with what a broken-off download left; how many bytes. Its checksums stay recorded."""
    there = [place for place in (wanted.directory, work_of(wanted.directory)) if place.exists()]
    if not there:
        raise UserError(f"{wanted.name} is not in the store: there is no {wanted.directory}.")
    with writing(wanted.store), locked(lock_of(wanted)):
        size = sum(path.stat().st_size for place in there for path in place.rglob("*") if path.is_file())
        for place in there:
            gone = place.with_name(f".{place.name}.removed")
            shutil.rmtree(gone, ignore_errors=True)  # of a process that was killed here
            place.rename(gone)  # at once, so that no half of it is found
            shutil.rmtree(gone)
        document.write(wanted.store)
    return size
