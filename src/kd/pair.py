"""Teacher and student: where their weights and tokenizers come from, and how they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from kd import loggers, models
from kd.architecture import (
    architecture,
    as_conf,
    container,
    from_teacher,
    pooling,
    shape_fields,
    student_keep,
    student_overrides,
)
from kd.build import refuse_token_level
from kd.datamodule import TextDataModule
from kd.encoding import tokenizer_key
from kd.errors import UserError
from kd.fit import FitSettings
from kd.from_teacher import student_from_teacher
from kd.losses import Loss
from kd.sources import TextData
from kd.store import Wanted, content_key, directory_hash, fetch
from kd.tasks import Task
from kd.teacher import FineTune, check_labels, fine_tuned
from kd.transplant import check_tokenizer, transplant
from kd.vocabulary import trimmed


@dataclass
class Pair:
    """Where teacher and student come from, and what each reads with."""

    directories: dict[str, Path | None]
    tokenizers: dict[str, Any]
    before: Any = None  # the tokenizer that the student's weights know, where student.vocabulary gives it another
    same_pieces: bool = False  # it cuts the training texts into the same pieces as that one
    made: dict[str, str] = field(default_factory=dict)  # what the student was made of, by what is told


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
    before, same = None, False
    if cfg.student.get("vocabulary") is not None:
        before = student
        student, same = other_vocabulary(cfg, student, data)
    elif cfg.student.weights == "random" and len(student) > architecture(cfg, "student")["vocab_size"]:
        student = data.tokenizer or student
    tokenizers = {
        role: models.tokenizer_for(architecture(cfg, role)["model_type"], tokenizer)
        for role, tokenizer in (("student", student), ("teacher", teacher))
    }
    return Pair(directories, tokenizers, before, same)


def other_vocabulary(cfg: DictConfig, tokenizer: Any, data: TextData) -> tuple[Any, bool]:
    """What student.vocabulary asks for, and whether it cuts the training texts into the same pieces as before.

    All training texts count, whatever data.limit: runs of any limit have one vocabulary.
    """
    wanted, model_type = cfg.student.vocabulary, architecture(cfg, "student")["model_type"]
    if wanted == "trim":
        found, same = trimmed(tokenizer, data.splits["train"])
    else:
        found, same = models.load_tokenizer(Path(wanted).expanduser(), alone=True), False
    check_tokenizer(tokenizer, found, model_type, pairs=len(data.text_columns) == 2)
    return found, same


def check_token_level(losses: dict[str, Loss], pair: Pair, task: Task) -> None:
    """States of single tokens can be compared only if both models read the same tokens, by whatever ids."""
    student, teacher = (pair.tokenizers[role] for role in ("student", "teacher"))
    key = tokenizer_key(teacher, inputs=False)
    as_before = pair.same_pieces and tokenizer_key(pair.before, inputs=False) == key and not task.same_tokens
    if tokenizer_key(student, inputs=False) != key and not as_before:
        refuse_token_level(losses, f"different tokenizers ({first_difference(student, teacher)})", task)


def max_lengths(cfg: DictConfig) -> dict[str, int]:
    """How many tokens of a row each role reads."""
    return {"student": cfg.data.max_length, "teacher": cfg.teacher.max_length or cfg.data.max_length}


def first_difference(student: Any, teacher: Any) -> str:
    """What tells two tokenizers apart, for people."""
    for position in range(max(len(student), len(teacher))):
        ours, theirs = (each.backend_tokenizer.id_to_token(position) for each in (student, teacher))
        if ours != theirs:
            return f"position {position}: {shown(ours)} in the student's vocabulary against {shown(theirs)}"
    return "the same vocabulary, but texts are cut up or completed in another way"


def shown(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


def teacher_data(cfg: DictConfig, data: TextData, pair: Pair, cache: Path, task: Task) -> TextDataModule:
    """The training rows as the teacher reads them."""
    tune = cfg.teacher.fine_tune
    return TextDataModule(
        data, {"student": pair.tokenizers["teacher"]}, cache, tune.batch_size, max_lengths(cfg)["teacher"],
        tune.limit or cfg.data.limit, cfg.data.num_workers, tune.seed, task.units, cfg.data.truncation == "cut",
    )  # fmt: skip


def make_teacher(
    cfg: DictConfig, data: TextData, pair: Pair, task: Task, settings: FitSettings, cache: Path, logs: loggers.Logs
) -> Any:
    """Loads or fine-tunes the teacher; its head has the data's labels in the data's order."""
    node, directory = cfg.teacher, pair.directories["teacher"]
    tune = FineTune(**container(node.fine_tune))
    L.seed_everything(tune.seed, verbose=False)
    if directory is None:
        made = models.random_model(architecture(cfg, "teacher"), task, pair.tokenizers["teacher"])
        loaded = models.Loaded(made, has_head=False)
        identity = content_key(random=container(node.architecture), seed=tune.seed)
    else:
        loaded = models.load_model(directory, task, pooling(cfg, "teacher"))
        print(f"Loaded teacher={node.name}: {loaded.told}")
        identity = directory_hash(directory)
        check_architecture("teacher", node, loaded.model)
    if loaded.has_head and tune.when != "always":
        check_kind("teacher", loaded.model, task)
        check_labels(loaded.model, task, node.gate)
        return loaded.model
    if loaded.has_head:  # trained anew from the head it has
        check_labels(loaded.model, task, gate=False)
    models.check_vocabulary("teacher", pair.tokenizers["teacher"], loaded.model.config)
    models.check_positions("teacher", pair.tokenizers["teacher"], loaded.model.config, max_lengths(cfg)["teacher"])
    if not tune.wanted(loaded.has_head, node.weights):
        return loaded.model
    rows = teacher_data(cfg, data, pair, cache, task)
    return fine_tuned(
        loaded, identity, node.name, pair.tokenizers["teacher"], task, rows, tune, settings, cache,
        lambda done: logs.open("teacher", done), pooling(cfg, "teacher"),
    )  # fmt: skip


def check_kind(role: str, model: Any, task: Task) -> None:
    """The head of a checkpoint was trained for outputs of this kind: a softmax is no row of sigmoids, nor a number."""
    stored = getattr(model.config, "problem_type", None)
    if stored and task.problem_type and stored != task.problem_type:
        raise UserError(
            f"The {role}'s head was trained for problem_type={stored} (its config.json), and this task is "
            f"{task.problem_type}: take a {role} of this task, or one without a head."
        )


def check_architecture(role: str, node: DictConfig, model: Any) -> None:
    found = as_conf(model.config.to_dict(), model.config.model_type)
    for key in shape_fields(node.architecture.model_type):
        if key in node.architecture and found.get(key) != node.architecture[key]:
            raise UserError(
                f"{role}={node.name} should have {key}={node.architecture[key]}, but the files found under that name "
                f"have {found.get(key)}: another model lies there."
            )


def make_student(cfg: DictConfig, pair: Pair, teacher: Any, task: Task) -> Any:
    L.seed_everything(cfg.seed, verbose=False)  # the same start for every method
    task.follow(teacher)
    directory = pair.directories["student"]
    if from_teacher(cfg):
        shape = architecture(cfg, "student")
        if cfg.student.name == "layers":
            shape = {key: shape[key] for key in ("model_type", "num_hidden_layers")}
        student, told = student_from_teacher(teacher, student_keep(cfg), shape)
        pair.made["student from the teacher"] = "; ".join(told)
    elif directory is None:
        shape = architecture(cfg, "student")
        if pair.before is not None:
            shape |= {"vocab_size": len(pair.tokenizers["student"])}
            pair.made["student vocabulary"] = f"{len(pair.before):,} -> {shape['vocab_size']:,} pieces"
        student = models.random_model(shape, task, pair.tokenizers["student"])
    else:
        loaded = models.load_model(directory, task, pooling(cfg, "student"))
        print(f"Loaded student={cfg.student.name}: {loaded.told}")
        student = loaded.model
        check_architecture("student", cfg.student, student)
        if loaded.has_head:
            check_kind("student", student, task)
        if loaded.has_head and not models.reorder_labels(student, task):
            raise UserError(
                f"student.weights={directory} has a head with other labels than the data: remove the head or take "
                "other weights."
            )
    if pair.before is not None and cfg.student.weights != "random":
        done = transplant(student, pair.before, pair.tokenizers["student"])
        from_text = "; all training texts count, whatever data.limit" if cfg.student.vocabulary == "trim" else ""
        pair.made["student vocabulary"] = done + from_text
    if cfg.student.name != "layers":
        models.check_vocabulary("student", pair.tokenizers["student"], student.config)
        models.check_positions("student", pair.tokenizers["student"], student.config, cfg.data.max_length)
    if cfg.student.overrides and cfg.student.weights != "random":
        student = models.with_fields(student, student_overrides(cfg))
    if cfg.student.get("freeze_embeddings"):
        student.get_input_embeddings().weight.requires_grad_(False)
        pair.made["word embeddings"] = "frozen"
    return student
