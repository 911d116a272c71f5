"""One run, in reading order: data, teacher, student, distil, quantize, save, report."""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

import kd
from kd import artefact, loggers, models, quantization, report
from kd.architecture import SHAPE, architecture, as_conf, container, student_keep
from kd.build import build, build_losses, fit_settings, quantization_settings, refuse_token_level
from kd.callbacks import QuantizationCallback
from kd.checkpoint import steps_done, steps_logged
from kd.datamodule import TextDataModule, tokenizer_key
from kd.errors import UserError
from kd.fit import FitSettings, Fitted, fit
from kd.lit_module import FrozenTeacher
from kd.losses import Loss
from kd.noise import silence_transformers
from kd.resume import settings_key
from kd.sources import TextData
from kd.store import Wanted, claim, content_key, directory_hash, fetch, local_rank, write_text
from kd.tasks import Task
from kd.teacher import FineTune, check_labels, check_score, fine_tuned

SHOWN = 10  # labels in the line about the data


@dataclass
class Pair:
    """Where teacher and student come from, and what each reads with."""

    directories: dict[str, Path | None]
    tokenizers: dict[str, Any]


def find_pair(cfg: DictConfig, data: TextData) -> Pair:
    directories: dict[str, Path | None] = {}
    for role in ("teacher", "student"):
        node = cfg[role]
        if node.weights in ("random", "teacher"):
            directories[role] = None
        elif node.weights == "pretrained":
            store = Path(cfg.paths.store).expanduser()
            directories[role] = fetch(Wanted("model", node.name, node.hub_id, store))
        else:
            directories[role] = Path(node.weights).expanduser()
    own: dict[str, Any] = {role: models.load_tokenizer(path) if path else None for role, path in directories.items()}
    teacher = own["teacher"] or data.tokenizer or own["student"]
    student = own["student"] or teacher  # they read alike where they can
    if cfg.student.weights == "random" and len(student) > architecture(cfg, "student")["vocab_size"]:
        student = data.tokenizer or student
    return Pair(
        directories,
        {
            role: models.tokenizer_for(architecture(cfg, role)["model_type"], tokenizer)
            for role, tokenizer in (("student", student), ("teacher", teacher))
        },
    )


def check_token_level(losses: dict[str, Loss], pair: Pair) -> None:
    """States of single tokens can be compared only if both models read the same tokens."""
    student, teacher = (tokenizer_key(pair.tokenizers[role], inputs=False) for role in ("student", "teacher"))
    if student != teacher:
        refuse_token_level(losses)


def teacher_data(cfg: DictConfig, data: TextData, pair: Pair, cache: Path) -> TextDataModule:
    """The training rows as the teacher reads them."""
    tune = cfg.teacher.fine_tune
    return TextDataModule(
        data, {"student": pair.tokenizers["teacher"]}, cache, tune.batch_size, cfg.data.max_length, cfg.data.limit,
        cfg.data.num_workers, tune.seed,
    )  # fmt: skip


def make_teacher(
    cfg: DictConfig, data: TextData, pair: Pair, task: Task, settings: FitSettings, cache: Path, logs: loggers.Logs
) -> Any:
    """Loads or fine-tunes the teacher; its head has the data's labels in the data's order."""
    node, directory = cfg.teacher, pair.directories["teacher"]
    tune = FineTune(**container(node.fine_tune))
    L.seed_everything(tune.seed, verbose=False)
    if directory is None:
        loaded = models.Loaded(models.random_model(container(node.architecture), task), has_head=False)
        identity = content_key(random=container(node.architecture), seed=tune.seed)
    else:
        loaded = models.load_model(directory, task)
        identity = directory_hash(directory)
        check_architecture("teacher", node, loaded.model)
    if loaded.has_head and tune.when != "always":
        check_labels(loaded.model, task, node.gate)
        return loaded.model
    if loaded.has_head:  # trained anew from the head it has
        check_labels(loaded.model, task, gate=False)
    models.check_vocabulary("teacher", pair.tokenizers["teacher"], loaded.model.config)
    if not tune.wanted(loaded.has_head, node.weights):
        return loaded.model
    rows = teacher_data(cfg, data, pair, cache)
    return fine_tuned(
        loaded, identity, node.name, pair.tokenizers["teacher"], task, rows, tune, settings, cache,
        lambda done: logs.open("teacher", done),
    )  # fmt: skip


