"""The runs below some directories: their reports and what they were set to, read without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kd.errors import UserError
from kd.resume import HARMLESS, leaves

NAMES = ("data", "teacher", "student", "method", "quant")
# What does not determine the scores of a run that finished.
NO_RESULT = (*HARMLESS, "teacher.gate", "trainer.log_every_n_steps", "method.diagnose", "quant.sensitivity")


@dataclass(frozen=True)
class Run:
    """A finished run; ``settings`` is what determines its result, the seed apart, by dotted key."""

    directory: Path
    report: dict[str, Any]
    settings: dict[str, Any]
    seed: int
    finished: float  # when its report was written


def read_config(path: Path) -> dict[str, Any]:
    """The settings a run wrote, by dotted key. Raises ValueError or OSError for any other file."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # omegaconf and yaml raise many kinds; each means that this is no such file
        raise ValueError(f"{path.name} cannot be read: {error}") from error
    settings = dict(leaves(loaded)) if isinstance(loaded, dict) else {}
    missing = [key for key in ("seed", *(f"{name}.name" for name in NAMES)) if key not in settings]
    if missing:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}")
    return settings


def read_report(path: Path) -> dict[str, Any]:
    """Raises ValueError or OSError for what is no report of kd."""
    report = json.loads(path.read_text(encoding="utf-8"))
    try:
        scores = [figures["validation"][report["select"]] for figures in report["models"].values()]
        if not scores or not all(isinstance(value, int | float) for value in scores):
            raise ValueError("it has no validation scores")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it lacks what a report of kd has ({type(error).__name__}: {error})") from error
    return report  # type: ignore[no-any-return]


def read_run(directory: Path) -> Run:
    if not (directory / "config.yaml").is_file():
        raise ValueError("there is no config.yaml beside it")
    report, settings = read_report(directory / "report.json"), read_config(directory / "config.yaml")
    seed = settings.pop("seed")
    if not isinstance(seed, int):
        raise ValueError(f"config.yaml has seed={seed}, which is no whole number")
    kept = {
        key: value for key, value in settings.items()
        if value is not None  # an earlier kd, which had no such setting, left it out
        and not any(key == other or key.startswith(f"{other}.") for other in NO_RESULT)
    }  # fmt: skip
    return Run(directory, report, kept, seed, (directory / "report.json").stat().st_mtime)


def refuse(error: OSError) -> None:
    """os.walk passes over what it may not read; nothing is left out in silence here."""
    raise UserError(f"{error.filename} cannot be read: {error.strerror}.") from error


def run_directories(place: Path) -> Iterator[tuple[Path, bool]]:
    """Every directory at or below the place with a report (True) or with a config.yaml alone (False)."""
    if place.is_file() and place.name == "report.json":
        yield place.parent, True
        return
    if not place.is_dir():
        raise UserError(f"{place}: no such directory. Give directories of runs or of sweeps, or report.json files.")
    for here, below, files in os.walk(place, onerror=refuse):
        below[:] = sorted(name for name in below if name != "wandb" and not name.startswith("."))  # copies, unfinished
        if "report.json" in files or "config.yaml" in files:
            yield Path(here), "report.json" in files


def find(places: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """Every finished run below the places, each once, and the directories of runs that have no report.

    Raises UserError, in one paragraph for all, for reports that cannot be read, and if there is none at all.
    """
    found = {path.resolve(): (path, finished) for place in places for path, finished in run_directories(place)}
    runs, broken, unfinished = [], [], []
    for directory, finished in found.values():
        try:
            if finished:
                runs.append(read_run(directory))
            else:
                read_config(directory / "config.yaml")
                unfinished.append(directory)
        except (OSError, ValueError) as error:
            if finished:  # a config.yaml alone may be anybody's
                broken.append(f"{directory / 'report.json'}: {error}")
    if broken:
        raise UserError(
            f"Not to be compared: {'; '.join(broken)}. Name directories without "
            f"{'it' if len(broken) == 1 else 'them'}, or move {'it' if len(broken) == 1 else 'them'} away."
        )
    if not runs:
        raise UserError(f"No report.json below {', '.join(map(str, places))}. {said(unfinished)}".strip())
    return runs, unfinished


def said(unfinished: Sequence[Path]) -> str:
    """Counts and names the runs without a report, a line each; empty if there is none."""
    if not unfinished:
        return ""
    count = "1 run" if len(unfinished) == 1 else f"{len(unfinished)} runs"
    lines = [f"  {directory}{reason(directory / 'error.txt')}" for directory in unfinished]
    return "\n".join([f"{count} without a report (failed, stopped or still running):", *lines])


def reason(path: Path) -> str:
    """Why a run failed, if it left a word."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8").strip().partition("\n")[0]
    return f": {text[:100]}{' ...' if len(text) > 100 else ''}"
