"""What there is by name: the files of conf/, and what was added to the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from kd.command_line import conf_dir
from kd.errors import UserError, nearest
from kd.library import added
from kd.library.known import DATA, MODELS, Known
from kd.library.shape import shape
from kd.library.sizes import BYTES, parameters
from kd.store import Wanted, source_of

ROLES = ("teacher", "student")
NO_DATA = ("files", "hub", "demo")  # of conf/data: somebody's own, and what kd makes up
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is built in
USUAL_WORDS = 30_522  # of the uncased BERTs
TEACHER_FROM, STUDENT_TO = 100_000_000, 50_000_000  # parameters


@dataclass(frozen=True)
class Model:
    """A name that ``teacher=`` or ``student=`` takes; ``architecture`` is empty where it is the teacher's.

    ``own_weights``: files belong to it. ``added``: it is somebody's own, known from the store alone.
    """

    name: str
    roles: tuple[str, ...]
    hub_id: str | None
    architecture: Mapping[str, Any]
    known: Known
    own_weights: bool = True
    added: bool = False
    of_teacher: bool = False  # its vocabulary is the teacher's; its architecture has USUAL_WORDS in its place

    @property
    def parameters(self) -> int | None:
        return parameters(self.architecture) if self.architecture else None

    @property
    def bytes(self) -> int | None:
        return BYTES * self.parameters if self.parameters is not None else None

    @property
    def suits(self) -> str:
        """The role that its size speaks for."""
        if len(self.roles) == 1:
            return self.roles[0]
        if self.parameters is None or STUDENT_TO < self.parameters < TEACHER_FROM:
            return "either"
        return "teacher" if self.parameters >= TEACHER_FROM else "student"

    def wanted(self, store: Path) -> Wanted:
        return Wanted("model", self.name, self.hub_id, store)


@dataclass(frozen=True)
class DataSet:
    """A name that ``data=`` takes, and the one it has in the store."""

    name: str
    stored_as: str
    hub_id: str | None
    task: str | None
    label_names: Sequence[str]
    known: Known
    splits: bool = False  # its validation part is split off
    added: bool = False

    def wanted(self, store: Path) -> Wanted:
        return Wanted("dataset", self.stored_as, self.hub_id, store, self.splits)


def read_yaml(group: str, name: str) -> dict[str, Any]:
    found = yaml.load((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"), LOADER)
    assert isinstance(found, dict)
    return found


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def node(role: str, name: str) -> dict[str, Any]:
    """What conf/ says of a model, its own file in conf/model included."""
    found = read_yaml(role, name)
    for default in found.pop("defaults", ()):
        found = read_yaml("model", default["/model@_here_"]) | found
    return found


def models(store: Path) -> list[Model]:
    """All of them by name; one that is another thing as a teacher than as a student is there twice."""
    found: dict[tuple[str, str], Model] = {}
    for role in ROLES:
        for name in names(role):
            said = node(role, name)
            architecture = {} if name == "layers" else numbers(said["architecture"])
            of_teacher = any(str(value).startswith("${") for value in said["architecture"].values())
            key = (name, repr(architecture))
            roles = (*(found[key].roles if key in found else ()), role)
            known = MODELS.get(name, Known("Apache-2.0 (kd)"))
            found[key] = Model(
                name, roles, said["hub_id"], architecture, known, "weights" not in said, of_teacher=of_teacher
            )
    return sorted([*found.values(), *added_models(store)], key=lambda model: (model.parameters or 0, model.name))


def numbers(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """YAML's 1e-5 is a text, and so is the teacher's vocabulary."""
    usual = {key: USUAL_WORDS if str(value).startswith("${") else value for key, value in architecture.items()}
    return {key: float(value) if key.endswith("eps") else value for key, value in usual.items()}


def added_models(store: Path) -> list[Model]:
    found = []
    for path in added.directories("models", store):
        known = Known(source_of(path).get("licence") or "not given")
        found.append(Model(path.name, ROLES, None, shape(path), known, added=True))
    return found


def data_sets(store: Path) -> list[DataSet]:
    found = []
    for name in names("data"):
        if name in NO_DATA:
            continue
        said = read_yaml("data", name)
        source = said["source"]
        labels, stored_as = source["label_names"], source["name"]
        split_off = "validation_share" in source
        found.append(DataSet(name, stored_as, source["hub_id"], said["task"], labels, DATA[stored_as], split_off))
    for path in added.directories("data", store):
        about = source_of(path)
        known = Known(about.get("licence") or "not given")
        found.append(DataSet(path.name, path.name, None, about.get("task"), [], known, True, added=True))
    return found


def named(things: Sequence[Any], name: str, what: str) -> Any:
    """The first thing of that name. Raises UserError naming the nearest."""
    found = [thing for thing in things if thing.name == name]
    if not found:
        known = sorted({thing.name for thing in things})
        raise UserError(f"{name}: there is no {what} of that name.{nearest(name, known)} Known: {', '.join(known)}.")
    return found[0]


def model_named(name: str, store: Path) -> Model:
    return named(models(store), name, "model")  # type: ignore[no-any-return]


def data_named(name: str, store: Path) -> DataSet:
    return named(data_sets(store), name, "data set")  # type: ignore[no-any-return]


def named_things(wanted: Wanted) -> Sequence[Model | DataSet]:
    return models(wanted.store) if wanted.kind == "model" else data_sets(wanted.store)


def facts(wanted: Wanted) -> tuple[Known, Mapping[str, Any] | None]:
    """What is known of a name, if it is the one of conf/; another hub_id under that name is another thing."""
    for thing in named_things(wanted):
        if thing.wanted(wanted.store) == replace(wanted, splits=thing.wanted(wanted.store).splits):
            return thing.known, thing.architecture if isinstance(thing, Model) else None
    return Known("see the hub"), None
