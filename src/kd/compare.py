"""``kd compare``: the runs below some directories as one table, with what is certain and what is not."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from kd.comparison import METRICS, SHOWN, Comparison, Row, compared, gap, ranked, sort_column
from kd.errors import UserError
from kd.found import NAMES, find, said
from kd.groups import NONE, title
from kd.store import write_text
from kd.table import COLUMNS, markdown_table

FEW = 5


def compare(places: Sequence[Path], sort: str | None = None, out: Path | None = None) -> str:
    """The tables as text; with ``out`` also compare.md, compare.csv and compare.png there. Raises UserError."""
    runs, unfinished = find(places)
    found = compared(runs)
    column = sort_column(sort, found) if sort else None
    for one in found:
        one.rows = ranked(one, column or one.score, one.score)
    text = "\n\n".join([*(section(one, column, len(found) > 1) for one in found), *filter(None, [said(unfinished)])])
    if out is not None:
        try:
            write(out, found, text)
        except OSError as error:
            raise UserError(f"--out {out}: {error}. Name a directory that can be written to.") from error
    return text


def write(out: Path, found: Sequence[Comparison], text: str) -> None:
    from kd.comparison_picture import draw

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "compare.csv", csv_text(found))
    draw(found, out / "compare.png")
    write_text(out / "compare.md", f"# Comparison\n\n{text}\n\n![compare](compare.png)\n")


def section(one: Comparison, column: str | None, headed: bool) -> str:
    """A table, with what is common above it and what to know below it."""
    split = column if column in ("validation", "test") else one.score
    legend = (
        f"Mean ± sample standard deviation of n seeds; retention and agreement in % of the teacher, on {one.score}."
    )
    lines = [line for line in (verdict(one, split), *notes(one)) if line]
    parts = [heading(one), table(one), "\n".join([legend, *lines])]
    return "\n\n".join([f"## {one.data}, {one.select}", *parts] if headed else parts)


def heading(one: Comparison) -> str:
    count = sum(len(group.runs) for group in one.groups)
    seeds = {tuple(str(run.seed) for run in group.runs) for group in one.groups}
    same = f", seed={','.join(*seeds)} each" if len(seeds) == 1 else ""
    groups = f"in {len(one.groups)} groups" if len(one.groups) > 1 else "of one group"
    return f"{count} run{'s' * (count > 1)} {groups}{same}: {one.common()} ({one.select})"


def table(one: Comparison) -> str:
    """What was measured for no model has no column."""
    shown = [
        (name, form) for name, _, form in COLUMNS
        if name in SHOWN and any(row.values[name] for row in one.rows)
    ]  # fmt: skip
    header = [*one.keys, "model", "n", *(name for name, _ in shown)]
    rows = [
        [
            *(value or NONE for value in row.label.values()),
            row.model,
            str(row.n),
            *(cell(row, name, form) for name, form in shown),
        ]
        for row in one.rows
    ]
    return markdown_table(header, rows, left=len(one.keys) + 1)


def cell(row: Row, column: str, form: str) -> str:
    """``0.8660 ± 0.0080``, with the unit once. A size that is the same for all seeds has no deviation."""
    number, _, unit = form.partition(" ")
    if not row.values[column]:
        return "–"
    text, std = number.format(row.mean(column)), row.std(column)
    if std is not None and (column != "weights" or float(number.format(std))):
        text += f" ± {number.format(std)}"
    missing = f" (of {len(row.values[column])})" if len(row.values[column]) < row.n else ""
    return f"{text} {unit}".rstrip() + missing


def name_of(row: Row, other: Row) -> str:
    """What to call a row beside another one."""
    label = {key: value for key, value in row.label.items() if value and value != NONE}
    return f"{title(label or row.label)}, {row.model}"


def verdict(one: Comparison, split: str) -> str:
    """Whether the best group is better than the next, as far as the seeds can tell."""
    students = [row for row in ranked(one, split, split) if row.model != "teacher" and row.values[split]]
    first = students[0] if students else None
    second = next((row for row in students if first and row.label != first.label), None)
    single = "One seed: no error bars; differences may be noise."
    if first is None or second is None:
        return single if all(row.n < 2 for row in one.rows) else ""
    difference = abs(first.mean(split) - second.mean(split))
    ahead = f"{100 * difference:.2f} points" if one.higher_is_better else f"{difference:.4f}"
    names = f"{name_of(first, second)}, {ahead} before {name_of(second, first)}"
    text = f"Best by {split} {one.select}: {names}"
    fewest = min(len(row.values[split]) for row in (first, second))
    if fewest < 2:
        return f"{text}. {single if all(row.n < 2 for row in one.rows) else 'One of them has one seed: no error.'}"
    _, error = gap(first.values[split], second.values[split])
    if not error:
        return f"{text}; their seeds do not differ at all, so there is no standard error."
    ratio = round(difference / error, 1)
    text += f", {ratio} standard errors of the difference"
    within = ": within noise" if ratio < 2 else ""
    rough = f"; with {fewest} seeds the error itself is rough" if fewest < FEW else ""
    return f"{text}{within}{rough}."


def notes(one: Comparison) -> list[str]:
    """What a reader of the figures has to know, the unwelcome included."""
    runs = [run for group in one.groups for run in group.runs]
    found = []
    for group in one.groups:
        for run in group.repeated:
            newer = next(kept for kept in group.runs if kept.seed == run.seed)
            found.append(
                f"Not counted: {run.directory}, repeated with the same settings and seed by {newer.directory}."
            )
    if any(len(row.values[name]) > row.n for row in one.rows for name in METRICS):
        found.append("A teacher that several runs share counts once (n); its timings are of all those runs.")
    guessing = [str(run.directory) for run in runs if not run.report.get("teacher_beats_chance", True)]
    if guessing:
        where = "in all runs" if len(guessing) == len(runs) else f"in {', '.join(guessing)}"
        found.append(f"The teacher does not beat guessing, so retention and agreement say nothing, {where}.")
    for key in ("machine", "torch", "kd"):
        values = sorted({str(run.report.get("about", {}).get(key)) for run in runs})
        if len(values) > 1:
            what = "timings are not comparable" if key == "machine" else "the runs are of several versions"
            found.append(f"{key}: {'; '.join(values)}: {what}.")
    return found


def csv_text(found: Sequence[Comparison]) -> str:
    """Every row with unrounded numbers, in the units of the table: ``weights_MB_mean``, ``_std``, ``_n``."""
    keys = list(dict.fromkeys([*NAMES, *(key for one in found for key in one.keys)]))
    units = {name: "_".join([*name.split(), *form.split()[1:]]) for name, _, form in COLUMNS}
    header = [*keys, "metric", "model", "seeds", "n"]
    header += [f"{units[name]}_{what}" for name in METRICS for what in ("mean", "std", "n")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for one in found:
        common = {key: one.groups[0].settings.get(f"{key}.name") for key in NAMES}
        for row in one.rows:
            label = common | {key: "" if value == NONE else value for key, value in row.label.items()}
            seeds = " ".join(map(str, sorted({run.seed for run in row.runs})))
            line = [*(label.get(key, "") for key in keys), one.select, row.model, seeds, row.n]
            for name in METRICS:
                mean, std = row.mean(name), row.std(name)
                line += ["" if math.isnan(mean) else mean, "" if std is None else std, len(row.values[name])]
            writer.writerow(line)
    return file.getvalue()
