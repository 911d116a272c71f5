"""What the word embeddings cost in a training step, in ms by part; asserts nothing.

    OMP_NUM_THREADS=1 python benchmarks/embedding_step.py [--student bert_mini] [--rows 32] [--length 14] [--steps 100]

A student with random weights under bf16 autocast, its layers and dropout as kd trains them on a CPU, tokens drawn as
often as words are (the n-th 1 / n of the first). The same batches go to three copies in turn: dense AdamW, rows updated
when they are read, and frozen embeddings.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from kd.noise import silence

silence()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from kd import models  # noqa: E402
from kd.architecture import container  # noqa: E402
from kd.command_line import compose  # noqa: E402
from kd.fast_dropout import draw_bits  # noqa: E402
from kd.fused_layers import fuse  # noqa: E402
from kd.lazy_rows import LazyAdamW, LazyRows  # noqa: E402
from kd.tasks import Classification  # noqa: E402

PARTS = ("forward", "backward", "clipping", "optimizer")
WARM_UP = 10


class Training:
    """One copy of the student and the times of its steps in ms."""

    def __init__(self, kind: str, shape: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.model = models.random_model(shape, Classification(["negative", "positive"])).train()
        draw_bits(self.model)
        fuse(self.model)
        embedding = self.model.get_input_embeddings()
        embedding.weight.requires_grad_(kind != "frozen")
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        settings: dict[str, Any] = {"lr": 1e-4, "weight_decay": 0.01, "fused": True}
        self.rows: LazyRows | None = None
        self.optimizer: torch.optim.Optimizer
        if kind == "lazy":
            self.optimizer = lazy = LazyAdamW(self.parameters, **settings)
            self.rows = lazy.attach(embedding)
        else:
            self.optimizer = torch.optim.AdamW(self.parameters, **settings)
        self.times: dict[str, list[float]] = {part: [] for part in PARTS}

    def step(self, ids: Tensor) -> None:
        at = [time.perf_counter()]
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum()
        at.append(time.perf_counter())
        loss.backward()
        at.append(time.perf_counter())
        parameters: list[Tensor] = list(self.parameters)
        if self.rows is not None:
            parameters = [p for p in parameters if p is not self.rows.table] + self.rows.touched()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        at.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad()
        at.append(time.perf_counter())
        for part, begin, end in zip(PARTS, at[:-1], at[1:], strict=True):
            self.times[part].append(1000 * (end - begin))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--student", default="bert_mini")
    for name, default in (("rows", 32), ("length", 14), ("steps", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    shape = container(compose([f"student={given.student}"]).student.architecture)
    often = 1 / torch.arange(1.0, shape["vocab_size"] + 1)
    trainings = {kind: Training(kind, shape) for kind in ("dense", "lazy", "frozen")}
    for _ in range(WARM_UP + given.steps):
        ids = torch.multinomial(often, given.rows * given.length, replacement=True).view(given.rows, given.length)
        for training in trainings.values():
            training.step(ids)
    print(f"{given.student}, {given.rows} x {given.length} tokens, {torch.get_num_threads()} threads, median ms")
    print(" ".join(f"{name:>10}" for name in ("", *PARTS, "step")))
    for kind, training in trainings.items():
        medians = [statistics.median(times[WARM_UP:]) for times in training.times.values()]
        whole = statistics.median(map(sum, zip(*[t[WARM_UP:] for t in training.times.values()], strict=True)))
        print(f"{kind:>10} " + " ".join(f"{value:10.1f}" for value in (*medians, whole)))


if __name__ == "__main__":
    main()
