"""From the composed configuration to objects: the losses, the optimizer, the settings of each part."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import hydra
import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from kd import heads, models
from kd.architecture import architecture, container, family, from_teacher, student_keep, student_overrides
from kd.errors import UserError, nearest
from kd.fit import FitSettings
from kd.labels.fit import check_fit
from kd.layer_map import kept_layers
from kd.losses import Loss
from kd.named_schemes import AUTO, named_schemes
from kd.overrides import check_model
from kd.quantization import layers_to_quantize
from kd.schedules import KEYS, schedules_of
from kd.schemes import Settings, refusal
from kd.sources import TextData
from kd.tasks import NAMES, Task


def build(node: DictConfig, **more: Any) -> Any:
    """The object a ``_target_`` names. Raises UserError for a wrong target or argument."""
    try:
        return hydra.utils.instantiate(node, _convert_="all", **more)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise UserError(argument_error(node, error)) from error


def make_task(node: DictConfig, data: TextData) -> Task:
    """The task that data.task names, with the settings under its name; null: the one that the data's source found.

    Raises UserError for a name that there is not, and for a task that the data's labels are not for.
    """
    name = node.task or data.task
    if name not in NAMES:
        raise UserError(f"data.task={name}:{nearest(str(name), NAMES)} Known: {', '.join(NAMES)}.")
    check_fit(name, data.name, data.splits["train"])
    return NAMES[name](data.label_names, **(container(node[name]) if name in node else {}))


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


def trainer_settings(cfg: DictConfig) -> dict[str, Any]:
    """The trainer block, with ``auto`` resolved. Raises UserError for devices that this machine has not."""
    trainer = container(cfg.trainer)
    wanted, cuda = trainer["accelerator"], torch.cuda.is_available()
    if wanted == "gpu" and not cuda:
        raise UserError("trainer=gpu: this machine has no CUDA device that torch can use. Take trainer=cpu.")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError("trainer=mps: this machine has no Apple GPU that torch can use. Take trainer=cpu.")
    if wanted == "auto" and not cuda:
        trainer["accelerator"] = wanted = "cpu"
    if wanted == "cpu" and "16-mixed" in (trainer["precision"], cfg.teacher.fine_tune.precision):
        raise UserError(
            "trainer.precision=16-mixed needs a GPU, and this machine has none: take bf16-mixed or 32-true."
        )
    devices, there = trainer["devices"], torch.cuda.device_count() if cuda else 1
    if wanted != "cpu" and devices > there:
        raise UserError(f"trainer.devices={devices}: this machine has {there} GPU. Set trainer.devices={there}.")
    return trainer


def fit_settings(cfg: DictConfig) -> FitSettings:
    trainer = trainer_settings(cfg)
    lazy = trainer.pop("lazy_embeddings", "auto")
    arguments = container(cfg.optimizer)
    if "16-mixed" in (trainer["precision"], cfg.teacher.fine_tune.precision) and arguments.get("fused"):
        raise UserError(
            "precision 16-mixed with optimizer.fused=true would clip gradients that are still scaled: add "
            "optimizer.fused=false."
        )
    target = find_target(arguments.pop("_target_"))
    known = inspect.signature(target).parameters
    for key in arguments:
        if key not in known:
            raise UserError(f"optimizer.{key}: {cfg.optimizer._target_} has no such argument.{nearest(key, known)}")
    optimizer = functools.partial(target, **arguments)
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"optimizer: {cfg.optimizer._target_} refuses these settings: {error}.") from error
    return FitSettings(
        trainer, optimizer, cfg.schedule.name, cfg.schedule.warmup, cfg.seed, cfg.checkpoint.every_seconds,
        lazy, cfg.profile, cfg.compile,
    )  # fmt: skip


def trained_on(cfg: DictConfig) -> str:
    """The device as torch calls it."""
    accelerator = trainer_settings(cfg)["accelerator"]
    return accelerator if accelerator in ("cpu", "mps") else "cuda"


def quantization_settings(cfg: DictConfig) -> list[Settings]:
    """Of every scheme that is named; what keep_float=auto finds is not known yet."""
    found = []
    for name, settings in named_schemes(cfg).items():
        if settings.get("keep_float") == AUTO:
            settings["keep_float"] = []
        try:
            found.append(Settings(name=name, **settings))
        except TypeError as error:
            raise UserError(f"quant={name}: {error}.") from error
        for device in ("cpu", *([trained_on(cfg)] if found[-1].qat else ())):  # the first: where they are converted
            capability = torch.cuda.get_device_capability() if device == "cuda" else None
            if says := refusal(found[-1], device, capability):
                raise UserError(says)
    return found


def check_layers(cfg: DictConfig, task: Task, schemes: Sequence[Settings]) -> None:
    """Raises UserError for layers that a scheme cannot quantize, or is told to keep and that are not there."""
    with torch.device("meta"):
        shape = heads.Auto(task).from_config(model_configs(cfg, task)[1])
    for scheme in schemes:
        layers_to_quantize(shape, scheme)


def model_configs(cfg: DictConfig, task: Task) -> tuple[Any, Any]:
    """The transformers configs of teacher and student. What each of a teacher's layers is goes with the layer."""
    shapes = {role: architecture(cfg, role) for role in ("teacher", "student")}
    teacher, student = (models.config_of(shape, task) for shape in shapes.values())
    if from_teacher(cfg):
        layers = (shapes[role]["num_hidden_layers"] for role in ("student", "teacher"))
        kept = kept_layers(student_keep(cfg), *layers)
        for field, entries in models.kept_fields(teacher, family(shapes["student"]["model_type"]), kept).items():
            if field not in student_overrides(cfg):
                setattr(student, field, entries)
    return teacher, student


