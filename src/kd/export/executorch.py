"""ExecuTorch: a file for phones and other small machines, its matrix products in XNNPACK."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from kd.errors import UserError
from kd.export.source import Source
from kd.export.target import Target

FILE = "model.pte"
ROWS = 8  # at most in one call: memory for the largest call is laid out beforehand


def write(source: Source, target: Target, directory: Path) -> list[str]:
    """Writes the model's file, for up to ROWS rows of up to the model's length. Returns its name.

    Raises UserError for a quantized artefact.
    """
    if source.quantized:
        raise UserError(
            f"export={target.name} takes float students, and {source.directory} is quantized: XNNPACK cannot lower its "
            "embeddings. Export the student that it was made from, or this one to aoti."
        )
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    longest = source.artefact.max_length
    example = tuple(torch.ones(2, min(7, longest), dtype=torch.long) for _ in source.inputs)  # one tensor: one input
    shape = {0: torch.export.Dim("batch", max=ROWS), 1: torch.export.Dim("length", min=2, max=longest)}
    said = {"rows": ROWS, "tokens": longest, "token_types": int("token_type_ids" in source.inputs)}
    with torch.no_grad(), quiet():
        program = torch.export.export(source.module, example, dynamic_shapes=(shape,) * len(source.inputs))
        lowered = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods=said
        ).to_executorch()
    (directory / FILE).write_bytes(lowered.buffer)
    return [FILE]


def opened(path: Path) -> tuple[Any, dict[str, int]]:
    """The method that runs, and what ``write`` noted: ``rows`` and ``tokens`` at most, ``token_types`` 1 or 0."""
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    noted = {name: int(program.load_method(name).execute([])[0]) for name in ("rows", "tokens", "token_types")}
    return program.load_method("forward"), noted


def set_threads(count: int) -> None:
    """Of the whole process: XNNPACK has one pool."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(count)


@contextlib.contextmanager
def quiet() -> Any:
    """Lowering tells of everything it tries."""
    logger = logging.getLogger("executorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
