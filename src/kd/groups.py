"""Runs that differ in nothing but the seed are one group; its label is what sets it apart from the others."""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.command_line import SEVERAL, conf_dir
from kd.found import NAMES, Run
from kd.resume import leaves

NONE = "–"  # a group has no such setting


@dataclass
class Group:
    """One run for each seed, in their order; ``repeated`` do not count: a newer one has the same seed."""

    runs: list[Run]
    repeated: list[Run]
    label: dict[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        return self.runs[0].settings


def word(value: Any) -> str:
    """As one would type it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def title(label: dict[str, str]) -> str:
    """What to call a group; empty for what is common to groups that differ in everything."""
    told = {key: value for key, value in label.items() if value}
    known = {key: value for key, value in told.items() if value != NONE}
    return ", ".join(f"{key}={value}" for key, value in (known or told).items())


def made_groups(runs: Sequence[Run]) -> list[Group]:
    """The groups in the order of their first runs, each with a label of its own."""
    same: dict[Hashable, list[Run]] = defaultdict(list)
    for run in runs:
        same[json.dumps(run.settings, sort_keys=True)].append(run)
    groups = []
    for members in same.values():
        by_age = sorted(members, key=lambda run: (run.finished, str(run.directory)))
        newest = {run.seed: run for run in by_age}
        repeated = [run for run in by_age if newest[run.seed] is not run]
        groups.append(Group(sorted(newest.values(), key=lambda run: run.seed), repeated, {}))
    every = {key: None for group in groups for key in group.settings}  # in order
    differing = [key for key in every if len({word(group.settings.get(key, NONE)) for group in groups}) > 1]
    telling = [key for key in differing if not all(comes_with_a_name(group.settings, key) for group in groups)]
    for group in groups:
        group.label = labelled(group.settings, telling)
    if len({title(group.label) for group in groups}) < len(groups):  # never two of one label
        for group in groups:
            group.label = labelled(group.settings, differing)
    return groups


def labelled(settings: dict[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """Names first, by their short keys: ``method`` for ``method.name``."""
    names = [f"{name}.name" for name in NAMES if f"{name}.name" in keys]
    return {
        key.removesuffix(".name") if key in names else key: word(settings.get(key, NONE))
        for key in [*names, *(key for key in keys if key not in names)]
    }


def comes_with_a_name(settings: dict[str, Any], key: str) -> bool:
    """Whether a setting is what its name says already: ``method.soft.temperature`` as conf/method/logit.yaml has it."""
    section, _, rest = key.partition(".")
    if section not in (*NAMES, "export") or key == f"{section}.name":
        return False
    if section in SEVERAL and "." in rest:
        block = rest.partition(".")[0]
        if not any(other.startswith(f"{section}.{block}.") for other in settings):
            return True  # this run names no such block
        return bool(settings.get(key) == defaults_of_block(section, block).get(key))
    default = defaults(section, settings[f"{section}.name"]).get(key)
    default = NONE if default is None else default  # as settings have it
    return settings.get(key, NONE) == default or str(default).startswith("${")


@functools.cache
def defaults_of_block(section: str, name: str) -> dict[str, Any]:
    """What a file has of which several can be named."""
    file = conf_dir() / section / f"{name}.yaml"
    plain = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else None
    return dict(leaves(plain, f"{section}.{name}.")) if isinstance(plain, dict) else {}


@functools.cache
def defaults(section: str, name: str) -> dict[str, Any]:
    """What conf/ has for a section and a name in it, an architecture's own file included."""
    found: dict[str, Any] = {}
    loaded = OmegaConf.load(conf_dir() / "config.yaml")
    parts = [loaded.get(section) if isinstance(loaded, DictConfig) else None]
    files = [conf_dir() / group / f"{name}.yaml" for group in ("model", section)]
    parts += [OmegaConf.load(file) for file in files if file.is_file()]
    for part in parts:
        plain = OmegaConf.to_container(part) if isinstance(part, DictConfig) else None
        found |= dict(leaves(plain, f"{section}.")) if isinstance(plain, dict) else {}
    return found