def build_losses(cfg: DictConfig, task: Task) -> dict[str, Loss]:
    """The terms of conf/method/, set up on both architectures before anything is loaded."""
    check_model(cfg, task)
    teacher, student = model_configs(cfg, task)
    losses = {}
    for name, node in cfg.method.items():
        if isinstance(node, DictConfig):
            try:
                loss = build(OmegaConf.masked_copy(node, [str(key) for key in node if key not in KEYS]))
                losses[str(name)] = loss
                loss.setup(student, teacher, task)
                loss.follow(schedules_of(f"method.{name}", container(node)))
            except UserError as error:
                raise UserError(f"method.{name}: {error}") from error
    own = cfg.student.get("vocabulary") is None and all(
        cfg[role].weights == "pretrained" for role in ("teacher", "student")
    )
    if own and student.vocab_size != teacher.vocab_size:
        sizes = f"{student.vocab_size} entries against {teacher.vocab_size}"
        refuse_token_level(losses, f"different tokenizers ({sizes})", task)
    if (cfg.teacher.max_length or cfg.data.max_length) != cfg.data.max_length:
        lengths = f"different lengths (teacher.max_length={cfg.teacher.max_length}, data.max_length"
        refuse_token_level(losses, f"{lengths}={cfg.data.max_length})", task)
    return losses


def refuse_token_level(losses: dict[str, Loss], difference: str, task: Task) -> None:
    """Raises UserError for two models that do not read the same tokens, if a loss or the task is about single ones."""
    if task.same_tokens:
        raise UserError(
            f"data.task=masked_lm hides the same tokens from teacher and student, but they have {difference}. Take a "
            "student with the teacher's tokenizer and length."
        )
    for name, loss in losses.items():
        signals = [s for s in loss.teacher_signals if s != "logits" and not s.startswith("cls/")]
        if signals:
            raise UserError(
                f"method.{name} compares {signals[0]} token by token, but teacher and student have {difference}. Take "
                "method=logit or method=pkd, which compare whole texts, or a student with the teacher's tokenizer and "
                "length."
            )
