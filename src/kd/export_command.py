"""``kd export``: an artefact of a finished run for other runtimes, held against it on the run's own rows."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.architecture import container
from kd.errors import UserError, nearest
from kd.export import Target, missing, stored_target, target
from kd.export.directory import is_export, note_figures
from kd.table import SPEED, filled, markdown_table

if TYPE_CHECKING:
    from kd.datamodule import TextDataModule
    from kd.export.exporter import Exported
    from kd.tasks import Task

KEYS = [each.name for each in fields(Target) if each.name not in ("name", "of")]  # what --set sets
LIMITS = ("limits", "carried_limits")
SECONDS = 5.0  # of measuring, for each model


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("export", help="a model of a run for ONNX Runtime, OpenVINO ..., checked on its rows")
    parser.add_argument("--model", required=True, help="a student directory of a run, float or quantized")
    parser.add_argument("--to", required=True, metavar="NAME,...", help="targets: the files of conf/export/")
    parser.add_argument("--out", metavar="DIR", help="where the directories NAME/ go (default: RUN/export)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="[NAME.]KEY=VALUE",
        help="another value than the target's file has, such as calibration_rows=512, limits.agreement=0.995 or "
        "onnx_int4.group_size=64",
    )  # fmt: skip


def chosen(names: str, settings: list[str]) -> list[Target]:
    """The targets, with what ``--set`` changes: in the target that is named, else in all that have the key."""
    targets = {name: stored_target(name) for name in names.split(",")}
    for line in settings:
        name, key, value = parsed(line, list(targets))
        takers = [name] if name else [name for name, one in targets.items() if getattr(one, key) is not None]
        if not takers:
            raise UserError(f"--set {line}: none of {', '.join(targets)} takes {key}.")
        for name in takers:
            stored = {each: getattr(targets[name], each) for each in (*KEYS, "of")}
            merged = key in LIMITS and isinstance(value, dict) and stored[key] is not None
            targets[name] = target(name, stored | {key: asdict(stored[key]) | value if merged else value})
    return list(targets.values())


def parsed(line: str, targets: list[str]) -> tuple[str, str, Any]:
    """Of ``[NAME.]KEY=VALUE`` the target or "", the key and the value; ``limits.agreement`` is one limit of several.

    Raises UserError for a target that ``--to`` does not name, and a key that there is not.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    place, equals, text = line.partition("=")
    name, dot, rest = place.partition(".")
    if name not in targets and (name in KEYS or not dot):
        name, rest = "", place
    key, inner, limit = rest.partition(".")
    if key == "of":
        raise UserError(f"--set {line}: the model that kd export takes is --model.")
    if not equals or key not in KEYS or name not in ("", *targets) or (inner and key not in LIMITS):
        there = name in ("", *targets)
        wrong = f".{nearest(key, KEYS)}" if there else f": --to has {', '.join(targets)}.{nearest(name, KEYS)}"
        raise UserError(f"--set {line}: give [NAME.]KEY=VALUE with a key of {', '.join(KEYS)}{wrong}")
    try:
        value = container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"--set {line}: {text} is no value as in a YAML file.") from error
    return name, key, {limit: value} if inner else value


def config_of(path: Path) -> Any:
    """A run's config.yaml with the cache and the store of this machine: the run may have been on another one."""
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(path)
    for variable, key in (("KD_CACHE", "cache"), ("KD_STORE", "store")):
        if variable in os.environ:
            cfg.paths[key] = os.environ[variable]
            if key in cfg.data.source:
                cfg.data.source[key] = os.environ[variable]
    return cfg


def rows_of(directory: Path) -> tuple[TextDataModule, Task]:
    """The data of the run that the model is part of, as it reads them."""
    path = directory.parent / "config.yaml"
    if not path.is_file():
        raise UserError(
            f"{path} is missing: an export is checked on validation rows and calibrated on training rows, and the "
            "run's config.yaml says which. Give a model in the directory of its run, RUN/student."
        )
    from kd.artefact import load
    from kd.build import build, make_task
    from kd.datamodule import TextDataModule

    cfg = config_of(path)
    data = build(cfg.data.source)
    task = make_task(cfg.data, data)
    artefact = load(directory)
    rows = TextDataModule(
        task.prepare(data), {"student": artefact.tokenizer}, Path(cfg.paths.cache).expanduser(), cfg.data.batch_size,
        artefact.max_length, cfg.data.limit, 0, cfg.seed, task.units, cfg.data.truncation == "cut",
    )  # fmt: skip
    return rows, task


def check_source(directory: Path) -> None:
    if is_export(directory):
        raise UserError(f"--model {directory} is an export itself: give the model that it was made from.")


def export(arguments: argparse.Namespace) -> None:
    """Exits with 1 if an export did not pass its gate."""
    directory = Path(arguments.model).expanduser()
    check_source(directory)
    targets = chosen(arguments.to, arguments.set)
    lacking = [text for text in map(missing, targets) if text]
    if lacking:
        raise UserError(". ".join(lacking) + ".")
    rows, task = rows_of(directory)
    from kd.export.exporter import Exporter

    exporter = Exporter(directory, rows, task)
    output = Path(arguments.out).expanduser() if arguments.out else directory.parent / "export"
    done = []
    for one in targets:
        print(f"Exporting {directory.name} to {one.name} ...", file=sys.stderr)
        done.append(exporter.export(one, output))
    print(table(done, task))
    print(f"\n{times(directory, done, rows)}\n")
    failed = [one for one in done if not one.passed]
    for exported in failed:
        print(
            f"{exported.name} did not pass: {'; '.join(exported.reasons)}. It is kept in {exported.directory}/*.failed"
        )
    print(f"Everything is in {output}")
    if failed:
        sys.exit(1)


def times(directory: Path, done: list[Exported], rows: TextDataModule) -> str:
    """Latency and throughput beside the model they were made from, as a table; noted in each export.json."""
    import torch

    from kd.measure import compared_with, in_batches, legend, measure
    from kd.measure_process import Measured

    passed, threads = [one for one in done if one.passed], torch.get_num_threads()
    places = [Measured(directory.name, directory), *(Measured(one.name, one.directory) for one in passed)]
    lengths = in_batches(rows.splits["validation"].lengths)
    figures, notes = measure(places, SECONDS * len(places), threads, lengths)
    compared_with(figures, directory.name)
    for one in passed:
        note_figures(one.directory, figures[one.name])
    shown = filled({"models": figures, "select": ""}, SPEED)
    return f"{shown}\n\n{legend({'threads': threads, 'reference': directory.name, 'notes': notes})}"


def table(done: list[Exported], task: Task) -> str:
    points = "points" if task.higher_is_better else "percent"
    header = ["export", "weights", "max diff", "mean diff", "agreement", f"validation {task.select}", points, "gate"]
    rows = [
        [
            one.name, f"{one.weights_bytes / 1e6:.2f} MB", f"{one.figures['max_difference']:.1e}",
            f"{one.figures['mean_difference']:.1e}", f"{100 * one.figures['agreement']:.2f} %",
            f"{one.figures['score']:.4f}", f"{one.figures['score_difference']:+.2f}",
            "passed" if one.passed else "FAILED",
        ]
        for one in done
    ]  # fmt: skip
    return markdown_table(header, rows)
