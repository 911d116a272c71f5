"""Training speed by method and precision, in samples a second; asserts nothing.

    KD_STORE=../shared/store python benchmarks/train_speed.py [--steps 60]

Teacher of MiniLM-L6's shape, student of bert-mini's, random weights (speed does not depend on them). SST-2 texts if the
store has them, else the demo's. One process; each figure is the median of the measured rounds, which alternate.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from kd.noise import silence

silence()

import lightning as L  # noqa: E402
import torch  # noqa: E402
from hydra.utils import instantiate  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from omegaconf import DictConfig  # noqa: E402

from kd import demo, models, sources  # noqa: E402
from kd.architecture import container  # noqa: E402
from kd.command_line import compose  # noqa: E402
from kd.datamodule import TextDataModule  # noqa: E402
from kd.fit import FitSettings, fit  # noqa: E402
from kd.lit_module import FrozenTeacher  # noqa: E402
from kd.store import Wanted, find  # noqa: E402
from kd.tasks import Classification  # noqa: E402

METHODS = ["hard", "logit", "pkd", "feature"]
PRECISIONS = ["32-true", "bf16-mixed"]
BATCH = 32
WARM_UP = 5


def text(cache: Path) -> tuple[sources.TextData, object]:
    """Texts and a tokenizer."""
    store = Path(os.environ.get("KD_STORE", cache / "store"))
    directory = find(Wanted("model", "minilm_l6", None, store))
    if directory is None or find(Wanted("dataset", "sst2", None, store)) is None:
        made = demo.generate(rows=4000, scored_rows=BATCH, seed=0, noise=0.1)
        return made, made.tokenizer
    data = sources.stored("sst2", None, {}, ["negative", "positive"], str(store), str(cache))
    return data, models.load_tokenizer(directory)


class Clock(Callback):
    """Times the steps after the warm-up: no start, no validation, no checkpoint."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        elif trainer.global_step == self.last:
            self.seconds = time.perf_counter() - self.start


def samples_per_second(method: str, precision: str, steps: int, data: TextDataModule, directory: Path) -> float:
    cfg = compose([f"method={method}", "teacher=minilm_l6", "student=bert_mini"])
    task = Classification(["negative", "positive"])
    teacher = models.random_model(container(cfg.teacher.architecture), task)
    student = models.random_model(container(cfg.student.architecture), task)
    losses = {str(name): instantiate(node) for name, node in cfg.method.items() if isinstance(node, DictConfig)}
    for loss in losses.values():
        loss.setup(student.config, teacher.config, task)
    signals = tuple(signal for loss in losses.values() for signal in loss.teacher_signals)
    trainer = container(cfg.trainer) | {"accelerator": "cpu", "precision": precision, "max_steps": steps}
    settings = FitSettings(trainer, functools.partial(torch.optim.AdamW, lr=1e-4, fused=True), "linear", 0.06, 0)
    frozen = FrozenTeacher(teacher, signals) if signals else None
    clock = Clock(steps)
    own = Path(tempfile.mkdtemp(dir=directory))
    fit(student, task, losses, frozen, data, settings, own, "benchmark", f"{method} {precision}", callbacks=[clock])
    return (steps - WARM_UP) * BATCH / clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        source, tokenizer = text(directory)
        source.splits["validation"] = source.splits["validation"].select(range(BATCH))  # time training alone
        data = TextDataModule(source, {"student": tokenizer, "teacher": tokenizer}, directory, BATCH, 128)
        cases = list(itertools.product(METHODS, PRECISIONS))
        found: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for _ in range(arguments.rounds):
            for method, precision in cases:
                found[method, precision].append(samples_per_second(method, precision, arguments.steps, data, directory))
    print(f"\n{source.name}, {torch.get_num_threads()} threads, samples a second (median of {arguments.rounds})")
    for method in METHODS:
        figures = "  ".join(f"{p} {statistics.median(found[method, p]):6.0f}" for p in PRECISIONS)
        print(f"{method:8} {figures}")


if __name__ == "__main__":
    main()
