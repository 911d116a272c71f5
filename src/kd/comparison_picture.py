"""compare.png: score against bytes and against latency, a colour for each group, a marker for each model."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.comparison import Comparison, Row
from kd.groups import title

MARKERS = "*osD^vPX<>hp"
PANELS = (("weights", "weights file, MB"), ("p50 1x32", "latency, batch 1 × 32 tokens, ms (p50)"))


def draw(found: Sequence[Comparison], path: Path) -> None:
    """Two panels for each comparison; error bars are the standard deviation over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [max("\n".join(map(wrapped, titles(one))).count("\n") + 1, len(models(one))) + 2 for one in found]
    heights = [4.2 + 0.21 * count for count in lines]
    figure = plt.figure(figsize=(12, sum(heights)), layout="constrained")
    for part, one in zip(figure.subfigures(len(found), 1, squeeze=False, height_ratios=heights), found, strict=True):
        panels(part[0], one)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def titles(one: Comparison) -> list[str]:
    """The labels of the groups, the best first; a teacher of all groups has none, and a single group needs none."""
    return list(filter(None, dict.fromkeys(title(row.label) for row in one.rows)))


def wrapped(label: str) -> str:
    """Leaves room for the markers on the right."""
    return textwrap.fill(label, 100)


def models(one: Comparison) -> list[str]:
    names = dict.fromkeys(row.model for row in one.rows)
    return sorted(names, key=lambda name: (name != "teacher", name))


def panels(part: Any, one: Comparison) -> None:
    from matplotlib import colormaps

    labels = titles(one)
    several = colormaps["tab10" if len(labels) <= 10 else "turbo"]
    colours = {label: several(i if len(labels) <= 10 else i / (len(labels) - 1)) for i, label in enumerate(labels)}
    markers = {model: MARKERS[i % len(MARKERS)] for i, model in enumerate(models(one))}
    part.suptitle(f"{one.common()}: {one.score} {one.select}")
    for axes, (column, xlabel) in zip(part.subplots(1, 2), PANELS, strict=True):
        for row in one.rows:
            point(axes, row, column, one.score, colours.get(title(row.label), "0.4"), markers[row.model])
        finish(axes, [row.mean(column) for row in one.rows if row.values[column]])
        axes.set(xlabel=xlabel, ylabel=f"{one.score} {one.select}")
    legend(part, colours, markers)


def point(axes: Any, row: Row, column: str, score: str, colour: Any, marker: str) -> None:
    if not row.values[column] or not row.values[score]:
        return
    axes.errorbar(
        row.mean(column), row.mean(score), xerr=row.std(column), yerr=row.std(score), marker=marker, color=colour,
        ms=12 if marker == "*" else 8, alpha=0.7, capsize=3, elinewidth=1, markeredgecolor="black",
        markeredgewidth=0.5,
    )  # fmt: skip


def finish(axes: Any, xs: Sequence[float]) -> None:
    axes.grid(alpha=0.3)
    axes.margins(0.1)
    if not xs:
        axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
        axes.set(xticks=[], yticks=[])
    elif max(xs) > 10 * min(xs) > 0:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)


def legend(part: Any, colours: dict[str, Any], markers: dict[str, str]) -> None:
    """Below the panels: colours on the left, markers on the right."""
    from matplotlib.lines import Line2D

    groups = [Line2D([], [], ls="", marker="o", ms=8, color=colour) for colour in colours.values()]
    kinds = [Line2D([], [], ls="", marker=marker, ms=8, color="0.4") for marker in markers.values()]
    if groups:
        part.legend(groups, [wrapped(label) for label in colours], loc="outside lower left", frameon=False)
    part.legend(kinds, list(markers), loc="outside lower right", frameon=False)
