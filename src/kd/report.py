"""Measure, tabulate, draw, write: the teacher, the student and everything made from it, side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from kd.artefact import save_float
from kd.datamodule import TextDataModule
from kd.measure import compared_with, in_batches, legend
from kd.measure import measure as measured
from kd.measure_process import Measured
from kd.picture import draw
from kd.step_profile import described
from kd.store import rank, write_text
from kd.table import rows as rows  # also reached as report.rows and report.table
from kd.table import table as table
from kd.tasks.base import Decision, Task
from kd.units import logits_at
from kd.verdict import sentence as sentence


@dataclass
class Entry:
    """One row of the report: a model, which encoding it reads, and what was found out about it."""

    name: str
    model: Any
    role: str
    weights_bytes: int
    parameters: int
    quantized: bool = False
    directory: Path | None = None  # where it is stored; None: it is in memory alone
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
    """Fills in the metrics on validation and test, and what ``likeness`` says.

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
        likeness(entries, split, task)


def likeness(entries: Sequence[Entry], split: str, task: Task) -> None:
    """Agreement with the first entry, the teacher, retention of its score, agreement with the second, the student."""
    answers = [task.answers(entry.logits[split], entry.decision) for entry in entries]
    for entry, own in zip(entries, answers, strict=True):
        entry.figures[f"{split}_agreement"] = task.agreement(own, answers[0])
        scores = [one.figures[split][task.select] for one in (entry, entries[0])]
        entry.figures[f"{split}_retention"] = task.retention(*scores)
        if len(entries) > 1:
            entry.figures[f"{split}_as_student"] = task.agreement(own, answers[1])


def reference(entries: Sequence[Entry], data: TextDataModule, split: str, task: Task) -> Tensor:
    """What a split is scored against: its labels, or what the first entry, the teacher, gives where there are none."""
    labels: Tensor = data.splits[split].labels
    return entries[0].logits[split] if task.scored_against_teacher else labels


def measure(entries: Sequence[Entry], data: TextDataModule, task: Task, seconds: float) -> dict[str, Any]:
    """Fills in the figures of kd.measure, on the CPU, and returns what to know about them.

    An entry without a directory, as the teacher, gets one for that time.
    """
    lengths = in_batches(data.splits["validation"].lengths)
    data.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data.cache) as kept:
        places = []
        for entry in entries:
            directory = entry.directory or Path(kept) / entry.name
            if entry.directory is None:
                tokenizer, length = data.tokenizers[entry.role], data.lengths[entry.role]
                save_float(directory, entry.model, tokenizer, length, data.data.text_columns, task)
            places.append(Measured(entry.name, directory))
        threads = torch.get_num_threads()
        figures, notes = measured(places, seconds, threads, lengths)
    compared_with(figures, "student")
    for entry in entries:
        entry.figures |= figures[entry.name]
    return {"threads": threads, "reference": "student", "notes": notes}


def scores(report: dict[str, Any]) -> str:
    """What the columns of the tables are about."""
    better = "higher" if report["higher_is_better"] else "lower"
    text = (
        f"Validation and test: {report['select']}, {better} is better. Retention: of the teacher's score. Agreement: "
        "with the teacher's answers; as student: with the float student's."
    )
    return f"{text} {legend(report['measured'])}" if report.get("measured") else text


def loading(report: dict[str, Any], name: str) -> str:
    """How an artefact is loaded, in markdown. One with a head of our own takes kd, also in float32."""
    head = report["head"]  # the Auto class of transformers that has it, and what it is otherwise
    stock = name == "student" or name in report["stock"]
    text, code = "", f'import kd\n\nkd.load("{name}").predict({report["example"]})'
    if stock and head["own"] is None:
        text = "" if name == "student" else "With torch, torchao and transformers alone:\n\n"
        texts = '"a text", "another"' if report["example"].startswith("[(") else '"a text"'
        code = (
            f"from transformers import {head['auto']}, AutoTokenizer\n\n"
            f'model = {head["auto"]}.from_pretrained("{name}").eval()\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
            f'logits = model(**tokenizer({texts}, return_tensors="pt")).logits\n'
            f"print({report['answer']})"
        )
    elif stock:
        text = (
            f"Its head is kd's own: {head['own']}. kd loads it; transformers alone gives the encoder, with "
            f'`AutoModel.from_pretrained("{name}")`, and what its other Auto classes give has an untrained head.\n\n'
        )
    return f"{text}```python\n{code}\n```"


def model_card(report: dict[str, Any], name: str) -> str:
    """The README.md of an artefact, in the hub's form."""
    names, scheme = report["names"], name.removeprefix("student-")
    own = {one: figures for one, figures in report["models"].items() if one in ("teacher", "student", name)}
    library = "transformers" if name == "student" or name in report["stock"] else "kd"
    done = "none, float32" if name == "student" else f"{scheme}, {report['quantization'][scheme]}"
    report = report | {"models": own, "failed": {}}
    return (
        f"---\nlibrary_name: {library}\npipeline_tag: {report['head']['pipeline']}\n"
        "tags: [knowledge-distillation, kd]\n---\n\n"
        f"# {report['title']}\n\nA student ({names['student']}) of {names['teacher']}, trained on {names['data']} by "
        f"{names['method']}. Quantization: {done}.\n\n"
        f"{loading(report, name)}\n\n{report['note']}{scores(report)}\n\n{table(report)}\n\n{sentence(report)}\n\n"
        "The licences of the data and of the teacher's weights apply.\n"
    )


def time_used(report: dict[str, Any]) -> str:
    """Utilisation and profile in markdown; nothing where they were not asked for."""
    found = f"Utilisation: {report['utilisation']['text']}.\n\n" if report.get("utilisation") else ""
    if report.get("profile"):
        found += f"{described(report['profile'])}\n\nIn `trace.json` are some steps, for chrome://tracing.\n\n"
    return found


def write(report: dict[str, Any], curves: dict[str, list[tuple[int, float]]], directory: Path) -> None:
    """``report.md``, ``report.png`` and, last, ``report.json``: a run that has it is finished."""
    draw(report, curves, directory / "report.png")
    settings = "\n".join(f"- {key}: {value}" for key, value in report["about"].items())
    terms = "\n".join(f"- {name}: {formula}" for name, formula in report["loss"].items())
    layers = "".join(
        f"Sensitivity to {name}, each layer quantized alone:\n\n{text}\n\n"
        for name, text in report["sensitivity"].items()
    )
    gate = (
        f"Exports against what they were made from, on validation rows:\n\n{report['gate']}\n\n"
        if report["gate"]
        else ""
    )
    write_text(
        directory / "report.md",
        f"# {report['title']}\n\n{scores(report)}\n\n{table(report)}\n\n{sentence(report)}\n\n{settings}\n\n"
        f"The loss is the sum of\n\n{terms}\n\n{report['weights']}{layers}{gate}{time_used(report)}"
        "![report](report.png)\n",
    )
    write_text(directory / "report.json", json.dumps(report | {"curves": curves}, indent=2))
