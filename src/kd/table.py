"""The columns of a report and its table, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

NONE = "–"


def scored(figures: dict[str, Any]) -> str:
    """The split that counts: test, where there are labels for it."""
    return "test" if "test" in figures else "validation"


Column = tuple[str, Callable[[dict[str, Any], str], Any], str]  # its name, its value and how that reads, with the unit

QUALITY: list[Column] = [
    ("validation", lambda f, select: f["validation"][select], "{:.4f}"),
    ("test", lambda f, select: f["test"][select], "{:.4f}"),
    ("retention", lambda f, _: 100 * f[f"{scored(f)}_retention"], "{:.1f} %"),
    ("agreement", lambda f, _: 100 * f[f"{scored(f)}_agreement"], "{:.1f} %"),
    ("as student", lambda f, _: 100 * f[f"{scored(f)}_as_student"], "{:.1f} %"),
    ("parameters", lambda f, _: f["parameters"] / 1e6, "{:.2f} M"),
    ("weights", lambda f, _: f["weights_bytes"] / 1e6, "{:.2f} MB"),
]
SPEED: list[Column] = [
    ("p50 1x32", lambda f, _: f["latency_ms_p50"], "{:.2f} ms"),
    ("x 1x32", lambda f, _: f["speed_up"], "{:.2f}"),
    ("p95 1x32", lambda f, _: f["latency_ms_p95"], "{:.2f} ms"),
    ("p50 1x128", lambda f, _: f["latency_ms_p50_128"], "{:.2f} ms"),
    ("rows/s 32x64", lambda f, _: f["rows_per_second"], "{:.0f}"),
    ("x 32x64", lambda f, _: f["speed_up_32x64"], "{:.2f}"),
    ("rows/s real", lambda f, _: f["rows_per_second_real"], "{:.0f}"),
    ("memory", lambda f, _: f["peak_memory_bytes"] / 1e6, "{:.0f} MB"),
]
COLUMNS = QUALITY + SPEED
SCORES = ("validation", "test")
TIMED = tuple(name for name, _, _ in SPEED)  # new at every measuring, also of one and the same model
SMALLER_IS_BETTER = ("parameters", "weights", "p50 1x32", "p95 1x32", "p50 1x128", "memory")


def cells(figures: dict[str, Any], select: str, columns: Sequence[Column] = COLUMNS) -> list[str]:
    row = []
    for _, get, form in columns:
        try:
            row.append(form.format(get(figures, select)))
        except KeyError:  # not measured, or no test labels
            row.append(NONE)
    return row


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned, so that it reads well on a terminal too; the first ``left`` columns are words."""
    widths = [
        max(1 + (i >= left), *(len(row[i]) for row in [header, *rows])) for i in range(len(header))
    ]  # at least "-:"
    rule = [("-" * w if i < left else "-" * (w - 1) + ":") for i, w in enumerate(widths)]
    lines = [
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in (header, rule, *rows)
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rows(report: dict[str, Any], columns: Sequence[Column] = COLUMNS) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a table."""
    header = ["model", *(name for name, _, _ in columns)]
    return header, [[name, *cells(figures, report["select"], columns)] for name, figures in report["models"].items()]


def filled(report: dict[str, Any], columns: Sequence[Column]) -> str:
    """A table without the columns that no model has a figure for; empty if none is left."""
    header, lines = rows(report, columns)
    kept = [i for i in range(len(header)) if any(line[i] != NONE for line in lines)]
    if len(kept) < 2:
        return ""
    return markdown_table([header[i] for i in kept], [[line[i] for i in kept] for line in lines])


def table(report: dict[str, Any]) -> str:
    """Two tables, for the width of a terminal: how good and large the models are, and how fast."""
    return "\n\n".join(filter(None, (filled(report, columns) for columns in (QUALITY, SPEED))))
