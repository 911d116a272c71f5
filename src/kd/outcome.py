"""What a run leaves: the artefacts, read back and measured, and the report."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

import kd
from kd import artefact, heads, models, report, step_profile
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.export import Target
from kd.export.directory import is_export, note_figures
from kd.export.exporter import Exported, Exporter
from kd.export_command import table as gate_table
from kd.fit import Fitted
from kd.fused_layers import TrainsFusedLayers
from kd.pair import Pair
from kd.quantization import Converted
from kd.quantized_file import in_stock_format
from kd.schemes import Settings
from kd.sources import TextData
from kd.step_profile import StepProfile
from kd.store import write_text
from kd.tasks import Classification, Task
from kd.utilisation import utilisation

SHARES = "These weights are shares of the gradient: method.balance=gradnorm makes them so."


def save_student(output: Path, student: Any, pair: Pair, cfg: DictConfig, data: TextData, task: Task) -> report.Entry:
    size = artefact.save_float(
        output / "student", student, pair.tokenizers["student"], cfg.data.max_length, data.text_columns, task
    )
    return report.Entry(
        "student", student, "student", size, models.parameter_count(student), directory=output / "student"
    )


def save_converted(
    output: Path, scheme: Settings, made: Converted, pair: Pair, cfg: DictConfig, data: TextData, task: Task,
    parameters: int,
) -> report.Entry:  # fmt: skip
    """Saves a converted model and measures from now on what was read back, not what was in memory."""
    model, summary = made
    name = f"student-{scheme.name}"
    size = artefact.save_quantized(
        output / name, model, pair.tokenizers["student"], cfg.data.max_length, scheme, summary, data.text_columns, task,
    )  # fmt: skip
    print(f"{name}: {summary}")
    return report.Entry(name, artefact.load(output / name).model, "student", size, parameters, True, output / name)


@dataclass
class Products:
    """What was made of the student, for the report: a line for each scheme, layers by sensitivity, exports."""

    quantized: dict[str, str] = field(default_factory=dict)
    sensitivity: dict[str, str] = field(default_factory=dict)
    exports: list[Exported] = field(default_factory=list)
    unmeasured: str = ""  # why there are no times

    @property
    def failed(self) -> dict[str, str]:
        """Why, by name."""
        return {one.name: "; ".join(one.reasons) for one in self.exports if not one.passed}

    def said(self, task: Task) -> dict[str, Any]:
        """For report.json."""
        return {
            "quantization": self.quantized,
            "sensitivity": self.sensitivity,
            "exports": [asdict(one) | {"directory": str(one.directory)} for one in self.exports],
            "failed": self.failed,
            "gate": gate_table(self.exports, task) if self.exports else "",
        }

    def check(self, output: Path) -> None:
        """Raises UserError for what a finished run lacks: the exit code tells, too."""
        if self.failed:
            raise UserError(
                f"The run is complete, but exports missed their gate: {', '.join(self.failed)}. Their files are "
                f"kept with the suffix .failed in {output / 'export'}; report.md says what was missed."
            )
        if self.unmeasured:
            raise UserError(f"The run is complete, but speed and memory were not measured. {self.unmeasured}")


def save_exports(
    output: Path, targets: Sequence[Target], rows: TextDataModule, task: Task, entries: list[report.Entry]
) -> list[Exported]:
    """Every artefact that a target names, for its runtime. What passed the gate becomes an entry of the report."""
    labels = report.reference(entries, rows, "validation", task)
    models_by_name = {entry.name: entry for entry in entries}
    found = []
    for name in dict.fromkeys(source for target in targets for source in target.of):
        exporter = Exporter(output / name, rows, task, labels)
        for target in [target for target in targets if name in target.of]:
            print(f"Exporting {name} to {target.name}", flush=True)
            found.append(exporter.export(target, output / "export"))
            if found[-1].passed:
                one, parameters = found[-1], models_by_name[name].parameters
                model = artefact.load(one.directory).model
                entries.append(
                    report.Entry(one.name, model, "student", one.weights_bytes, parameters, True, one.directory)
                )
    return found


def notes(made: dict[str, str]) -> list[str]:
    """What a model card says of how the student was made."""
    return [f"{what.capitalize()}: {done}." for what, done in made.items()]


def finish_report(
    cfg: DictConfig, entries: list[report.Entry], rows: TextDataModule, task: Task, fitted: Fitted,
    products: Products, device: torch.device, teacher_beats_chance: bool, made: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Scores and measures all there is, writes cards and report, and prints the table."""
    report.score(entries, rows, task, device)
    measured = None
    if cfg.report.measure:
        try:
            measured = report.measure(entries, rows, task, cfg.report.measure_seconds * len(entries))
        except UserError as error:  # of a process that ended: the scores are there all the same
            products.unmeasured = str(error)
    for entry in entries:
        entry.figures |= {"parameters": entry.parameters, "weights_bytes": entry.weights_bytes}
    more = task.about({entry.name: entry.figures for entry in entries})
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    score = entries[1].figures["validation"][task.select]
    labels = report.reference(entries, rows, "validation", task)
    above = task.beats_chance(score, entries[1].logits["validation"], labels, entries[1].decision)
    finished = {
        "title": f"{cfg.teacher.name} to {cfg.student.name} by {cfg.method.name}, {cfg.quant.name}, on {cfg.data.name}",
        "select": task.select,
        "higher_is_better": task.higher_is_better,
        "measured": measured,
        "teacher_beats_chance": teacher_beats_chance,
        "student_beats_chance": above,
        "rows": {name: len(split) for name, split in rows.splits.items()},
        "models": {entry.name: entry.figures for entry in entries},
        **loading(entries, rows, task, made),
        **products.said(task),
        **used(cfg, rows, fitted, entries),
        "loss": {name: loss.described() for name, loss in fitted.module.terms.items()},
        "weights": f"{SHARES}\n\n" if cfg.method.balance is not None else "",
        "about": circumstances(cfg, rows, fitted, memory) | made | more,
        "names": {key: cfg[key].name for key in ("teacher", "student", "method", "quant", "data")},
    }
    leave(finished, entries, fitted, Path(cfg.paths.output))
    print(f"\n{report.table(finished)}\n\n{report.sentence(finished)}")
    for note in measured["notes"] if measured else ():
        print(f"Note: {note}.")
    if products.exports:
        print(f"\n{finished['gate']}\n")
    for what, figures in more.items():
        print(f"{what}: {figures}")
    if finished["utilisation"]:
        print(f"Utilisation: {finished['utilisation']['text']}")
    if finished["profile"]:
        print(f"\n{step_profile.described(finished['profile'])}\n")
    print(f"Peak memory {memory / 1e9:.2f} GB. Everything is in {cfg.paths.output}")
    return finished


