"""One run, in reading order: data, teacher, student, distil, quantize, save, report."""

from __future__ import annotations

import copy
import functools
import inspect
import os
import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import lightning as L
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

import kd
from kd import artefact, loggers, models, quantization, report
from kd.callbacks import QuantizationCallback
from kd.check import SHAPE, student_keep
from kd.datamodule import TextDataModule, tokenizer_key
from kd.errors import UserError, nearest
from kd.fit import FitSettings, Fitted, fit
from kd.layer_map import kept_layers
from kd.lit_module import FrozenTeacher
from kd.losses import Loss
from kd.noise import silence_transformers
from kd.sources import TextData
from kd.store import Wanted, content_key, directory_hash, fetch, write_text
from kd.tasks import Task
from kd.teacher import FineTune, check_labels, check_score, fine_tuned


def build(node: DictConfig, **more: Any) -> Any:
    """The object a ``_target_`` names. Raises UserError for a wrong target or argument."""
    try:
        return hydra.utils.instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise UserError(argument_error(node, error)) from error


def find_target(name: str) -> Any:
    try:
        return hydra.utils.get_object(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"_target_={name}: there is nothing of that name to import.") from error


def argument_error(node: DictConfig, error: InstantiationException) -> str:
    target = find_target(node._target_)
    known = [name for name in inspect.signature(target).parameters if name != "self"]
    unknown = [str(key) for key in node if str(key) not in known and not str(key).startswith("_")]
    if unknown:
        return (
            f"{node._target_} has no argument {unknown[0]!r}.{nearest(unknown[0], known)} It takes {', '.join(known)}."
        )
    return f"{node._target_} could not be made: {error.__cause__ or error}"


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
    own = {role: models.load_tokenizer(path) if path else None for role, path in directories.items()}
    teacher = own["teacher"] or data.tokenizer or own["student"]
    student = teacher if cfg.student.name == "layers" else own["student"] or data.tokenizer or teacher
    return Pair(directories, {"student": student, "teacher": teacher})


def build_losses(cfg: DictConfig, task: Task) -> dict[str, Loss]:
    """The terms of conf/method/, set up on both architectures before anything is loaded."""
    teacher = models.config_of(container(cfg.teacher.architecture), task)
    if cfg.student.name == "layers":
        student = copy.deepcopy(teacher)
        kept = kept_layers(student_keep(cfg), cfg.student.num_layers, teacher.num_hidden_layers)
        student.num_hidden_layers = len(kept)
    else:
        student = models.config_of(container(cfg.student.architecture), task)
    losses = {}
    for name, node in cfg.method.items():
        if isinstance(node, DictConfig):
            losses[str(name)] = loss = build(node)
            loss.setup(student, teacher, task)
    return losses


def check_token_level(losses: dict[str, Loss], pair: Pair) -> None:
    """States of single tokens can be compared only if both models read the same tokens."""
    if tokenizer_key(pair.tokenizers["student"]) == tokenizer_key(pair.tokenizers["teacher"]):
        return
    for name, loss in losses.items():
        signals = [s for s in loss.teacher_signals if s != "logits" and not s.startswith("cls/")]
        if signals:
            raise UserError(
                f"method.{name} compares {signals[0]} token by token, but teacher and student have different "
                "tokenizers. Take method=logit or method=pkd, which compare whole texts, or a student with the "
                "teacher's tokenizer."
            )


def container(node: Any) -> dict[str, Any]:
    resolved = OmegaConf.to_container(node, resolve=True)
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def fit_settings(cfg: DictConfig) -> FitSettings:
    trainer = container(cfg.trainer)
    if trainer["accelerator"] == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer=gpu: this machine has no CUDA device that torch can use. Take trainer=cpu.")
    if trainer["accelerator"] == "auto" and not torch.cuda.is_available():
        trainer["accelerator"] = "cpu"
    if trainer["precision"] == "16-mixed" and trainer["accelerator"] == "cpu":
        raise UserError(
            "trainer.precision=16-mixed needs a GPU, and this machine has none: take bf16-mixed or 32-true."
        )
    arguments = container(cfg.optimizer)
    if trainer["precision"] == "16-mixed" and arguments.get("fused"):
        raise UserError(
            "trainer.precision=16-mixed with optimizer.fused=true would clip gradients that are still scaled: add "
            "optimizer.fused=false."
        )
    target = find_target(arguments.pop("_target_"))
    known = inspect.signature(target).parameters
    for key in arguments:
        if key not in known:
            raise UserError(f"optimizer.{key}: {cfg.optimizer._target_} has no such argument.{nearest(key, known)}")
    optimizer = functools.partial(target, **arguments)
    return FitSettings(trainer, optimizer, cfg.schedule.name, cfg.schedule.warmup, cfg.seed)


