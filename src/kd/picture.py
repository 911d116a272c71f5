"""report.png: the loss terms over the steps, and score against latency and bytes of all models. bench.png: the last."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.point_labels import label

SMALLEST, GROWTH = 25, 500  # area of a marker, in points; the largest model's is the sum


def draw(report: dict[str, Any], curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Left: each loss term over the steps. Right: score against latency, the size of a point its bytes."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 6), layout="constrained", width_ratios=(2, 3))
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        short = name.removeprefix("train/loss/")
        total = name == "train/loss"
        called, width = ("weighted sum", 2.0) if total else (short, 1.2)
        left.plot(steps, smoothed(values), label=called, lw=width, marker="o" if len(steps) < 10 else None)
    left.set(xlabel="step", ylabel="loss (running mean)", title="Loss terms unweighted, and their weighted sum")
    left.grid(alpha=0.3)
    if curves:
        left.set_yscale("log")
        left.legend()
    figure.suptitle(report["title"])
    scatter(right, report)
    figure.savefig(path, dpi=figure.dpi)
    plt.close(figure)


def draw_alone(report: dict[str, Any], path: Path) -> None:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    figure.suptitle(report["title"])
    scatter(axes, report)
    figure.savefig(path, dpi=figure.dpi)
    plt.close(figure)


def pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["figure.dpi"] = 120
    return plt


def smoothed(values: Sequence[float], span: int = 10) -> list[float]:
    return [statistics.fmean(values[max(0, i - span + 1) : i + 1]) for i in range(len(values))]


def scatter(axes: Any, report: dict[str, Any]) -> None:
    """Score against latency at batch 1 x 32; against megabytes where latency or score is not there for all."""
    models, select = report["models"], report["select"]
    measured = all("latency_ms_p50" in figures for figures in models.values())
    split = next((s for s in ("test", "validation") if all(s in figures for figures in models.values())), None)
    largest = max(figures["weights_bytes"] for figures in models.values())
    marks: list[tuple[float, float, float, str]] = []
    for name, figures in models.items():
        size = figures["weights_bytes"] / 1e6
        x, y = figures["latency_ms_p50"] if measured else size, figures[split][select] if split else size
        area = SMALLEST + GROWTH * math.sqrt(figures["weights_bytes"] / largest)
        axes.scatter(x, y, s=area, alpha=0.6, color=f"C{len(marks) % 10}", zorder=2)
        marks.append((x, y, area, f"{name}, {size:.1f} MB"))
    latency = "latency, batch 1 × 32 tokens, ms (p50)"
    what = f"{split} {select}" if split else "weights, MB"
    axes.set(xlabel=latency if measured else "weights, MB", ylabel=what, title=f"{what}; larger points: more bytes")
    axes.margins(0.15)
    finish_scale(axes, [mark[0] for mark in marks])
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # or the lines to labels would move them
    label(axes, marks)


def finish_scale(axes: Any, xs: Sequence[float]) -> None:
    """Logarithmic, with plain numbers: many where the values are close."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_xscale("log")
    near = max(xs) < 8 * min(xs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8) if near else (1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