def check_architecture(role: str, node: DictConfig, model: Any) -> None:
    found = as_conf(model.config.to_dict(), model.config.model_type)
    for key in SHAPE:
        if found[key] != node.architecture[key]:
            raise UserError(
                f"{role}={node.name} should have {key}={node.architecture[key]}, but the files found under that name "
                f"have {found[key]}: another model lies there."
            )


def make_student(cfg: DictConfig, pair: Pair, teacher: Any, task: Task) -> Any:
    L.seed_everything(cfg.seed, verbose=False)  # the same start for every method
    directory = pair.directories["student"]
    if cfg.student.name == "layers":
        student = models.student_of_layers(teacher, student_keep(cfg), cfg.student.num_layers)
    elif directory is None:
        student = models.random_model(architecture(cfg, "student"), task)
    else:
        loaded = models.load_model(directory, task)
        student = loaded.model
        check_architecture("student", cfg.student, student)
        if loaded.has_head and not models.reorder_labels(student, task):
            raise UserError(
                f"student.weights={directory} has a head with other labels than the data: remove the head or take "
                "other weights."
            )
    if cfg.student.name != "layers":
        models.check_vocabulary("student", pair.tokenizers["student"], student.config)
    if cfg.student.overrides and cfg.student.weights != "random":
        student = models.with_fields(student, architecture(cfg, "student"))
    return student


def train(cfg: DictConfig) -> float | None:
    """Everything. Returns the student's validation score, for a sweeper; None on ranks that do not report."""
    silence_transformers()
    names = [cfg[key].name for key in ("teacher", "student", "method", "quant", "data")]
    logs = loggers.Logs(Path(cfg.paths.output), container(cfg), names)
    try:
        result = stages(cfg, logs)
    except BaseException:
        logs.close(exit_code=1)
        raise
    logs.close()
    return result


def stages(cfg: DictConfig, logs: loggers.Logs) -> float | None:
    output, cache = Path(cfg.paths.output), Path(cfg.paths.cache).expanduser()
    settings, quant = fit_settings(cfg), quantization_settings(cfg)
    data = build(cfg.data.source)
    task: Task = build(cfg.data.task, label_names=data.label_names)
    L.seed_everything(cfg.seed, verbose=False)
    losses = build_losses(cfg, task)
    pair = find_pair(cfg, data)
    check_token_level(losses, pair)
    claim(output, OmegaConf.to_yaml(cfg, resolve=True), resume=cfg.resume is not None)

    rows = student_rows(cfg, data, pair, cache, task)
    teacher = make_teacher(cfg, data, pair, task, settings, cache, logs)
    entries = [report.Entry("teacher", teacher, "teacher", fp32_bytes(teacher), models.parameter_count(teacher))]
    device = scoring_device(settings)
    report.score(entries, rows, task, device)
    score, labels = entries[0].figures["validation"][task.select], rows.splits["validation"].labels
    knows = check_score(score, labels, task, cfg.teacher.gate)

    student = make_student(cfg, pair, teacher, task)
    say(entries[0], student, losses, task, cfg)
    callback = QuantizationCallback(quant) if quant else None
    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    key = content_key(settings=settings_key(cfg), data=rows.key)
    done = steps_done(output, key)
    if cfg.resume is not None:
        print(f"Resuming: {done} steps were done before")
    fitted = fit(
        student, task, losses, FrozenTeacher(teacher, signals) if signals else None, rows, settings, output,
        key, f"Distilling {cfg.student.name} ({cfg.method.name})", logs.open("distil", steps_logged(output)),
        [callback] if callback else [],
    )  # fmt: skip
    if not leads_alone(fitted):
        return None

    student = quantization.without_fake_quantization(fitted.module.student).to("cpu").eval()
    entries.append(save_student(output, student, pair, cfg, data))
    if callback is not None:
        entries.append(save_converted(output, callback, pair, cfg, data, entries[-1].parameters))
    finished = finish_report(cfg, entries, rows, task, fitted, callback, device, knows)
    score = float(entries[1].figures["validation"][task.select])
    logs.report(score, *report.rows(finished), finished["models"], output / "student")
    return score


def student_rows(cfg: DictConfig, data: TextData, pair: Pair, cache: Path, task: Task) -> TextDataModule:
    """The rows as student and teacher read them while distilling."""
    rows = TextDataModule(
        data, pair.tokenizers, cache, cfg.data.batch_size, cfg.data.max_length, cfg.data.limit, cfg.data.num_workers,
        cfg.seed,
    )  # fmt: skip
    sizes = ", ".join(f"{len(split)} {name}" for name, split in rows.splits.items())
    more = f", ... ({len(task.label_names)})" if len(task.label_names) > SHOWN else ""
    print(f"Data: {sizes} rows; labels {', '.join(task.label_names[:SHOWN])}{more}")
    return rows


