"""Runs one program in a process of its own and says how long its training takes."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speed.prepare import LAYERS, data_overrides
from speed.work import Work

HERE = Path(__file__).parents[1]
POOL = 50  # batches that transformers sorts by length together, the longest first
ANCHOR = "Loss ("  # kd prints its formula before it touches a training row: the teacher's pass and the steps follow


@dataclass
class Measured:
    """One training of ``rows * epochs`` rows.

    ``seconds``: from the start of the training (for kd: of the teacher's pass, if there is one) to the last step.
    ``step``: of one optimizer step, the mean over those that count. ``before``: from the start to the first step's end.
    ``later``: of kd, of a step in the epochs after the first, what lies between epochs left out: on few rows the first
    epoch meets new lengths all the time, for which the library prepares kernels.
    ``wall``: of the whole process, with imports and all; of one that was measured on a part, with ``seconds`` for it.
    """

    seconds: float
    step: float
    before: float
    wall: float
    megabytes: float
    steps_run: int
    probe: dict[str, float] = field(default_factory=dict)
    epochs: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    later: float = 0.0


def start(module: str, arguments: list[str], work: Work, log: Path, **environment: str) -> float:
    """Runs it to its end; returns the seconds it took. Its log tells why it failed."""
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    threads = {name: str(work.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    own = {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false"}
    begin = time.perf_counter()
    with log.open("w") as stream:
        code = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=stream, stderr=stream, cwd=work.directory,
            env=os.environ | own | threads | environment,
        ).returncode  # fmt: skip
    if code:
        raise SystemExit(f"{module} ended with {code}, {log}:\n{log.read_text()[-3000:]}")
    return time.perf_counter() - begin


def pooled(work: Work, setting: dict[str, Any]) -> int:
    """Steps after which the lengths of batches repeat: of a Trainer that groups by length, its pool of batches."""
    if setting.get("train_sampling_strategy") != "group_by_length":
        return 1
    return max(1, min(work.rows // (work.batch * 4), POOL))


def counted(work: Work, setting: dict[str, Any], part: int, warm_up: int) -> tuple[int, int]:
    """The first and the last step that are measured: after the warm-up, and whole pools of lengths."""
    pool = pooled(work, setting)
    first = -(-warm_up // pool) * pool
    last = min(first + -(-part // pool) * pool, work.steps // work.epochs)
    if last <= first:
        raise SystemExit(f"{work.rows} rows make {last} steps, all of them warm-up: take more rows.")
    return first, last


def peer(
    work: Work, module: str, setting: dict[str, Any], part: int, warm_up: int = 5, each_epoch: bool = False
) -> Measured:
    """One of the other programs, on ``part`` steps after the warm-up (0: the whole training)."""
    directory = Path(work.directory)
    file, out = directory / "work.json", directory / "out.json"
    work.save(file)
    first, last = counted(work, setting, part, warm_up) if part else (0, 0)
    more = ["--each-epoch"] if each_epoch else []
    arguments = [str(file), str(out), "--last", str(last), "--setting", json.dumps(setting), *more]
    wall = start(f"speed.{module}", arguments, work, directory / f"{module}.log")
    found = json.loads(out.read_text())
    ticks = [found["begin"], *found["ticks"]]
    whole = ticks[-1] - ticks[0]
    step = (ticks[-1] - ticks[first]) / (len(ticks) - 1 - first)
    seconds = step * work.steps if part else whole
    return Measured(
        seconds, step, ticks[1] - ticks[0], wall - whole + seconds, found["megabytes"], len(ticks) - 1,
        found["probe"], found["epochs"],
    )  # fmt: skip


def kd_overrides(work: Work, overrides: list[str]) -> list[str]:
    """The work as a command line."""
    weights = "teacher" if work.student == LAYERS else work.student_directory
    settings = {
        "teacher": work.teacher, "teacher.weights": work.path("teacher"), "teacher.gate": "false",
        "student": work.student, "student.weights": weights, "method": work.method,
        "optimizer.lr": work.lr, "data.batch_size": work.batch, "data.max_length": work.max_length,
        "seed": work.seed, "trainer": "cpu", "trainer.max_epochs": work.epochs, "logger": "csv",
        "report.measure": "false",
    }  # fmt: skip
    lines = [f"{key}={value}" for key, value in settings.items()]
    return [*data_overrides(Path(work.directory)), *lines, *overrides]


def kd_run(work: Work, overrides: list[str], cache: Path | None = None, sweep: bool = False) -> dict[str, Any]:
    """What a process of train.py did, in a new run directory and with an empty cache unless one is given."""
    directory = Path(work.directory)
    run, out = directory / "kd-run", directory / "out.json"
    shutil.rmtree(run, ignore_errors=True)
    if cache is None:
        cache = directory / "kd-cache"
        shutil.rmtree(cache, ignore_errors=True)
    place = ["-m", f"hydra.sweep.dir={run}"] if sweep else [f"hydra.run.dir={run}"]
    arguments = [str(out), *place, *kd_overrides(work, overrides)]
    wall = start("speed.kd_train", arguments, work, directory / "kd.log", KD_CACHE=str(cache))
    found: dict[str, Any] = json.loads(out.read_text())
    return found | {"wall": wall, "run": str(run)}


def jobs(found: dict[str, Any]) -> list[tuple[float, list[float]]]:
    """Of each job of the process: when its formula was printed, and when its steps ended."""
    starts = [when for when, line in found["lines"] if line.startswith(ANCHOR)]
    if not starts:
        raise SystemExit(f"train.py printed no line that begins with {ANCHOR!r}: mend speed/measure.py.")
    ends = [*starts[1:], float("inf")]
    return [(a, [t for t in found["ticks"] if a < t < b]) for a, b in zip(starts, ends, strict=True)]


def kd(work: Work, overrides: list[str], probe: bool = True) -> Measured:
    """A whole run of train.py."""
    found = kd_run(work, overrides)
    [(begin, ticks)] = jobs(found)
    steps = len(ticks)
    if "trainer.max_steps" not in " ".join(overrides) and steps != work.steps:
        print(f"NOTE: kd made {steps} optimizer steps, the others make {work.steps}", flush=True)
    learned = kd_probe(work, Path(found["run"]) / "student") if probe else {}
    return Measured(
        ticks[-1] - begin, (ticks[-1] - ticks[0]) / max(1, steps - 1), ticks[0] - begin, found["wall"],
        found["megabytes"], steps, learned, validations(Path(found["run"])), notes(found),
        later_step(ticks, steps // work.epochs),
    )  # fmt: skip


def later_step(ticks: list[float], epoch: int) -> float:
    """Mean seconds of a step within the epochs of so many steps after the first one; 0 where there are none."""
    steps = [b - a for i, (a, b) in enumerate(itertools.pairwise(ticks), start=1) if i > epoch and i % epoch]
    return sum(steps) / len(steps) if steps else 0.0


def notes(found: dict[str, Any]) -> list[str]:
    """What kd said it had chosen."""
    words = ("precision", "cache", "compile", "signals", "embedding", "batches")
    return [line for _, line in found["lines"] if any(word in line.lower() for word in words)]


def validations(run: Path) -> list[dict[str, float]]:
    """Accuracy after each epoch, as the run logged it."""
    with (run / "metrics.csv").open() as stream:
        return [{"accuracy": float(row["val/accuracy"])} for row in csv.DictReader(stream) if row.get("val/accuracy")]


def kd_probe(work: Work, student: Path) -> dict[str, float]:
    """The same look at what was learned as at the others, in this process, while nothing is timed."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from speed.objective import probe, read_models

    torch.set_num_threads(work.threads)
    teacher, _ = read_models(work)
    model = AutoModelForSequenceClassification.from_pretrained(student, dtype=torch.float32)
    return probe(work, model, teacher)
