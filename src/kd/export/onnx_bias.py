"""What rounding adds to every answer alike, taken off the logits again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

from kd.export.onnx import save
from kd.export.source import Source

OUTPUT = "logits"


@torch.no_grad()
def correct(path: Path, source: Source, count: int | None) -> None:
    """Has the file give, on average over ``count`` training rows, the logits that the float model gives.

    A quantized model's outputs are off by an error with a mean (Nagel et al. 2019, https://arxiv.org/abs/1906.04721,
    section 4.2, where the biases of all layers are corrected); here the last is corrected, by its mean.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    total, answers = np.zeros(()), 0
    for batch in source.calibration(count):
        given = session.run([OUTPUT], batch)[0]
        wanted = source.module(**{name: torch.as_tensor(ids) for name, ids in batch.items()}).numpy()
        total = total + (given.astype(np.float64) - wanted).reshape(-1, given.shape[-1]).sum(0)
        answers += given.size // given.shape[-1]
    subtract(path, (total / answers).astype(np.float32))


def subtract(path: Path, shift: np.ndarray[Any, Any]) -> None:
    """Takes ``shift`` ``[C]`` off the file's logits ``[..., C]``."""
    proto = onnx.load(path)
    before, taken = (f"{OUTPUT}.{what}.{len(proto.graph.node)}" for what in ("shifted", "shift"))
    for node in proto.graph.node:
        node.output[:] = [before if name == OUTPUT else name for name in node.output]
        node.input[:] = [before if name == OUTPUT else name for name in node.input]
    proto.graph.initializer.append(numpy_helper.from_array(shift, taken))
    proto.graph.node.append(helper.make_node("Sub", [before, taken], [OUTPUT], f"{taken}.off"))
    save(proto, path)