def used(cfg: DictConfig, rows: TextDataModule, fitted: Fitted, entries: list[report.Entry]) -> dict[str, Any]:
    """How well the training used the machine, and where its time went, if that was asked for."""
    found: dict[str, Any] = {"utilisation": None, "profile": {}}
    if cfg.report.measure:
        asked = any(loss.teacher_signals for loss in fitted.module.terms.values())
        runs = entries[0].model if asked and rows.splits["train"].kept is None else None
        student, device = entries[1].model, fitted.trainer.strategy.root_device
        precision, callbacks = str(cfg.trainer.precision), fitted.trainer.callbacks  # type: ignore[attr-defined]
        alone = any(isinstance(each, TrainsFusedLayers) and each.first_alone for each in callbacks)
        found["utilisation"] = utilisation(student, runs, rows, fitted.clock, precision, device, alone)
    if isinstance(profile := fitted.trainer.profiler, StepProfile):  # type: ignore[attr-defined]
        found["profile"] = profile.parts()
    return found


def loading(
    entries: list[report.Entry], rows: TextDataModule, task: Task, made: dict[str, str]
) -> dict[str, Any]:  # fmt: skip
    """What the cards say of opening an artefact and reading its answers."""
    stock = [entry.name for entry in entries[2:] if entry.directory and in_stock_format(entry.directory)]
    return {
        "stock": stock,
        "answer": "model.config.id2label[int(logits[0].argmax())]" if type(task) is Classification else "logits",
        "head": heads.described(entries[1].model, task),
        "note": "".join(f"{note}\n\n" for note in (task.note(entries[1].decision), *notes(made)) if note),
        "example": task.example(rows.tokenizers["student"], len(rows.data.text_columns) == 2),
    }


def circumstances(cfg: DictConfig, rows: TextDataModule, fitted: Fitted, memory: float) -> dict[str, str]:
    threads, watch = torch.get_num_threads(), fitted.module.gradients
    return {
        "kd": kd.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {threads} thread{'s' * (threads > 1)}",
        "seed": cfg.seed,
        "rows": ", ".join(f"{len(split)} {name}" for name, split in rows.splits.items()),
        "training": f"{fitted.steps} steps in {fitted.seconds:.0f} s on {fitted.trainer.strategy.root_device}",
        "peak memory": f"{memory / 1e9:.2f} GB",
    } | (watch.described() if watch else {})


def leave(finished: dict[str, Any], entries: list[report.Entry], fitted: Fitted, output: Path) -> None:
    """The cards, what each artefact decides by, and the report."""
    for entry in entries[1:]:
        assert entry.directory is not None
        if is_export(entry.directory):  # which has its card and its decision
            note_figures(entry.directory, entry.figures)
        else:
            artefact.note_decision(entry.directory, entry.decision)
            write_text(entry.directory / "README.md", report.model_card(finished, entry.name))
    report.write(finished, fitted.curves, output)
