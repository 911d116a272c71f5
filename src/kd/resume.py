"""``resume=RUN_DIR``: an earlier run goes on in its own directory, with the configuration that lies there.

Nothing heavy is imported, so that a wrong directory is answered at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.errors import UserError
from kd.store import content_key

# What may change on resuming, since no figure depends on it.
HARMLESS = (
    "debug", "profile", "resume", "logger", "paths", "report.measure", "report.measure_seconds", "data.num_workers",
    "data.source.cache", "data.source.store", "checkpoint",
)  # fmt: skip

FOUND = ("trainer.precision", "teacher.fine_tune.precision", "data.batch_size")  # auto: a run keeps what it found


def is_harmless(key: str) -> bool:
    return any(key == harmless or key.startswith(f"{harmless}.") for harmless in HARMLESS)


def directory_of(overrides: list[str]) -> Path | None:
    """The run directory that the command line wants to go on with. Raises UserError if it is none."""
    given = [line.lstrip("+").partition("=")[::2] for line in overrides]
    values = [value.strip("'\"") for key, value in given if key == "resume"]
    if not values or values[-1] in ("", "null"):
        return None
    directory = Path(values[-1]).expanduser().resolve()
    if not (directory / "config.yaml").is_file():
        runs = sorted(path.parent.name for path in directory.glob("*/config.yaml"))
        below = f" Below it are the runs {', '.join(runs[:4])}." if runs else ""
        raise UserError(
            f"resume={values[-1]}: there is no run, for there is no config.yaml.{below} Give the directory of one run."
        )
    places = [value.strip("'\"") for key, value in given if key in ("hydra.run.dir", "paths.output")]
    if any(Path(place).expanduser().resolve() != directory for place in places):
        raise UserError(f"resume={values[-1]} goes on in that run's own directory: leave out {places[0]}.")
    return directory


def keys(lines: list[str]) -> list[str]:
    """What a command line names, without ``resume`` itself."""
    found = [line.lstrip("+~").partition("=")[0] for line in lines]
    return [key for key in found if key != "resume"]


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """What determines the figures of a run: the resolved configuration without HARMLESS."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    for key in HARMLESS:
        *parents, leaf = key.split(".")
        node: Any = settings
        for parent in parents:
            node = node.get(parent, {})
        node.pop(leaf, None)
    return settings  # type: ignore[return-value]


def settings_key(cfg: DictConfig) -> str:
    """Equal for configurations that train alike."""
    return content_key(settings=settings_of(cfg))


def stored(directory: Path, given: DictConfig, named: list[str]) -> DictConfig:
    """The run's own configuration, with what was ``named`` anew on the command line where that is harmless.

    Raises UserError where a named setting differs from the run's and is not.
    """
    earlier = read_config(directory / "config.yaml")
    absent = [str(key) for key in given if key not in earlier]
    if absent:
        raise UserError(
            f"resume={directory}: that run was begun by an earlier kd, which had no {absent[0]} and trained in another "
            "way. Go on with it under that version, or start a new run."
        )
    wrong = []
    for key in FOUND:
        if plain(given, key) == "auto":
            OmegaConf.update(given, key, plain(earlier, key), merge=False)
    for key in named:
        if key == "experiment":  # a recipe leaves no name behind: its settings are compared
            both = [{(name, str(value)) for name, value in leaves(settings_of(cfg))} for cfg in (earlier, given)]
            differing = sorted(both[0] ^ both[1])
            wrong += [f"experiment: {name} differs" for name, _ in differing[:1]]
        elif is_harmless(key):
            OmegaConf.update(earlier, key, OmegaConf.select(given, key), merge=False)
        elif plain(earlier, key) != plain(given, key):
            wrong.append(f"{key} is {shown(earlier, key)} there, {shown(given, key)} here")
    if wrong:
        raise UserError(
            f"resume={directory} goes on with that run's own configuration, and the command line says something else: "
            f"{'; '.join(wrong[:3])}. Leave it out, or start a new run."
        )
    earlier.paths = OmegaConf.to_container(given.paths, resolve=True)  # this machine's, as the environment has them
    earlier.paths.output = earlier.resume = str(directory)
    for place in ("cache", "store"):
        if place in earlier.data.source:
            earlier.data.source[place] = earlier.paths[place]
    return earlier


def read_config(path: Path) -> DictConfig:
    try:
        found = OmegaConf.load(path)
    except (OSError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}): it is not what kd wrote."
        ) from error
    if not isinstance(found, DictConfig) or "seed" not in found or "method" not in found:
        raise UserError(f"{path} is not the configuration of a run of kd.")
    return found


def plain(cfg: DictConfig, key: str) -> Any:
    node = OmegaConf.select(cfg, key)
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def shown(cfg: DictConfig, key: str) -> str:
    """A group by its name, a setting by its value."""
    value = plain(cfg, key)
    return str(value.get("name", value) if isinstance(value, dict) else value)


def leaves(node: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted key, value)`` of every setting; a list is one value."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:  # 1 and 1.0 are one setting
            yield f"{prefix}{key}", int(value) if isinstance(value, float) and value.is_integer() else value