def teacher_data(cfg: DictConfig, data: TextData, pair: Pair, cache: Path) -> TextDataModule:
    """The training rows as the teacher reads them."""
    tune = cfg.teacher.fine_tune
    return TextDataModule(
        data, {"student": pair.tokenizers["teacher"]}, cache, tune.batch_size, cfg.data.max_length, cfg.data.limit,
        cfg.data.num_workers, tune.seed,
    )  # fmt: skip


def make_teacher(
    cfg: DictConfig, data: TextData, pair: Pair, task: Task, settings: FitSettings, cache: Path, logs: Logs
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
        lambda: logs.open("teacher"),
    )  # fmt: skip


def check_architecture(role: str, node: DictConfig, model: Any) -> None:
    for key in SHAPE:
        if getattr(model.config, key) != node.architecture[key]:
            raise UserError(
                f"{role}={node.name} should have {key}={node.architecture[key]}, but the files found under that name "
                f"have {getattr(model.config, key)}: another model lies there."
            )


def make_student(cfg: DictConfig, pair: Pair, teacher: Any, task: Task) -> Any:
    L.seed_everything(cfg.seed, verbose=False)  # the same start for every method
    directory = pair.directories["student"]
    if cfg.student.name == "layers":
        return models.student_of_layers(teacher, student_keep(cfg), cfg.student.num_layers)
    if directory is None:
        student = models.random_model(container(cfg.student.architecture), task)
    else:
        loaded = models.load_model(directory, task)
        student = loaded.model
        check_architecture("student", cfg.student, student)
        if loaded.has_head and not models.reorder_labels(student, task):
            raise UserError(
                f"student.weights={directory} has a head with other labels than the data: remove the head or take "
                "other weights."
            )
    models.check_vocabulary("student", pair.tokenizers["student"], student.config)
    return student


class Logs:
    """The loggers of a run. A stage is a W&B run of its own; all are finished whatever happens."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.output = Path(cfg.paths.output)
        self.wandb: Any = None

    def open(self, stage: str) -> list[Any]:
        cfg = self.cfg
        made = []
        chosen: Any = cfg.get("logger") or {}
        if "csv" in chosen:
            made.append(loggers.csv_logger(self.output if stage == "distil" else self.output / stage))
        if "wandb" in chosen and loggers.wandb_mode(chosen.wandb.mode) != "disabled" and local_rank() == 0:
            self.close()
            names = [cfg[key].name for key in ("teacher", "student", "method", "quant", "data")]
            tags = list(dict.fromkeys(names))
            self.wandb = loggers.wandb_logger(self.output, stage, container(cfg), tags, container(cfg.logger.wandb))
            made.append(self.wandb)
        return made

    def close(self, exit_code: int = 0) -> None:
        import wandb

        if self.wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=exit_code)
        self.wandb = None

    def report(self, finished: dict[str, Any], student: Path) -> None:
        """The report as summary values and as a table; the student as an artifact when online."""
        if self.wandb is None:
            return
        import wandb

        run = self.wandb.experiment
        header = ["model", *(name for name, _, _ in report.COLUMNS)]
        rows = [[name, *report.cells(figures, finished["select"])] for name, figures in finished["models"].items()]
        run.log({"report": wandb.Table(columns=list(header), data=list(rows))})
        for name, figures in finished["models"].items():
            run.summary.update({f"report/{name}/{key}": value for key, value in figures.items()})
        if not run.settings._offline:
            made = wandb.Artifact(f"student-{run.id}", type="model")
            made.add_dir(str(student))
            run.log_artifact(made)
        else:
            print(f"W&B: kept offline; to send it: wandb sync {self.output / 'wandb'}/offline-run-*")


def quantization_settings(cfg: DictConfig) -> quantization.Settings | None:
    if cfg.quant.name == "none":
        return None
    try:
        return quantization.Settings(**container(cfg.quant))
    except TypeError as error:
        raise UserError(f"quant={cfg.quant.name}: {error}.") from error


def train(cfg: DictConfig) -> float | None:
    """Everything. Returns the student's validation score, for a sweeper; None on ranks that do not report."""
    silence_transformers()
    logs = Logs(cfg)
    try:
        result = stages(cfg, logs)
    except BaseException:
        logs.close(exit_code=1)
        raise
    logs.close()
    return result


