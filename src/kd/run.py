"""One run, in reading order: data, teacher, student, distil, quantize, save, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from kd import batch_size, loggers, models, precision, quantization, report, teacher_scores
from kd.architecture import container
from kd.build import build, build_losses, check_layers, fit_settings, make_task, quantization_settings
from kd.datamodule import TextDataModule
from kd.distillation import Distillation
from kd.export import Target, named_targets
from kd.fit import FitSettings, Fitted
from kd.lit_module import FrozenTeacher
from kd.losses import Loss
from kd.named_schemes import AUTO, keeping_worst, looked_at
from kd.noise import silence_transformers
from kd.outcome import SHARES, Products, finish_report, save_converted, save_exports, save_student
from kd.pair import Pair, check_token_level, find_pair, make_student, make_teacher, max_lengths
from kd.quantization import Converted
from kd.schemes import Settings
from kd.sensitivity import Sensitivity
from kd.sensitivity import table as layer_table
from kd.signal_cache import CacheSettings, kept_signals
from kd.sources import TextData
from kd.store import claim, local_rank, write_text
from kd.tasks import Task
from kd.teacher import check_score

SHOWN = 10  # labels in the line about the data
SCORED = 32  # rows of a batch, before data.batch_size=auto has found how many fit


def train(cfg: DictConfig) -> float | None:
    """Everything. Returns the student's validation score for a sweeper, which maximizes: a perplexity below 0.

    None on ranks that do not report.
    """
    silence_transformers()
    precision.settle(cfg)
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
    settings, schemes, targets = fit_settings(cfg), quantization_settings(cfg), named_targets(cfg)
    data = build(cfg.data.source)
    task = make_task(cfg.data, data)
    data = task.prepare(data)
    if task.labelled:
        task.see(data.splits["train"]["label"][:])
    L.seed_everything(cfg.seed, verbose=False)
    losses = build_losses(cfg, task)
    check_layers(cfg, task, schemes)
    pair = find_pair(cfg, data)
    check_token_level(losses, pair, task)
    claim(output, OmegaConf.to_yaml(cfg, resolve=True), resume=cfg.resume is not None)

    rows = student_rows(cfg, data, pair, cache, task)
    for key, count in calibration_rows(schemes, targets).items():
        rows.enough(count, key)
    teacher = make_teacher(cfg, data, pair, task, settings, cache, logs)
    entries = [report.Entry("teacher", teacher, "teacher", fp32_bytes(teacher), models.parameter_count(teacher))]
    device = scoring_device(settings)
    weights = teacher_scores.model_hash(teacher)
    score_teacher(entries, rows, task, device, cache, weights)
    knows = check_score(
        entries[0],
        report.reference(entries, rows, "validation", task),
        task,
        cfg.teacher.gate,
        cfg.teacher.fine_tune.max_steps,
    )

    student = make_student(cfg, pair, teacher, task)
    if cfg.student.gradient_checkpointing:
        models.recompute_activations(student)
    say(entries[0], student, losses, task, cfg, pair)
    frozen = teach(cfg, entries[0], student, losses, rows, task, settings, weights, cache)
    distillation = Distillation(cfg, student, task, losses, frozen, rows, settings, logs)
    fitted, trained = trainings(distillation, schemes)
    if not leads_alone(fitted):
        return None

    student = quantization.without_fake_quantization(fitted.module.student).to("cpu").eval()
    student.activation_checkpointing_disable()
    entries.append(save_student(output, student, pair, cfg, data, task))
    products = Products()
    for scheme in schemes:
        if scheme.name in looked_at(cfg):
            scheme, products.sensitivity[scheme.name] = look(cfg, scheme, student, rows, task, entries)
        made = trained.get(scheme.name) or after_training(student, scheme, rows)
        entries.append(save_converted(output, scheme, made, pair, cfg, data, task, entries[1].parameters))
        products.quantized[scheme.name] = str(made[1])
    products.exports = save_exports(output, targets, rows, task, entries)
    finished = finish_report(cfg, entries, rows, task, fitted, products, device, knows, pair.made)
    score = float(entries[1].figures["validation"][task.select])
    logs.report(score, *report.rows(finished), finished["models"], output / "student")
    products.check(output)
    return score if task.higher_is_better else -score


def student_rows(cfg: DictConfig, data: TextData, pair: Pair, cache: Path, task: Task) -> TextDataModule:
    """The rows as student and teacher read them while distilling."""
    size = SCORED if cfg.data.batch_size == AUTO else cfg.data.batch_size
    rows = TextDataModule(
        data, pair.tokenizers, cache, size, max_lengths(cfg), cfg.data.limit, cfg.data.num_workers, cfg.seed,
        task.units, cfg.data.truncation == "cut", cfg.data.tokens_per_batch,
    )  # fmt: skip
    sizes = ", ".join(f"{len(split)} {name}" for name, split in rows.splits.items())
    more = f", ... ({len(task.label_names)})" if len(task.label_names) > SHOWN else ""
    labels = f"; labels {', '.join(task.label_names[:SHOWN])}{more}" if task.label_names else ""
    print(f"Data: {sizes} rows{labels}")
    return rows


def keep_found(cfg: DictConfig, size: int, why: str) -> None:
    """What data.batch_size=auto came to goes into config.yaml, so that the run can be repeated and resumed."""
    cfg.data.batch_size = size
    write_text(Path(cfg.paths.output) / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    print(f"Batch size: {size} rows; {why}. The learning rate stays {cfg.optimizer.lr:g}.")


def score_teacher(
    entries: list[report.Entry], rows: TextDataModule, task: Task, device: torch.device, cache: Path, weights: str
) -> None:
    """Scores the one entry there is, of these ``weights``, with the answers that an earlier run kept."""
    key = teacher_scores.scores_key(weights, rows, task, device)
    entries[0].logits |= teacher_scores.read(cache, key)
    known = len(entries[0].logits)
    report.score(entries, rows, task, device)
    if known == 0 and local_rank() == 0:
        teacher_scores.keep(cache, key, entries[0].logits)


def teach(
    cfg: DictConfig, entry: report.Entry, student: Any, losses: dict[str, Loss], rows: TextDataModule, task: Task,
    settings: FitSettings, weights: str, cache: Path,
) -> FrozenTeacher | None:  # fmt: skip
    """Has the training rows carry what the losses need of the teacher, if it is kept; the teacher, if it is still
    asked while training or validating. Settles how many rows a batch has before.
    """
    signals = sorted({signal for loss in losses.values() for signal in loss.teacher_signals})
    asked = ["logits"] if task.scored_against_teacher else []  # on validation
    frozen = FrozenTeacher(entry.model, (*signals, *asked))
    device, lower = scoring_device(settings), settings.trainer["precision"]
    if cfg.data.batch_size == AUTO:
        rows.batch_size, why = batch_size.find(
            student, losses, frozen if signals else None, rows, device, lower != precision.FULL
        )
        keep_found(cfg, rows.batch_size, why)
    if signals:
        how = CacheSettings(cfg.cache, cfg.cache_dtype, lower, device, settings.passes(rows))
        kept = kept_signals(entry.model, weights, rows, task, how, cfg.teacher.name, cache, signals)
        rows.splits["train"].kept = kept
        if kept:
            entry.model.to("cpu")  # the device is the student's now
            frozen, signals = FrozenTeacher(entry.model, tuple(asked)), []
    elif cfg.cache == "on":
        print("Teacher signals: no loss compares any, so cache=on has nothing to keep.")
    return frozen if signals or asked else None


def calibration_rows(schemes: Sequence[Settings], targets: Sequence[Target]) -> dict[str, int]:
    """By the settings that ask for them."""
    named = [("quant", one.name, one.calibration_rows) for one in schemes]
    named += [("export", one.name, one.calibration_rows) for one in targets]
    return {f"{group}.{name}.calibration_rows": count for group, name, count in named if count}


def trainings(distillation: Distillation, schemes: Sequence[Settings]) -> tuple[Fitted, dict[str, Converted]]:
    """The run's own training, and what the trained schemes gave by name. A single one is trained in the run's own."""
    trained = [scheme for scheme in schemes if scheme.qat]
    alone = trained[0] if trained and len(schemes) == 1 else None
    found = {}
    for scheme in () if alone else trained:
        found[scheme.name] = distillation.train(scheme)[1]
    fitted, own = distillation.train(alone, of_the_run=True)  # last: its logger takes the report
    if alone:
        found[alone.name] = own
    return fitted, {name: made for name, made in found.items() if made is not None}


def after_training(student: Any, scheme: Settings, rows: TextDataModule) -> Converted:
    batches = rows.calibration_batches(scheme.calibration_rows) if scheme.calibration_rows else None
    return quantization.convert(student, scheme, batches)


def look(
    cfg: DictConfig, scheme: Settings, student: Any, rows: TextDataModule, task: Task,
    entries: list[report.Entry],
) -> tuple[Settings, str]:  # fmt: skip
    """How sensitive the layers are, as a table; the settings, with the worst layers kept float if that was asked."""
    sensitivity = Sensitivity(student, scheme, rows, task, report.reference(entries, rows, "validation", task))
    found = sensitivity.of_layers()
    text = layer_table(found, task.select)
    print(f"\nSensitivity to {scheme.name}, each layer quantized alone:\n{text}\n")
    return (sensitivity.kept(found) if scheme.name in keeping_worst(cfg) else scheme), text


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
    """What the weights take as float32, so that ratios mean the same for a checkpoint stored in float16.

    A tensor of two names (a masked language model's embeddings) is stored once.
    """
    return sum(4 * size for size in {t.data_ptr(): t.numel() for t in model.state_dict().values()}.values())


def say(
    teacher: report.Entry,
    student: Any,
    losses: dict[str, Loss],
    task: Task,
    cfg: DictConfig,
    pair: Pair,
) -> None:
    """What is about to be trained, and by which formula."""
    config = student.config
    print(
        f"Teacher: {cfg.teacher.name}, {teacher.parameters / 1e6:.1f} M parameters, validation {task.select} "
        f"{teacher.figures['validation'][task.select]:.4f}"
    )
    print(
        f"Student: {cfg.student.name}, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{models.parameter_count(student) / 1e6:.1f} M parameters; quantization {cfg.quant.name}"
    )
    for what, done in pair.made.items():
        print(f"{what.capitalize()}: {done}")
    if models.parameter_count(student) > teacher.parameters:
        print("The student is larger than its teacher.")
    print(f"Loss ({cfg.method.name}), learning rate {cfg.optimizer.lr:g}:")
    for name, loss in losses.items():
        print(f"  {name}: {loss.described()}")
    if cfg.method.balance is not None:
        print(f"  {SHARES}")
    if not task.softens and any(loss.unit == "logits" and hasattr(loss, "temperature") for loss in losses.values()):
        print("A temperature means nothing for this task: its outputs are no probabilities.")
