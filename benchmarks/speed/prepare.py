"""Makes what all programs start from: rows, a teacher, students; in a directory of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kd.architecture import container
from kd.command_line import compose
from kd.layer_map import patient_pairs
from speed.work import Work

ROOT = Path(__file__).parents[2]
LABELS = ["negative", "positive"]
LAYERS = "layers"  # the student that is made of the teacher


def store() -> Path:
    """KD_STORE, where models and data lie."""
    found = os.environ.get("KD_STORE")
    if not found or not (Path(found) / "data/sst2/train.parquet").is_file():
        raise SystemExit("Set KD_STORE to a directory with data/sst2 and models/minilm_l6.")
    return Path(found)


def write_rows(directory: Path, rows: int, validation: int | None) -> None:
    """A random subset of SST-2, the same for every seed, repeated where more rows are asked for than it has."""
    import numpy as np

    for split, file, count in (("train", "train", rows), ("dev", "validation", validation)):
        table = pq.read_table(store() / f"data/sst2/{split}.parquet", columns=["text", "label"])
        count = len(table) if count is None else count
        order = np.random.default_rng(0).permutation(len(table))
        taken = table.take(pa.array(np.resize(order, count)))
        pq.write_table(taken, directory / f"{file}.parquet")


def architecture(role: str, name: str) -> dict[str, Any]:
    return dict(container(compose([f"{role}={name}"])[role].architecture))


def write_teacher(directory: Path, name: str) -> None:
    """The store's model with a random head, or, where the store has none, random weights: speed depends on neither."""
    import torch

    from kd import models
    from kd.tasks import Classification

    torch.manual_seed(0)
    task = Classification(LABELS)
    there = store() / "models" / name
    if there.is_dir():
        model = models.load_model(there, task).model
    else:
        model = models.random_model(architecture("teacher", name), task, tokenizer())
    model.save_pretrained(directory / "teacher")
    tokenizer().save_pretrained(directory / "teacher")


def tokenizer() -> Any:
    from kd import models

    return models.load_tokenizer(store() / "models/minilm_l6")


def write_student(directory: Path, name: str, seed: int) -> None:
    """Random weights, or layers of the teacher; the same for every program."""
    import torch

    from kd import models
    from kd.from_teacher import student_of_layers
    from kd.tasks import Classification

    target, task = directory / f"student-{seed}", Classification(LABELS)
    if target.is_dir():
        return
    torch.manual_seed(seed)
    if name == LAYERS:
        own = compose([f"student={LAYERS}"]).student
        student = student_of_layers(models.load_model(directory / "teacher", task).model, own.keep, own.num_layers)
    else:
        student = models.random_model(architecture("student", name), task, tokenizer())
    student.save_pretrained(target)
    tokenizer().save_pretrained(target)


def fine_tune_teacher(directory: Path) -> Path:
    """By kd, on the same rows; what it keeps is the teacher of all programs."""
    cache = directory / "teacher-cache"
    command = [
        sys.executable, str(ROOT / "train.py"), *data_overrides(directory), "teacher=minilm_l6", "student=layers",
        "student.num_layers=1", "method=hard", "trainer=cpu", "trainer.max_steps=1", "trainer.precision=bf16-mixed",
        "report.measure=false", "logger=csv", f"hydra.run.dir={directory / 'teacher-run'}",
    ]  # fmt: skip
    environment = os.environ | {"KD_CACHE": str(cache), "WANDB_MODE": "offline"}
    with (directory / "teacher.log").open("w") as log:
        subprocess.run(command, check=True, env=environment, stdout=log, stderr=log)
    return next(path.parent for path in cache.glob("teachers/*/kd.json"))


def data_overrides(directory: Path) -> list[str]:
    files = [f"data.{split}={directory / split}.parquet" for split in ("train", "validation")]
    names = ",".join(LABELS)
    columns = ["data.text=text", "data.label=label"]
    return ["data=files", *files, *columns, "data.task=classification", f"data.label_names=[{names}]"]


@contextlib.contextmanager
def workplace(teacher: str, student: str, rows: int, validation: int | None = 64) -> Iterator[Path]:
    """A directory with rows, the teacher and the first student; gone afterwards.

    Few validation rows: kd looks at them after each epoch, the others do not.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_rows(directory, rows, validation)
        write_teacher(directory, teacher)
        write_student(directory, student, 0)
        yield directory


def make_work(directory: Path, method: str, teacher: str, student: str, rows: int, **more: Any) -> Work:
    """The work with every other figure from kd's configuration."""
    cfg = compose([f"method={method}", f"student={student}", f"teacher={teacher}"])
    terms = container(cfg.method)
    of_teacher, own = (architecture(role, cfg[role].name) for role in ("teacher", "student"))
    layers = cfg.student.get("num_layers") or own["num_hidden_layers"], of_teacher["num_hidden_layers"]
    pairs = tuple(patient_pairs(terms["patient"]["layers"], *layers)) if "patient" in terms else ()
    given: dict[str, Any] = {
        "epochs": cfg.trainer.max_epochs, "batch": cfg.data.batch_size, "max_length": cfg.data.max_length, "seed": 0,
        "threads": 2, "lr": cfg.optimizer.lr, "weight_decay": cfg.optimizer.weight_decay,
        "warmup": cfg.schedule.warmup, "clip": cfg.trainer.gradient_clip_val, "hard": terms["hard"]["weight"],
        "soft": terms["soft"]["weight"], "temperature": terms["soft"]["temperature"],
        "patient": terms.get("patient", {}).get("weight", 0.0),
    }  # fmt: skip
    return Work(str(directory), method, teacher, student, rows, pairs=pairs, **given | more)