def stages(cfg: DictConfig, logs: Logs) -> float | None:
    output, cache = Path(cfg.paths.output), Path(cfg.paths.cache).expanduser()
    settings, quant = fit_settings(cfg), quantization_settings(cfg)
    data = build(cfg.data.source)
    task: Task = build(cfg.data.task, label_names=data.label_names)
    L.seed_everything(cfg.seed, verbose=False)
    losses = build_losses(cfg, task)
    pair = find_pair(cfg, data)
    check_token_level(losses, pair)
    claim(output, OmegaConf.to_yaml(cfg, resolve=True))

    teacher = make_teacher(cfg, data, pair, task, settings, cache, logs)
    rows = TextDataModule(
        data, pair.tokenizers, cache, cfg.data.batch_size, cfg.data.max_length, cfg.data.limit, cfg.data.num_workers,
        cfg.seed,
    )  # fmt: skip
    entries = [report.Entry("teacher", teacher, "teacher", fp32_bytes(teacher), models.parameter_count(teacher))]
    on_gpu = settings.trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")
    report.score(entries, rows, task, device)
    check_score(
        entries[0].figures["validation"][task.select],
        rows.splits["validation"].labels,
        task,
        cfg.teacher.gate,
    )

    student = make_student(cfg, pair, teacher, task)
    say(rows, entries[0], student, losses, task, cfg)
    callback = QuantizationCallback(quant) if quant else None
    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    fitted = fit(
        student, task, losses, FrozenTeacher(teacher, signals) if signals else None, rows, settings, output,
        f"Distilling {cfg.student.name} ({cfg.method.name})", logs.open("distil"), [callback] if callback else [],
    )  # fmt: skip
    leader = fitted.trainer.is_global_zero
    if torch.distributed.is_initialized():  # what follows is one rank's work, and must wait for no other
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    if not leader:
        return None

    student = quantization.without_fake_quantization(fitted.module.student).to("cpu").eval()
    entries.append(save_student(output, student, pair, cfg))
    if callback is not None:
        entries.append(save_converted(output, callback, pair, cfg, entries[-1].parameters))
    finished = finish_report(cfg, entries, rows, task, fitted, callback, device)
    logs.report(finished, output / "student")
    return float(entries[1].figures["validation"][task.select])


def claim(output: Path, config: str) -> None:
    """Writes config.yaml, and refuses a directory where another run did: two would overwrite each other's files."""
    if local_rank() > 0:
        return
    output.mkdir(parents=True, exist_ok=True)
    try:
        with (output / "config.yaml").open("x", encoding="utf-8") as file:
            file.write(config)
    except FileExistsError:
        raise UserError(
            f"{output} already belongs to a run (there is a config.yaml): start again, or name another directory with "
            "hydra.run.dir=..."
        ) from None


def local_rank() -> int:
    """0 but for the further processes of a job on several devices."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def fp32_bytes(model: Any) -> int:
    """What the weights take as float32, so that ratios mean the same for a checkpoint stored in float16."""
    return sum(4 * tensor.numel() for tensor in model.state_dict().values())


def say(
    rows: TextDataModule,
    teacher: report.Entry,
    student: Any,
    losses: dict[str, Loss],
    task: Task,
    cfg: DictConfig,
) -> None:
    """What is about to happen, in four lines."""
    sizes = ", ".join(f"{len(split)} {name}" for name, split in rows.splits.items())
    terms = " + ".join(f"{loss.weight:g} {name}" for name, loss in losses.items())
    config = student.config
    print(f"Data: {cfg.data.name}, {sizes} rows; labels {', '.join(task.label_names)}")
    print(
        f"Teacher: {cfg.teacher.name}, {teacher.parameters / 1e6:.1f} M parameters, validation {task.select} "
        f"{teacher.figures['validation'][task.select]:.4f}"
    )
    print(
        f"Student: {cfg.student.name}, {config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"{models.parameter_count(student) / 1e6:.1f} M parameters; quantization {cfg.quant.name}"
    )
    print(f"Loss ({cfg.method.name}): {terms}; learning rate {cfg.optimizer.lr:g}")


def save_student(output: Path, student: Any, pair: Pair, cfg: DictConfig) -> report.Entry:
    size = artefact.save_float(output / "student", student, pair.tokenizers["student"], cfg.data.max_length)
    return report.Entry("student", student, "student", size, models.parameter_count(student))


def save_converted(
    output: Path, callback: QuantizationCallback, pair: Pair, cfg: DictConfig, parameters: int
) -> report.Entry:
    """Saves the converted model and measures from now on what was read back, not what was in memory."""
    assert callback.summary is not None
    name = f"student-{callback.settings.name}"
    size = artefact.save_quantized(
        output / name, callback.converted, pair.tokenizers["student"], cfg.data.max_length, callback.settings,
        callback.summary,
    )  # fmt: skip
    print(f"{name}: {callback.summary}")
    return report.Entry(name, artefact.load(output / name).model, "student", size, parameters, True)


def finish_report(
    cfg: DictConfig, entries: list[report.Entry], rows: TextDataModule, task: Task, fitted: Fitted,
    callback: QuantizationCallback | None, device: torch.device,
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
        "models": {entry.name: entry.figures for entry in entries},
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
