"""report.png: the loss terms over the steps, and score against latency and bytes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(report: dict[str, Any], curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Left: each loss term over the steps. Right: score against latency, the area of a point its bytes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        short = name.removeprefix("train/loss/")
        total = name == "train/loss"
        label, width = ("weighted sum", 2.0) if total else (short, 1.2)
        left.plot(steps, smoothed(values), label=label, lw=width, marker="o" if len(steps) < 10 else None)
    left.set(xlabel="step", ylabel="loss (running mean)", title="Loss terms unweighted, and their weighted sum")
    left.grid(alpha=0.3)
    if curves:
        left.set_yscale("log")
        left.legend()
    scatter(right, report)
    figure.suptitle(report["title"])
    figure.savefig(path, dpi=120)
    plt.close(figure)


def smoothed(values: Sequence[float], span: int = 10) -> list[float]:
    return [statistics.fmean(values[max(0, i - span + 1) : i + 1]) for i in range(len(values))]


def scatter(axes: Any, report: dict[str, Any]) -> None:
    models, select = report["models"], report["select"]
    measured = all("latency_ms_p50" in figures for figures in models.values())
    largest = max(figures["weights_bytes"] for figures in models.values())
    split = "test" if all("test" in figures for figures in models.values()) else "validation"
    for i, (name, figures) in enumerate(models.items()):
        x = figures["latency_ms_p50"] if measured else figures["weights_bytes"] / 1e6
        size = 60 + 900 * figures["weights_bytes"] / largest
        label = f"{name}, {figures['weights_bytes'] / 1e6:.1f} MB"
        axes.scatter(x, figures[split][select], s=size, alpha=0.6, color=f"C{i}")
        axes.scatter([], [], s=60, alpha=0.6, color=f"C{i}", label=label)
    axes.set(
        xlabel="latency, batch 1 × 32 tokens, ms (p50)" if measured else "weights file, MB",
        ylabel=f"{split} {select}", title=f"{split.capitalize()} {select}; area: bytes of the weights file",
    )  # fmt: skip
    axes.margins(0.25)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)
