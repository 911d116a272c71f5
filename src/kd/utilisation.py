"""How much of the machine a training uses: its matrix products against the fastest of them measured alone.

The FLOPs of a step are those of the student's matrix products, ``2 m n k`` each, forward and twice as many backward,
and of a teacher that runs beside it, forward; of real tokens alone. Whatever else a step does, padding included, is
time that is not used for them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from kd.batches import Numbers
from kd.datamodule import TextDataModule
from kd.models import encoder_layers

WARM_UP = 5  # batches
SECONDS = 1.0  # of measuring matrix products
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
BACKWARD = 2  # times the forward pass: the gradient of the weights and that of the states


@dataclass
class Work:
    """FLOPs of a model's forward pass: of a token, of a pair of tokens (the attention), of an answer (the head)."""

    token: float
    pair: float
    answer: float

    def forward(self, lengths: Numbers, answers: float) -> float:
        """Of rows of these lengths with so many answers."""
        return float(
            lengths.sum() * self.token + (lengths.astype(float) ** 2).sum() * self.pair + answers * self.answer
        )


def work_of(model: Any, first_alone: bool = False) -> Work:
    """Linear modules of the encoder work on every token, those of the pooler and of the head on every answer.

    ``first_alone``: of the last layer, all but keys and values work on every answer, too (kd.fused_layers).
    """
    base = f"{model.base_model_prefix}."
    token = answer = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            products = 2 * module.in_features * module.out_features
            inside = name.startswith(base) and "pooler" not in name
            token, answer = (token + products, answer) if inside else (token, answer + products)
    layers, wide = model.config.num_hidden_layers, model.config.hidden_size
    if first_alone:
        linears = (m for m in encoder_layers(model)[-1].modules() if isinstance(m, nn.Linear))
        of_one = sum(2 * m.in_features * m.out_features for m in linears) - 2 * 2 * wide * wide
        # its one query meets every key: 4 H a token
        return Work(token - of_one + 4 * wide, 4 * (layers - 1) * wide, answer + of_one)
    return Work(token, 4 * layers * wide, answer)


class StepClock(Callback):
    """The time of batches after the first ones, with all that belongs to them but validation."""

    def __init__(self) -> None:
        self.batches = 0
        self.begun = self.paused = 0.0
        self.seconds = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        self.batches += 1
        if self.batches == WARM_UP:
            self.begun, self.paused = now, 0.0
        self.seconds = now - self.begun - self.paused

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.stopped = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.paused += time.perf_counter() - self.stopped

    @property
    def batch_seconds(self) -> float | None:
        """The mean; None where nothing came after the first batches."""
        return self.seconds / (self.batches - WARM_UP) if self.batches > WARM_UP else None


def shapes_of(model: Any) -> list[tuple[int, int]]:
    """The inputs and outputs of the linear modules in a layer."""
    base = f"{model.base_model_prefix}."
    found = [(m.in_features, m.out_features) for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and n.startswith(base) and "pooler" not in n]  # fmt: skip
    return list(dict.fromkeys(found))


def matmul_peak(
    shapes: Sequence[tuple[int, int]], tokens: int, dtype: torch.dtype, device: torch.device, seconds: float = SECONDS
) -> float:
    """FLOPs a second of the fastest of these products of ``[tokens, in]`` with ``[in, out]``, each measured alone."""
    best = 0.0
    for inputs, outputs in shapes:
        states = torch.randn(tokens, inputs, device=device).to(dtype)
        weights = torch.randn(outputs, inputs, device=device).to(dtype).t()  # as a linear module has them
        times: list[float] = []
        end = time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < end or len(times) < 3:
            start = time.perf_counter()
            torch.mm(states, weights)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        best = max(best, 2 * tokens * inputs * outputs / statistics.median(times))
    return best


def utilisation(
    student: Any, teacher: Any | None, rows: TextDataModule, clock: StepClock, precision: str, device: torch.device,
    first_alone: bool = False,
) -> dict[str, Any] | None:  # fmt: skip
    """For the report; ``teacher`` only if it ran in every step. None for a training too short to be timed.

    ``first_alone`` is that of ``work_of``.
    """
    if clock.batch_seconds is None:
        return None
    train, draws = rows.splits["train"], [draw.rows for draw in rows.batches()]
    answers, lengths = train.units.counts["labels"], train.lengths
    real = padded = 0.0
    works = [(work_of(student, first_alone), 1 + BACKWARD, lengths)]
    if teacher is not None:
        works.append((work_of(teacher), 1, train.lengths_of("teacher")))
    for drawn in draws:
        for work, times, read in works:
            own = read[drawn]
            real += times * work.forward(own, answers[drawn].sum())
            padded += times * work.forward(own * 0 + own.max(), answers[drawn].sum())
    tokens = round(float(sum(lengths[drawn].max() * len(drawn) for drawn in draws)) / len(draws) / rows.parts)
    dtype = DTYPES.get(precision, torch.float32)
    peak = matmul_peak(shapes_of(student), tokens, dtype, device)
    batch = real / len(draws) / rows.parts
    share = batch / clock.batch_seconds / peak
    name, with_teacher = str(dtype).removeprefix("torch."), ", teacher forward" if teacher is not None else ""
    return {
        "share": share,
        "flops_per_batch": batch,
        "seconds_per_batch": clock.batch_seconds,
        "peak_flops_per_second": peak,
        "dtype": name,
        "padding": 1 - real / padded,
        "text": (
            f"{share:.1%} of {peak / 1e9:,.0f} GFLOP/s, the fastest of the student's matrix products measured alone in "
            f"{name}: a batch takes {clock.batch_seconds * 1e3:.1f} ms for {batch / 1e9:.2f} GFLOP (student forward "
            f"and backward{with_teacher}); padding, which does not count, adds {padded / real - 1:.1%}"
        ),
    }
