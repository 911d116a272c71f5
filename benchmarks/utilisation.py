"""The student's step as a share of its own matrix products measured alone, and what the rest goes to; asserts nothing.

    python benchmarks/utilisation.py [--students bert_small bert_medium bert_base] [--tokens 2048] [--length 32]

Random weights and tokens, bfloat16 (``--float32`` for the other), the losses replaced by a sum: forward and backward
of the student alone, without its optimizer. Steps and products take turns; figures are medians. What the rest goes to
comes from torch's profiler, in a few steps more, as shares of the profiled time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.noise import silence

silence()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from kd import models  # noqa: E402
from kd.architecture import container  # noqa: E402
from kd.command_line import compose  # noqa: E402
from kd.fast_dropout import draw_bits  # noqa: E402
from kd.fused_layers import fuse  # noqa: E402
from kd.tasks import Classification  # noqa: E402
from kd.utilisation import BACKWARD, matmul_peak, shapes_of, work_of  # noqa: E402

GROUPS = {  # of operators, by parts of their names; the first that fits
    "matrix products": ("mm", "linear", "matmul"),
    "dropout": ("bernoulli", "dropout"),
    "attention": ("attention", "softmax"),
    "norms": ("layer_norm",),
    "activation": ("gelu", "tanh"),
    "embeddings": ("embedding", "index"),
    "copies and casts": ("copy", "to", "contiguous", "clone"),
    "sums and products of tensors": ("add", "mul", "sum", "div", "fill", "zero", "where"),
}


def step_of(model: Any, inputs: dict[str, torch.Tensor], mixed: bool) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(inputs["input_ids"].device.type, torch.bfloat16, enabled=mixed):
            output = model(**inputs).logits
        torch.autograd.backward(output.float().sum())
        model.zero_grad(set_to_none=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return step


def group_of(operator: str) -> str:
    name = operator.removeprefix("aten::")
    return next((group for group, parts in GROUPS.items() if any(part in name for part in parts)), "other")


def where_time_goes(step: Callable[[], None], steps: int = 3) -> dict[str, float]:
    """Shares of the operators' own time, by group."""
    with torch.profiler.profile() as profile:
        for _ in range(steps):
            step()
    found: dict[str, float] = {}
    for event in profile.key_averages():
        own = event.self_device_time_total if torch.cuda.is_available() else event.self_cpu_time_total
        found[group_of(event.key)] = found.get(group_of(event.key), 0.0) + own
    whole = sum(found.values())
    return {name: own / whole for name, own in sorted(found.items(), key=lambda item: -item[1])}


def measured(name: str, tokens: int, length: int, mixed: bool, rounds: int, fused: bool) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = container(compose([f"student={name}"]).student.architecture)
    model = models.random_model(shape, Classification(["negative", "positive"])).to(device).train()
    if device.type == "cpu":  # as kd trains it
        draw_bits(model)
        if mixed and fused:
            fuse(model)
    rows = tokens // length
    inputs = {
        "input_ids": torch.randint(1000, shape["vocab_size"], (rows, length), device=device),
        "attention_mask": torch.ones(rows, length, dtype=torch.long, device=device),
    }
    step, dtype = step_of(model, inputs, mixed), torch.bfloat16 if mixed else torch.float32
    step()
    seconds, peaks = [], []
    for _ in range(rounds):
        peaks.append(matmul_peak(shapes_of(model), rows * length, dtype, device, seconds=0.5))
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    flops = (1 + BACKWARD) * work_of(model).forward(np.full(rows, length), rows)
    peak, taken = statistics.median(peaks), statistics.median(seconds)
    return {
        "student": name, "rows": rows, "length": length, "dtype": str(dtype).removeprefix("torch."),
        "ms": taken * 1e3, "gflop": flops / 1e9, "peak_gflops": peak / 1e9, "utilisation": flops / taken / peak,
        "time": where_time_goes(step),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", nargs="+", default=["bert_small", "bert_medium", "bert_base"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--unfused", action="store_true", help="layers as transformers has them")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    found = []
    for name in arguments.students:
        mixed, fused = not arguments.float32, not arguments.unfused
        one = measured(name, arguments.tokens, arguments.length, mixed, arguments.rounds, fused)
        found.append(one)
        print(
            f"{name}, {one['rows']} x {one['length']} tokens, {one['dtype']}, {torch.get_num_threads()} threads: "
            f"{one['utilisation']:.1%} of {one['peak_gflops']:,.0f} GFLOP/s in {one['ms']:.0f} ms"
        )
        print("  " + ", ".join(f"{group} {share:.1%}" for group, share in one["time"].items()), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