def scoring_device(settings: FitSettings) -> torch.device:
    accelerator = settings.trainer["accelerator"]
    if accelerator in ("cpu", "mps"):
        return torch.device(accelerator)
    return torch.device("cuda", local_rank())


def leads_alone(fitted: Fitted) -> bool:
    """Dissolves the group of ranks, since what follows is one rank's work; whether this is that rank."""
    leader = fitted.trainer.is_global_zero
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return leader


def fp32_bytes(model: Any) -> int:
    """What the weights take as float32, so that ratios mean the same for a checkpoint stored in float16."""
    return sum(4 * tensor.numel() for tensor in model.state_dict().values())


def say(
    teacher: report.Entry,
    student: Any,
    losses: dict[str, Loss],
    task: Task,
    cfg: DictConfig,
) -> None:
    """What is about to be trained, in three lines."""
    terms = " + ".join(f"{loss.weight:g} {name}" for name, loss in losses.items())
    config = student.config
    print(
        f"Teacher: {cfg.teacher.name}, {teacher.parameters / 1e6:.1f} M parameters, validation {task.select} "
        f"{teacher.figures['validation'][task.select]:.4f}"
    )
    print(
        f"Student: {cfg.student.name}, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{models.parameter_count(student) / 1e6:.1f} M parameters; quantization {cfg.quant.name}"
    )
    print(f"Loss ({cfg.method.name}): {terms}; learning rate {cfg.optimizer.lr:g}")


def save_student(output: Path, student: Any, pair: Pair, cfg: DictConfig, data: TextData) -> report.Entry:
    size = artefact.save_float(
        output / "student", student, pair.tokenizers["student"], cfg.data.max_length, data.text_columns
    )
    return report.Entry("student", student, "student", size, models.parameter_count(student))


def save_converted(
    output: Path, callback: QuantizationCallback, pair: Pair, cfg: DictConfig, data: TextData, parameters: int
) -> report.Entry:
    """Saves the converted model and measures from now on what was read back, not what was in memory."""
    assert callback.summary is not None
    name = f"student-{callback.settings.name}"
    size = artefact.save_quantized(
        output / name, callback.converted, pair.tokenizers["student"], cfg.data.max_length, callback.settings,
        callback.summary, data.text_columns,
    )  # fmt: skip
    print(f"{name}: {callback.summary}")
    return report.Entry(name, artefact.load(output / name).model, "student", size, parameters, True)


def finish_report(
    cfg: DictConfig, entries: list[report.Entry], rows: TextDataModule, task: Task, fitted: Fitted,
    callback: QuantizationCallback | None, device: torch.device, teacher_beats_chance: bool,
) -> dict[str, Any]:  # fmt: skip
    report.score(entries, rows, task, device)
    if cfg.report.measure:
        report.measure(entries, cfg.report.measure_seconds)
    for entry in entries:
        entry.figures |= {"parameters": entry.parameters, "weights_bytes": entry.weights_bytes}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    finished = {
        "title": f"{cfg.teacher.name} to {cfg.student.name} by {cfg.method.name}, {cfg.quant.name}, on {cfg.data.name}",
        "select": task.select,
        "teacher_beats_chance": teacher_beats_chance,
        "models": {entry.name: entry.figures for entry in entries},
        "pairs": len(rows.data.text_columns) == 2,
        "quantization": str(callback.summary) if callback else "none",
        "about": {
            "kd": kd.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
            "seed": cfg.seed,
            "training": f"{fitted.steps} steps in {fitted.seconds:.0f} s on {fitted.trainer.strategy.root_device}",
            "peak memory": f"{memory / 1e9:.2f} GB",
        },
        "names": {key: cfg[key].name for key in ("teacher", "student", "method", "quant", "data")},
    }
    output = Path(cfg.paths.output)
    for entry in entries[1:]:
        write_text(output / entry.name / "README.md", report.model_card(finished, entry.name))
    report.write(finished, fitted.curves, output)
    print(f"\n{report.table(finished)}\n\n{report.sentence(finished)}")
    print(f"Peak memory {memory / 1e9:.2f} GB. Everything is in {output}")
    return finished
