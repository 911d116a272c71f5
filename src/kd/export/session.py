"""An exported model in its own runtime: numbers in, logits out. Torch is not imported, so that a process may measure
the runtime alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kd.errors import UserError
from kd.export.directory import opened_about
from kd.export.target import RUNTIMES

Array = np.ndarray[Any, Any]


class Session(Protocol):
    """``runtime`` and its version for people; ``inputs``: the names of what the model reads."""

    runtime: str
    inputs: Sequence[str]

    def __call__(self, inputs: dict[str, Array]) -> Array:
        """Of int64 arrays ``[B, L]`` by name the float32 logits, ``[B, C]`` or ``[B, L, C]``."""


class OnnxSession:
    def __init__(self, files: Sequence[Path], threads: int | None) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)  # errors; it warns of every initializer that it folds
        options = onnxruntime.SessionOptions()
        # or it would round what int4 layers of a carried grid read to int8, which their model does not
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        self.session = onnxruntime.InferenceSession(str(files[0]), options, providers=["CPUExecutionProvider"])
        self.inputs: Sequence[str] = [one.name for one in self.session.get_inputs()]

    def __call__(self, inputs: dict[str, Array]) -> Array:
        check_inputs(self.inputs, inputs)
        logits: Array = self.session.run(["logits"], inputs)[0]
        return logits


class OpenVinoSession:
    """In float32 where nothing is quantized: bfloat16, its default on some CPUs, is not what was checked."""

    def __init__(self, files: Sequence[Path], threads: int | None) -> None:
        import openvino

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        model = next(path for path in files if path.suffix == ".xml")
        self.runtime = f"openvino {openvino.__version__.split('-')[0]}"
        self.model = openvino.Core().compile_model(model, "CPU", settings)
        self.request = self.model.create_infer_request()
        self.inputs: Sequence[str] = [one.any_name for one in self.model.inputs]

    def __call__(self, inputs: dict[str, Array]) -> Array:
        check_inputs(self.inputs, inputs)
        self.request.infer(inputs, share_inputs=True)
        logits: Array = self.request.get_output_tensor(0).data.copy()
        return logits


class AotiSession:
    """A library that torch compiled; here, and nowhere else, torch is imported. ``threads`` are the process's."""

    def __init__(self, files: Sequence[Path], threads: int | None) -> None:
        import torch

        from kd.export import aoti

        self.torch = torch
        if threads is not None:
            torch.set_num_threads(threads)
        self.runtime = f"torch {torch.__version__.split('+')[0]}"
        self.model, names = aoti.opened(files[0])
        self.inputs: Sequence[str] = names

    def __call__(self, inputs: dict[str, Array]) -> Array:
        check_inputs(self.inputs, inputs)
        with self.torch.no_grad():
            logits = self.model(**{name: self.torch.from_numpy(inputs[name]) for name in self.inputs})
        found: Array = logits.numpy()
        return found


class ExecuTorchSession:
    """More rows than the file has room for are run one part after the other. Its Python bindings come with torch."""

    def __init__(self, files: Sequence[Path], threads: int | None) -> None:
        from importlib.metadata import version

        from kd.export import executorch

        self.runtime = f"executorch {version('executorch')}"
        if threads is not None:
            executorch.set_threads(threads)
        self.method, noted = executorch.opened(files[0])
        self.rows, self.tokens = noted["rows"], noted["tokens"]
        self.inputs: Sequence[str] = ["input_ids", "attention_mask"] + ["token_type_ids"] * noted["token_types"]

    def __call__(self, inputs: dict[str, Array]) -> Array:
        import torch

        check_inputs(self.inputs, inputs)
        given = [torch.from_numpy(inputs[name]) for name in self.inputs]
        if given[0].shape[1] > self.tokens:
            raise UserError(f"This model reads up to {self.tokens} tokens a row, and got {given[0].shape[1]}.")
        parts = zip(*(torch.split(one, self.rows) for one in given), strict=True)
        found = [self.method.execute([one.contiguous() for one in part])[0].numpy().copy() for part in parts]
        return np.concatenate(found)


SESSIONS: dict[str, Callable[[Sequence[Path], int | None], Session]] = {
    "onnxruntime": OnnxSession,
    "openvino": OpenVinoSession,
    "aoti": AotiSession,
    "executorch": ExecuTorchSession,
}


def check_inputs(known: Sequence[str], given: dict[str, Array]) -> None:
    """Raises UserError for inputs that the model does not have, such as token types of a DistilBERT."""
    if set(known) != set(given):
        more = sorted(set(given) - set(known))
        less = sorted(set(known) - set(given))
        said = [f"it does not read {', '.join(more)}: leave it out"] if more else []
        said += [f"{', '.join(less)} is missing"] if less else []
        raise UserError(f"This model reads {', '.join(known)}: {'; '.join(said)}.")


def check_runtime(name: str) -> None:
    """Raises UserError with the ``pip install`` if the runtime is not here."""
    if name not in RUNTIMES:
        raise UserError(f"This export is for the runtime {name!r}, which this kd does not know: update kd.")
    module = RUNTIMES[name].module
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"This export runs in {RUNTIMES[name].title}: pip install '{module}', or 'kd[{RUNTIMES[name].extra}]'"
        )


def open_session(directory: Path, threads: int | None = None) -> Session:
    """The model of an export directory, its checksums compared first; ``threads``: None for the runtime's own choice.

    Raises UserError for a runtime that is not installed, an export that failed its gate, a file that was cut off or
    changed, and one of a newer kd.
    """
    about = opened_about(directory)
    check_runtime(about["target"]["runtime"])
    return started(directory, about["target"]["runtime"], about["model_files"], threads)


def started(directory: Path, runtime: str, names: Sequence[str], threads: int | None = None) -> Session:
    """Without any check, as the gate opens what it has not judged yet."""
    return SESSIONS[runtime]([directory / name for name in names], threads)
