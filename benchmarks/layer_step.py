"""Forward and backward of a student with fused layers against transformers' own, by length; asserts nothing.

    python benchmarks/layer_step.py [--student bert_mini] [--rows 32] [--lengths 4 8 12 16 24 40] [--rounds 30]

Random weights and tokens, bf16 autocast, dropout of both drawn as kd draws it. Both take turns; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from kd.noise import silence

silence()

import torch  # noqa: E402

from kd import models  # noqa: E402
from kd.architecture import container  # noqa: E402
from kd.command_line import compose  # noqa: E402
from kd.fast_dropout import draw_bits  # noqa: E402
from kd.fused_layers import fuse, reads_first_alone  # noqa: E402
from kd.table import markdown_table  # noqa: E402
from kd.tasks import Classification  # noqa: E402

WARM_UP = 5


def step(model: Any, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds of the forward and of the backward pass."""
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().square().sum()
    middle = time.perf_counter()
    loss.backward()
    end = time.perf_counter()
    model.zero_grad(set_to_none=True)
    return middle - begin, end - middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="bert_mini")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 12, 16, 24, 40])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    shape = container(compose([f"student={arguments.student}"]).student.architecture)
    models_of: dict[str, Any] = {}
    for name in ("transformers", "fused"):
        torch.manual_seed(0)
        models_of[name] = model = models.random_model(shape, Classification(["negative", "positive"])).train()
        model.get_input_embeddings().weight.requires_grad_(False)
        draw_bits(model)
    fuse(models_of["fused"], reads_first_alone(models_of["fused"], {"logits": None}))  # as a training with logits does
    rows = []
    for length in arguments.lengths:
        ids = torch.randint(1000, shape["vocab_size"], (arguments.rows, length))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in models_of}
        for _ in range(arguments.rounds + WARM_UP):
            for name, model in models_of.items():
                times[name].append(step(model, ids))
        parts = [statistics.median(each[i] for each in times[name][WARM_UP:]) for name in models_of for i in (0, 1)]
        plain, fused = sum(parts[:2]), sum(parts[2:])
        rows.append([str(length), *(f"{1e3 * part:.1f}" for part in parts), f"{fused / plain:.2f}"])
    print(f"{arguments.student}, {arguments.rows} rows, {torch.get_num_threads()} threads, frozen word embeddings; ms")
    names = [f"{name}, {way}" for name in models_of for way in ("forward", "backward")]
    print(markdown_table(["tokens", *names, "fused takes"], rows, left=0))


if __name__ == "__main__":
    main()
