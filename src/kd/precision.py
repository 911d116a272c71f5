"""``precision=auto``: bf16 where the chip really trains faster with it, float32 elsewhere.

CUDA devices are known by their generation. A CPU is measured, once: a transformer layer of the model's own width,
forward and backward, with the casts that mixed precision brings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from kd.architecture import architecture
from kd.build import trained_on
from kd.machine import once, processor
from kd.store import rank

AUTO = "auto"
FULL, MIXED = "32-true", "bf16-mixed"
GAIN = 1.15  # by which bf16 must be faster to be worth its rounding
ROWS, LENGTH = 16, 32  # of the measured batch
SECONDS = 0.8
KEYS = {"student": "trainer.precision", "teacher": "teacher.fine_tune.precision"}


@dataclass
class Choice:
    precision: str
    why: str


def settle(cfg: DictConfig) -> None:
    """Replaces ``auto`` in the configuration by what it means here, and says so: what is kept names the choice.

    The teacher's is found from its own shape, so that students of any size share one teacher.
    """
    made: dict[str, Choice] = {}
    for role, key in KEYS.items():
        if OmegaConf.select(cfg, key) == AUTO:
            made[role] = choose(architecture(cfg, role), trained_on(cfg), Path(cfg.paths.cache).expanduser())
    for role, choice in made.items():
        OmegaConf.update(cfg, KEYS[role], choice.precision)
        if rank() == 0 and role == "student":
            print(f"Precision: {choice.precision}; {choice.why} ({KEYS[role]}={FULL} or {MIXED} decides otherwise)")
    theirs, ours = (OmegaConf.select(cfg, KEYS[role]) for role in ("teacher", "student"))
    if rank() == 0 and "teacher" in made and theirs != ours:
        print(f"Precision of the teacher's fine-tuning: {theirs}; {made['teacher'].why}")


def choose(shape: dict[str, Any], device: str, cache: Path) -> Choice:
    """The precision for a model of this architecture, and the reason, for people."""
    if device == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
        name = torch.cuda.get_device_name()
        return Choice(MIXED, f"{name} computes in it") if native else Choice(FULL, f"{name} has no bfloat16")
    if device != "cpu":
        return Choice(FULL, f"bfloat16 was not tried on {device}")
    sizes = {name: int(shape[name]) for name in ("hidden_size", "num_attention_heads", "intermediate_size")}
    found = once(
        cache, "precision", lambda: measured(**sizes), **sizes, threads=torch.get_num_threads(), torch=torch.__version__
    )
    ratio = found[FULL] / found[MIXED]
    times = f"{found[MIXED] * 1e3:.1f} ms with bfloat16 and {found[FULL] * 1e3:.1f} ms in float32"
    why = f"a layer {sizes['hidden_size']} wide takes {times}, measured on {processor()}"
    return Choice(MIXED if ratio >= GAIN else FULL, why)


def measured(hidden_size: int, num_attention_heads: int, intermediate_size: int) -> dict[str, float]:
    """Median seconds of a layer's forward and backward pass in each precision, taken in turn."""
    generator = torch.get_rng_state()
    layer = nn.TransformerEncoderLayer(
        hidden_size, num_attention_heads, intermediate_size, activation="gelu", batch_first=True
    )
    states = torch.randn(ROWS, LENGTH, hidden_size, requires_grad=True)
    passes = {name: one_pass(layer, states, name == MIXED) for name in (FULL, MIXED)}
    for go in passes.values():  # the first pass prepares kernels
        go()
    times: dict[str, list[float]] = {name: [] for name in passes}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or not times[MIXED]:
        for name, go in passes.items():
            start = time.perf_counter()
            go()
            times[name].append(time.perf_counter() - start)
    torch.set_rng_state(generator)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def one_pass(layer: nn.Module, states: torch.Tensor, mixed: bool) -> Callable[[], None]:
    def go() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = layer(states)
        output.float().sum().backward()
        layer.zero_grad()

    return go
