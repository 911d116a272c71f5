"""The columns of a report and its table, without torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def scored(figures: dict[str, Any]) -> str:
    """The split that counts: test, where there are labels for it."""
    return "test" if "test" in figures else "validation"


COLUMNS: list[tuple[str, Callable[[dict[str, Any], str], Any], str]] = [
    ("validation", lambda f, select: f["validation"][select], "{:.4f}"),
    ("test", lambda f, select: f["test"][select], "{:.4f}"),
    ("retention", lambda f, _: 100 * f[f"{scored(f)}_retention"], "{:.1f} %"),
    ("agreement", lambda f, _: 100 * f[f"{scored(f)}_agreement"], "{:.1f} %"),
    ("parameters", lambda f, _: f["parameters"] / 1e6, "{:.2f} M"),
    ("weights", lambda f, _: f["weights_bytes"] / 1e6, "{:.2f} MB"),
    ("p50 1x32", lambda f, _: f["latency_ms_p50"], "{:.2f} ms"),
    ("p95 1x32", lambda f, _: f["latency_ms_p95"], "{:.2f} ms"),
    ("rows/s 32x64", lambda f, _: f["rows_per_second"], "{:.0f}"),
]
SCORES = ("validation", "test")
TIMED = ("p50 1x32", "p95 1x32", "rows/s 32x64")  # new at every measuring, also of one and the same model
SMALLER_IS_BETTER = ("parameters", "weights", "p50 1x32", "p95 1x32")


def cells(figures: dict[str, Any], select: str) -> list[str]:
    row = []
    for _, get, form in COLUMNS:
        try:
            row.append(form.format(get(figures, select)))
        except KeyError:  # not measured, or no test labels
            row.append("–")
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


def rows(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table."""
    header = ["model", *(name for name, _, _ in COLUMNS)]
    return header, [[name, *cells(figures, report["select"])] for name, figures in report["models"].items()]


def table(report: dict[str, Any]) -> str:
    return markdown_table(*rows(report))
