"""Speed and memory of artefacts, each in a process of its own, all in turn.

Torch, ONNX Runtime and OpenVINO each bring their threads and their memory, so one process cannot measure them side by
side. Here one process works while the others sleep, in an order drawn anew for every round: what else the machine does
meets all of them alike. All get the same inputs and as many threads.
"""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from kd.measure_process import Measured, Worker, inputs_of

Lengths = Sequence[int]  # of the rows of a batch, in tokens

FEWEST_ROUNDS, MOST_ROUNDS = 3, 1000
BUSY = 1.6  # processes at work for each core


@dataclass(frozen=True)
class Shape:
    """A batch to time. A call of a few milliseconds is made several times a turn, after one that fills the caches."""

    rows: int
    length: int
    share: float  # of the time
    untimed: int
    seconds: float  # of a turn

    def __str__(self) -> str:
        return f"{self.rows}x{self.length}"


SHORT, LONG = Shape(1, 32, 0.25, 1, 0.03), Shape(1, 128, 0.2, 1, 0.03)
LARGE = Shape(32, 64, 0.25, 0, 0.0)
REAL_SHARE, REAL_ROWS = 0.3, 32


def race(
    workers: Sequence[Worker], batches: Sequence[Lengths], shape: Shape, vocabulary: int, seconds: float, title: str
) -> dict[str, list[list[float]]]:
    """Seconds of the timed calls of each worker, by name and batch. A round is one batch, for all workers in turn.

    Whole rounds only, at least FEWEST_ROUNDS after one that does not count.
    """
    found: dict[str, list[list[float]]] = {worker.place.name: [[] for _ in batches] for worker in workers}
    order = random.Random(0)
    for worker in workers:  # warm-up
        worker.turn(batches[0], vocabulary, 1, 0.0)
    start = time.perf_counter()
    with tqdm(total=100, desc=f"Measuring {title}", leave=False, bar_format="{desc}: {percentage:3.0f}%|{bar}|") as bar:
        for count in range(MOST_ROUNDS):
            spent = (time.perf_counter() - start) / max(seconds, 1e-9)
            if spent >= 1 and count >= FEWEST_ROUNDS:
                break
            bar.update(min(100, int(100 * spent)) - int(bar.n))
            batch = count % len(batches)
            for worker in order.sample(workers, len(workers)):
                found[worker.place.name][batch] += worker.turn(batches[batch], vocabulary, shape.untimed, shape.seconds)
    return found


def measure(
    places: Sequence[Measured], seconds: float, threads: int, lengths: Sequence[Lengths] = ()
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Figures by name, and what to know about them. The CPU is measured, with batches of tokens that are all real,
    and, of ``lengths``, batches of rows of those lengths, padded to the longest.

    Of a call: ``latency_ms_p50``, ``latency_ms_p95`` (batch 1 x 32), ``latency_ms_p50_128``,
    ``latency_ms_p95_128``, ``latency_ms_p50_32x64``, ``rows_per_second`` (32 x 64), ``rows_per_second_real``.
    ``peak_memory_bytes`` is the largest resident memory of the process: interpreter, runtime, model, a 32 x 64 batch.

    Opening and warm-up come on top of ``seconds``. Raises UserError for what cannot be opened.
    """
    models = {place.name: inputs_of(place.directory) for place in places}
    vocabulary = min(model.vocabulary for model in models.values())
    short = min(models, key=lambda name: models[name].positions)
    longest = models[short].positions
    figures: dict[str, dict[str, float]] = {place.name: {} for place in places}
    notes = [
        f"{shape} was measured as {shape.rows}x{longest}: {short} takes no more tokens"
        for shape in (SHORT, LONG, LARGE) if shape.length > longest
    ] + busy()  # fmt: skip
    with contextlib.ExitStack() as stack:
        workers = []
        for place in places:  # all start at once, then each is waited for
            workers.append(Worker(place, models[place.name], threads))
            stack.callback(workers[-1].close)
        for worker in workers:
            worker.answer()
        for shape in (SHORT, LONG, LARGE):
            batch = [min(shape.length, longest)] * shape.rows
            found = race(workers, [batch], shape, vocabulary, shape.share * seconds, str(shape))
            for name, (spent,) in found.items():
                figures[name] |= summary(shape, spent)
        for worker in workers:
            figures[worker.place.name]["peak_memory_bytes"] = worker.ask("memory")["bytes"]
        if lengths:
            cut = [[min(length, longest) for length in rows] for rows in lengths]
            found = race(workers, cut, SHORT, vocabulary, REAL_SHARE * seconds, "real lengths")
            for name, several in found.items():
                figures[name]["rows_per_second_real"] = throughput(cut, several)
            timed = sum(bool(spent) for spent in several)
            if timed < len(cut):
                notes.append(f"real lengths: the first {timed} of {len(cut)} batches, for want of time")
        restless = [worker.place.name for worker in workers if not worker.asleep]
        if restless:
            notes.append(f"threads of {', '.join(restless)} computed on between turns, at the others' expense")
    return figures, notes


def summary(shape: Shape, seconds: Sequence[float]) -> dict[str, float]:
    p50, p95 = (1000 * float(np.quantile(seconds, q)) for q in (0.5, 0.95))
    if shape is LARGE:
        return {"latency_ms_p50_32x64": p50, "rows_per_second": 1000 * shape.rows / p50}
    end = "" if shape is SHORT else f"_{shape.length}"
    return {f"latency_ms_p50{end}": p50, f"latency_ms_p95{end}": p95}


def throughput(batches: Sequence[Lengths], seconds: Sequence[Sequence[float]]) -> float:
    """Rows a second over the batches that were timed, from the median of each."""
    timed = [(len(rows), statistics.median(spent)) for rows, spent in zip(batches, seconds, strict=True) if spent]
    return sum(rows for rows, _ in timed) / sum(median for _, median in timed)


def compared_with(figures: dict[str, dict[str, float]], reference: str) -> None:
    """Adds how many times as fast as the reference each is: ``speed_up`` (1 x 32) and ``speed_up_32x64``."""
    one = figures[reference]
    for found in figures.values():
        found["speed_up"] = one["latency_ms_p50"] / found["latency_ms_p50"]
        found["speed_up_32x64"] = found["rows_per_second"] / one["rows_per_second"]


def in_batches(lengths: Iterable[int]) -> list[list[int]]:
    """The lengths of all rows as batches of REAL_ROWS, in their order."""
    whole = [int(length) for length in lengths]
    return [whole[start : start + REAL_ROWS] for start in range(0, len(whole), REAL_ROWS)]


def legend(about: dict[str, Any]) -> str:
    """What the columns of the figures mean; ``about``: threads, reference and notes."""
    threads = about["threads"]
    text = (
        f"Speed on the CPU, {threads} thread{'s' * (threads > 1)}, each model in a process of its own, in turn: p50 "
        f"and p95 of a call (rows x tokens); x: times as fast as {about['reference']}; real: batches of {REAL_ROWS} "
        "validation rows as they come; memory: the most that the process held."
    )
    return f"{text} Note: {'; '.join(about['notes'])}." if about["notes"] else text


def busy() -> list[str]:
    """What to know about a machine on which others work too."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load < BUSY * cores:
        return []
    return [f"the machine was busy (load {load:.0f} on {cores} cores), so rather trust ratios than milliseconds"]
