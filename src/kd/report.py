"""Measure, tabulate, draw, write: the teacher, the student and everything made from it, side by side."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kd.architecture import positions
from kd.datamodule import TextDataModule
from kd.picture import draw
from kd.store import rank, write_text
from kd.table import rows as rows  # also reached as report.rows and report.table
from kd.table import scored
from kd.table import table as table
from kd.tasks.base import Decision, Task
from kd.units import logits_at

LATENCY_SHAPE = (1, 32)
THROUGHPUT_SHAPE = (32, 64)


@dataclass
class Entry:
    """One row of the report: a model, which encoding it reads, and what was found out about it."""

    name: str
    model: Any
    role: str
    weights_bytes: int
    parameters: int
    quantized: bool = False
    figures: dict[str, Any] = field(default_factory=dict)
    logits: dict[str, Tensor] = field(default_factory=dict)
    decision: Decision = field(default_factory=dict)  # of its task, found on validation


@torch.no_grad()
def logits_of(
    model: Any, data: TextDataModule, split: str, role: str, task: Task, device: torch.device, title: str
) -> Tensor:
    """What the task keeps of the logits of every unit of a split, in the order of the rows, on the CPU."""
    model.to(device).eval()
    loader, counts = data.score_loader(split), data.splits[split].units.counts["labels"]
    found: dict[int, Tensor] = {}
    for batch in tqdm(loader, desc=title, unit="batch", leave=False, mininterval=1.0, disable=rank() > 0):
        inputs = {name: tensor.to(device) for name, tensor in batch[role].items()}
        digest = task.digest(logits_at(model, **inputs).float(), batch["labels"].to(device)).cpu()
        rows = batch["rows"].tolist()
        found |= dict(zip(rows, torch.split(digest, counts[rows].tolist()), strict=True))
    return torch.cat([found[row] for row in range(len(found))])


def score(entries: Sequence[Entry], data: TextDataModule, task: Task, device: torch.device) -> None:
    """Fills in the metrics on validation and test, agreement with the first entry, the teacher, and retention.

    What was scored earlier is not run again.
    """
    for split in [name for name in ("validation", "test") if name in data.splits]:
        for entry in entries:
            if split not in entry.logits:
                title = f"Scoring {entry.name} on {split}"
                where = torch.device("cpu") if entry.quantized else device  # torchao's int8 is converted for the CPU
                entry.logits[split] = logits_of(entry.model, data, split, entry.role, task, where, title)
            labels = reference(entries, data, split, task)
            if split == "validation":
                entry.decision = task.decide(entry.logits[split], labels)
            metrics = task.metrics(entry.decision)
            metrics.update(entry.logits[split], labels)
            entry.figures[split] = {name: float(value) for name, value in metrics.compute().items()}
            entry.figures[split] |= task.extra(split, entry.logits[split])
            own, teachers = (task.answers(one.logits[split], one.decision) for one in (entry, entries[0]))
            entry.figures[f"{split}_agreement"] = task.agreement(own, teachers)
            scores = [one.figures[split][task.select] for one in (entry, entries[0])]
            entry.figures[f"{split}_retention"] = task.retention(*scores)


def reference(entries: Sequence[Entry], data: TextDataModule, split: str, task: Task) -> Tensor:
    """What a split is scored against: its labels, or what the first entry, the teacher, gives where there are none."""
    labels: Tensor = data.splits[split].labels
    return entries[0].logits[split] if task.scored_against_teacher else labels


def measure(entries: Sequence[Entry], seconds: float) -> None:
    """Fills in latency (p50 and p95, batch 1 x 32) and throughput (batch 32 x 64), on the CPU.

    One process, the same threads, the models taking turns; medians, because single timings are noisy. Each
    shape takes half of ``seconds``, but at least a warm-up call and a timed one of every model.
    """
    for shape in (LATENCY_SHAPE, THROUGHPUT_SHAPE):
        calls = [timed_call(entry.model, shape) for entry in entries]
        times = take_turns(calls, seconds / 2, "x".join(map(str, shape)))
        for entry, spent in zip(entries, times, strict=True):
            if shape == LATENCY_SHAPE:
                entry.figures["latency_ms_p50"] = 1000 * statistics.median(spent)
                entry.figures["latency_ms_p95"] = 1000 * torch.tensor(spent).quantile(0.95).item()
            else:
                entry.figures["rows_per_second"] = shape[0] / statistics.median(spent)


def timed_call(model: Any, shape: tuple[int, int]) -> Callable[[], float]:
    model.to("cpu").eval()
    generator = torch.Generator().manual_seed(0)
    length = min(shape[1], positions(model.config.to_dict()))
    ids = torch.randint(5, model.config.vocab_size, (shape[0], length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.no_grad()
    def call() -> float:
        start = time.perf_counter()
        model(**inputs)
        return time.perf_counter() - start

    return call


def take_turns(calls: Sequence[Callable[[], float]], seconds: float, title: str) -> list[list[float]]:
    times: list[list[float]] = [[] for _ in calls]
    end = time.perf_counter() + seconds
    for call in calls:
        call()  # the first one is slower
    with tqdm(
        total=round(seconds), desc=f"Measuring {title}", leave=False, bar_format="{desc}: {percentage:3.0f}%|{bar}|"
    ) as bar:
        while not times[0] or (time.perf_counter() < end and len(times[0]) < 1000):
            for call, spent in zip(calls, times, strict=True):
                spent.append(call())
            spent_seconds = round(seconds - (end - time.perf_counter()))
            bar.update(max(0, min(round(seconds), spent_seconds) - int(bar.n)))
    return times


def sentence(report: dict[str, Any]) -> str:
    """What the figures say, the unwelcome included."""
    models, select = report["models"], report["select"]
    names = list(models)
    student, last = models["student"], models[names[-1]]
    split = scored(student)
    ratio = models["teacher"]["weights_bytes"] / student["weights_bytes"]
    size = f"{ratio:.1f} times fewer" if ratio >= 1 else f"{1 / ratio:.1f} times more"
    kept = f"keeps {100 * student[f'{split}_retention']:.1f} % of the teacher's {split} {select}"
    if not report["higher_is_better"]:
        kept = (
            f"has {student[split][select] / models['teacher'][split][select]:.2f} times the teacher's {split} {select}"
        )
    text = f"The student {kept} with {size} bytes of weights; {split} has {report['rows'][split]} rows."
    if not report["teacher_beats_chance"]:
        text = "The teacher does not beat guessing beyond chance, so retention and agreement say nothing."
    elif not report["student_beats_chance"]:
        text = (
            f"The student does not beat guessing beyond chance: it has learned nothing that {split} shows. Train it "
            "longer."
        )
    if last is student:
        return text
    change = last[split][select] - student[split][select]
    points = f"{100 * change:+.2f} points" if report["higher_is_better"] else f"{change:+.2f} {select}"
    text += (
        f" {names[-1]} takes {100 * last['weights_bytes'] / student['weights_bytes']:.0f} % of the float student's "
        f"bytes at {points}."
    )
    if "latency_ms_p50" in last:
        ratio = last["latency_ms_p50"] / student["latency_ms_p50"]
        if ratio > 1.05:
            text += (
                f" It is {ratio:.1f} times slower than float at batch 1 on this CPU: torchao's eager kernels save "
                "bytes there, not time."
            )
        else:
            text += f" At batch 1 it takes {ratio:.2f} times the float student's time."
    return text


def scores(report: dict[str, Any]) -> str:
    """What the columns of the table are about."""
    better = "higher" if report["higher_is_better"] else "lower"
    return (
        f"Validation and test: {report['select']}, {better} is better. Retention: of the teacher's score. Agreement: "
        "with the teacher's answers."
    )


def loading(report: dict[str, Any], name: str) -> str:
    """How an artefact is loaded, in markdown. One with a head of our own takes kd, also in float32."""
    with_kd = f'import kd\n\nkd.load("{name}").predict({report["example"]})'
    head = report["head"]  # the Auto class of transformers that has it, and what it is otherwise
    text, code = "", with_kd
    if name == "student" and head["own"] is None:
        code = (
            f"from transformers import {head['auto']}, AutoTokenizer\n\n"
            f'model = {head["auto"]}.from_pretrained("student")\n'
            'tokenizer = AutoTokenizer.from_pretrained("student")'
        )
    elif name == "student":
        text = (
            f"Its head is kd's own: {head['own']}. kd loads it; transformers alone gives the encoder, with "
            '`AutoModel.from_pretrained("student")`, and what its other Auto classes give has an untrained head.\n\n'
        )
    return f"{text}```python\n{code}\n```"


def model_card(report: dict[str, Any], name: str) -> str:
    """The README.md of an artefact, in the hub's form."""
    names = report["names"]
    return (
        f"---\nlibrary_name: transformers\npipeline_tag: {report['head']['pipeline']}\n"
        "tags: [knowledge-distillation, kd]\n---\n\n"
        f"# {report['title']}\n\nA student ({names['student']}) of {names['teacher']}, trained on {names['data']} by "
        f"{names['method']}. Quantization: {report['quantization'] if name != 'student' else 'none, float32'}.\n\n"
        f"{loading(report, name)}\n\n{report['note']}{scores(report)}\n\n{table(report)}\n\n{sentence(report)}\n\n"
        "The licences of the data and of the teacher's weights apply.\n"
    )


def write(report: dict[str, Any], curves: dict[str, list[tuple[int, float]]], directory: Path) -> None:
    """``report.md``, ``report.png`` and, last, ``report.json``: a run that has it is finished."""
    draw(report, curves, directory / "report.png")
    settings = "\n".join(f"- {key}: {value}" for key, value in report["about"].items())
    terms = "\n".join(f"- {name}: {formula}" for name, formula in report["loss"].items())
    layers = "".join(
        f"Sensitivity to {name}, each layer quantized alone:\n\n{text}\n\n"
        for name, text in report["sensitivity"].items()
    )
    write_text(
        directory / "report.md",
        f"# {report['title']}\n\n{scores(report)}\n\n{table(report)}\n\n{sentence(report)}\n\n{settings}\n\n"
        f"The loss is the sum of\n\n{terms}\n\n{report['weights']}{layers}"
        "![report](report.png)\n",
    )
    write_text(directory / "report.json", json.dumps(report | {"curves": curves}, indent=2))
