"""The teacher stage: a model that knows the task, checked, and kept for every later run."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from kd.checkpoint import steps_done, steps_logged
from kd.datamodule import TextDataModule
from kd.encoding import tokenizer_key
from kd.errors import OtherStepsError, UserError
from kd.fit import FitSettings, Fitted, fit
from kd.halving import parts_begun, within_memory
from kd.losses import HardLabelLoss
from kd.models import Loaded, load_model, name_labels, reorder_labels
from kd.report import Entry
from kd.store import content_key, locked, new_directory, rank, write_text
from kd.tasks.base import Task

FORMAT = 1  # of a kept teacher; part of its key


@dataclass
class FineTune:
    """The ``teacher.fine_tune`` block of the configuration."""

    when: str
    epochs: int
    max_steps: int
    batch_size: int
    lr: float
    seed: int
    limit: int | None = None  # part of the data's key, so not of this one
    precision: str = "32-true"  # a part of its own of the key

    def wanted(self, has_head: bool, weights: str) -> bool:
        return self.when == "always" or (self.when == "auto" and not has_head and weights != "random")


def teacher_key(
    identity: str, tokenizer: Any, data: TextDataModule, task: Task, tune: FineTune, settings: FitSettings,
    pooling: str | None = None,
) -> str:  # fmt: skip
    """Everything that determines the fine-tuned weights, but the machine."""
    optimizer = settings.optimizer
    assert isinstance(optimizer, functools.partial)
    tuned = {name: value for name, value in vars(tune).items() if name not in ("limit", "precision")} | {"when": None}
    return content_key(
        weights=identity, data=data.key, labels=task.label_names, task=type(task).__name__, **task.settings(),
        tokenizer=tokenizer_key(tokenizer), tune=tuned,
        optimizer=[f"{optimizer.func.__module__}.{optimizer.func.__qualname__}", optimizer.keywords],
        schedule=[settings.schedule_name, settings.warmup], format=FORMAT,
        precision=settings.trainer["precision"], clip=settings.trainer["gradient_clip_val"],
        **({"pooling": pooling} if pooling else {}),  # without one the key is that of a kd which had none
    )  # fmt: skip


def own_settings(settings: FitSettings, tune: FineTune) -> FitSettings:
    """On one device, before any other rank exists: the others will find the teacher in the cache."""
    options = {
        "max_epochs": tune.epochs, "max_steps": tune.max_steps, "accumulate_grad_batches": 1, "devices": 1,
        "num_nodes": 1, "strategy": "auto", "precision": tune.precision,
    }  # fmt: skip
    optimizer = functools.partial(settings.optimizer, lr=tune.lr)
    return replace(
        settings, seed=tune.seed, profile=False, compile="off", optimizer=optimizer, trainer=settings.trainer | options
    )


def wait_for_first_rank(kept: Path) -> None:
    """torchrun starts all ranks at once; one of them fine-tunes."""
    if rank() > 0 and not (kept / "kd.json").is_file():
        print(f"Rank {rank()} waits for the first one to fine-tune the teacher, {kept}", file=sys.stderr)
        while not (kept / "kd.json").is_file():
            time.sleep(1.0)


def fine_tuned(
    loaded: Loaded, identity: str, name: str, tokenizer: Any, task: Task, data: TextDataModule, tune: FineTune,
    settings: FitSettings, cache: Path, loggers: Callable[[int], Sequence[Any]], pooling: str | None = None,
) -> Any:  # fmt: skip
    """The model fine-tuned on the task, from the cache if an earlier run did it.

    ``data`` is the teacher's own; ``loggers`` is called with the number of steps that were logged before.
    """
    settings = own_settings(settings, tune)
    key = teacher_key(identity, tokenizer, data, task, tune, settings, pooling)
    kept = cache / "teachers" / f"{name}-{data.data.name}-{key}"
    wait_for_first_rank(kept)
    with locked(kept, f"Teacher: waiting for another run that fine-tunes the same one, {kept}"):
        model = earlier(kept, task)
        if model is not None:
            return model
        loss = HardLabelLoss(weight=1.0)
        loss.setup(loaded.model.config, loaded.model.config, task)
        work = kept.with_name(f".{kept.name}.work")  # stays where a run was stopped: the next one goes on from there
        done = steps_begun(work, key)
        if done:
            print(f"Teacher: going on after {done} steps that an earlier run did")

        def once(parts: int, model: Any = loaded.model) -> Fitted:
            return fit(
                model.requires_grad_(True), task, {"hard": loss}, None, data, settings, work, key,
                f"Fine-tuning the teacher {name}", loggers(steps_logged(work)), parts=parts,
            )  # fmt: skip

        def trained() -> Fitted:
            if settings.trainer["accelerator"] == "cpu":  # there the system ends a process without memory
                return once(parts_begun(work))
            return within_memory(lambda parts: once(parts, copy.deepcopy(loaded.model)), work, tune.batch_size)

        fitted = begun_anew(trained, work)
        with new_directory(kept) as unfinished:
            keep(fitted, tokenizer, unfinished)
        shutil.rmtree(work)
        print(f"Teacher: fine-tuned in {fitted.seconds:.0f} s, kept in {kept}")
        return fitted.module.student.to("cpu").eval()


def begun_anew(trained: Callable[[], Fitted], work: Path) -> Fitted:
    """The training, from the start where another device or trainer.lazy_embeddings began it in another way."""
    try:
        return trained()
    except OtherStepsError:
        print("Teacher: the run that was stopped updated its word embeddings in another way; beginning anew.")
        shutil.rmtree(work)
        return trained()


def steps_begun(work: Path, key: str) -> int:
    """What a run that was stopped had done; 0, and nothing left, if its state cannot be read."""
    try:
        return steps_done(work, key)
    except UserError as error:
        print(f"Teacher: {error} It was deleted.")
        shutil.rmtree(work)
        return 0


def earlier(kept: Path, task: Task) -> Any | None:
    """The model an earlier run kept; None if there is none, or none that can be read, which is said."""
    if not (kept / "kd.json").is_file():
        return None
    try:
        model = load_model(kept, task).model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # broken files: they can be made again
        print(f"Teacher: {kept} cannot be read ({type(error).__name__}: {error}); fine-tuning anew.")
        return None
    print(f"Teacher: fine-tuned earlier, from {kept}")
    return model


def keep(fitted: Fitted, tokenizer: Any, directory: Path) -> None:
    """Model, tokenizer and how it went."""
    fitted.module.student.to("cpu").save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    about = {"validation": fitted.best_score, "steps": fitted.steps, "seconds": round(fitted.seconds, 1)}
    write_text(directory / "kd.json", json.dumps(about, indent=2))


def check_labels(model: Any, task: Task, gate: bool) -> None:
    """The head's labels are the data's, by name; a mere other order is mended."""
    if not task.outputs:
        return
    if model.config.num_labels != len(task.outputs):
        raise UserError(
            f"The teacher's head has {model.config.num_labels} labels, the task {len(task.outputs)} "
            f"({', '.join(task.outputs)}): take a teacher of this task, or teacher.fine_tune.when=always on "
            "weights without a head."
        )
    own = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    if reorder_labels(model, task):
        return
    if gate:
        raise UserError(
            f"The teacher's labels are {own}, the task's {task.outputs}: by name it cannot be seen which is which. "
            "Correct id2label in the teacher's config.json, or teacher.gate=false to take them in the order they stand."
        )
    print(f"The teacher's labels {own} are taken as {task.outputs}, in this order, for teacher.gate=false.")
    name_labels(model, task)


def check_score(teacher: Entry, labels: Tensor, task: Task, gate: bool, max_steps: int = -1) -> bool:
    """The gate: whether the teacher beats the score that needs no model, beyond chance. Raises if it must."""
    score, logits = teacher.figures["validation"][task.select], teacher.logits["validation"]
    chance, meaning = task.chance(labels)
    low, high = task.interval(score, logits, labels, teacher.decision)
    if task.beats_chance(score, logits, labels, teacher.decision):
        return True
    longer = f"teacher.fine_tune.max_steps={max_steps} ended it" if max_steps > 0 else "teacher.fine_tune.epochs"
    text = (
        f"The teacher's validation {task.select} is {score:.4f} (95 % interval {low:.4f} to {high:.4f} on "
        f"{len(labels)} {task.unit}); {meaning} gives {chance:.4f}."
    )
    if gate:
        raise UserError(
            f"{text} It has nothing to teach. Train it longer ({longer}; .lr, data.limit), take "
            "another one, or teacher.gate=false to go on all the same."
        )
    print(f"{text} Going on, for teacher.gate=false.")
    return False
