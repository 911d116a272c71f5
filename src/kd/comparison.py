"""Mean and standard deviation over seeds for every model of every group: the rows of ``kd compare``."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from kd.errors import UserError, nearest
from kd.found import NAMES, Run
from kd.groups import Group, made_groups, word
from kd.table import COLUMNS, SCORES, SMALLER_IS_BETTER, TIMED

METRICS = [name for name, _, _ in COLUMNS]
SHOWN = ["validation", "test", "retention", "agreement", "weights", "p50 1x32", "rows/s 32x64"]  # others: compare.csv


@dataclass
class Row:
    """A model of a group. ``values`` has one figure for each seed, for each column that was measured."""

    label: dict[str, str]
    model: str
    runs: list[Run]
    n: int
    values: dict[str, list[float]]

    def mean(self, column: str) -> float:
        """NaN where nothing was measured."""
        return statistics.fmean(self.values[column]) if self.values.get(column) else math.nan

    def std(self, column: str) -> float | None:
        """The sample standard deviation; None of a single value."""
        return statistics.stdev(self.values[column]) if len(self.values.get(column, ())) > 1 else None


@dataclass
class Comparison:
    """What can stand in one table: runs on the same data, judged by the same metric."""

    data: str
    select: str
    groups: list[Group]
    rows: list[Row]
    higher_is_better: bool = True  # of ``select``

    @property
    def keys(self) -> list[str]:
        return list(self.groups[0].label)

    @property
    def score(self) -> str:
        return "test" if any(row.values["test"] for row in self.rows) else "validation"

    def common(self) -> str:
        """The names that all groups share, as one would type them."""
        first = self.groups[0]
        return " ".join(f"{key}={first.settings[f'{key}.name']}" for key in NAMES if key not in first.label)


def compared(runs: Sequence[Run]) -> list[Comparison]:
    apart: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        apart[word(run.settings["data.name"]), run.report["select"]].append(run)
    found = []
    for (data, select), members in apart.items():
        groups = made_groups(members)
        rows = teacher_rows(groups, select)
        for group in groups:
            models = dict.fromkeys(model for run in group.runs for model in run.report["models"] if model != "teacher")
            rows += [made_row(group.label, model, group.runs, select) for model in models]
        found.append(Comparison(data, select, groups, rows, members[0].report.get("higher_is_better", True)))
    return found


def made_row(label: dict[str, str], model: str, runs: Sequence[Run], select: str) -> Row:
    having = [run for run in runs if model in run.report["models"]]
    every = [run.report["models"][model] for run in having]
    once = list({scores(figures): figures for figures in every}.values()) if model == "teacher" else every
    values = {name: numbers(every if name in TIMED else once, name, select) for name in METRICS}
    return Row(label, model, having, len(once), values)


def numbers(every: Sequence[dict[str, Any]], column: str, select: str) -> list[float]:
    get = next(get for name, get, _ in COLUMNS if name == column)
    found = []
    for figures in every:
        try:
            found.append(float(get(figures, select)))
        except KeyError:  # not measured, or no test labels
            continue
    return found


def scores(figures: dict[str, Any]) -> str:
    """What is equal in two reports of one and the same model, as timings are not."""
    return word([figures["validation"], figures.get("test"), figures.get("weights_bytes")])


def teacher_rows(groups: Sequence[Group], select: str) -> list[Row]:
    """A teacher that several groups share is one row, and its score is one value, however many runs loaded it."""
    shared: dict[Hashable, list[Group]] = defaultdict(list)
    for group in groups:
        found = {scores(run.report["models"]["teacher"]) for run in group.runs if "teacher" in run.report["models"]}
        settings = {key: value for key, value in group.settings.items() if key.startswith("teacher.")}
        if found:
            shared[word(settings), frozenset(found)].append(group)
    several = list(shared.values())
    if len({tuple(common_label(members).values()) for members in several}) < len(several):
        several = [[group] for members in several for group in members]  # never two rows of one label
    return [
        made_row(common_label(members), "teacher", [run for group in members for run in group.runs], select)
        for members in several
    ]


def common_label(groups: Sequence[Group]) -> dict[str, str]:
    """Empty where the groups differ."""
    first = groups[0].label
    return {key: value if all(g.label[key] == value for g in groups) else "" for key, value in first.items()}


def ranked(one: Comparison, column: str, score: str) -> list[Row]:
    """Best first; what was not measured last; among equals by score."""
    smaller = (*SMALLER_IS_BETTER, *(() if one.higher_is_better else SCORES))

    def key(row: Row, name: str) -> tuple[Any, ...]:
        if name in METRICS:
            mean = row.mean(name)
            return math.isnan(mean), mean if name in smaller else -mean
        if name == "n":
            return (-row.n,)
        text = row.model if name == "model" else row.label.get(name, "")
        try:
            return 0, float(text), ""
        except ValueError:
            return 1 if text else 2, 0.0, text  # a teacher of several groups comes last

    return sorted(one.rows, key=lambda row: (key(row, column), key(row, score)))


def sort_column(wanted: str, found: Sequence[Comparison]) -> str:
    """The column of that name, or the only one whose name begins so, in the table or else at all.

    Raises UserError if there is none.
    """
    shown = list(dict.fromkeys([*(key for one in found for key in one.keys), "model", "n", *SHOWN]))
    columns = list(dict.fromkeys([*shown, *METRICS]))
    close = [name for name in shown if name.startswith(wanted)] or [n for n in columns if n.startswith(wanted)]
    if wanted in columns or len(close) == 1:
        return wanted if wanted in columns else close[0]
    what = f"{', '.join(close)} all begin so." if close else f"no such column.{nearest(wanted, columns)}"
    raise UserError(f"--sort {wanted}: {what} Columns: {', '.join(columns)}.")


def gap(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The difference of the means and its standard error, of independent seeds (at least two each)."""
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in (first, second)))
    return statistics.fmean(first) - statistics.fmean(second), error
