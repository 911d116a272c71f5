"""From an artefact of a run to an export directory that was held against it."""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.export.card import card
from kd.export.directory import FAILED, files_of, write_about
from kd.export.gate import Gate, misses
from kd.export.session import started
from kd.export.session_model import SessionModel
from kd.export.source import Source
from kd.export.target import RUNTIMES, Target, missing
from kd.store import ABOUT, file_hash, new_directory, said_about, write_text
from kd.tasks import Decision, Task

WRITERS = {  # modules with ``write``
    "onnxruntime": "kd.export.onnx",
    "openvino": "kd.export.openvino",
    "aoti": "kd.export.aoti",
    "executorch": "kd.export.executorch",
}
STAY = ("model.safetensors", "config.json", "README.md", "export.json", ABOUT)  # of the source; all else travels


@dataclass(frozen=True)
class Exported:
    """``figures`` of the gate; ``reasons`` why it did not pass, if it did not. ``weights_bytes``: all model files."""

    name: str
    directory: Path
    weights_bytes: int
    passed: bool
    figures: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)


class Exporter:
    """Exports of one artefact of a run.

    Args:
        directory: the artefact, such as ``RUN/student``.
        rows: the run's data in the artefact's encoding (role ``student``): validation for the gate, training rows to
            calibrate with.
        task: the run's; the artefact's own if None.
        labels: what validation is scored against; None for its labels or, where there are none, what the
            artefact gives.
    """

    def __init__(
        self, directory: Path, rows: TextDataModule, task: Task | None = None, labels: Tensor | None = None
    ) -> None:
        self.source = Source.of(directory, rows)
        self.task = task or self.source.artefact.task
        self.labels = labels

    @cached_property
    def gate(self) -> Gate:
        return Gate(self.source.artefact.model, self.source.rows, self.task, self.labels)

    def name(self, target: Target) -> str:
        """The directory's: the target's, and the model's where a quantized one goes there on its own grid."""
        return f"{target.name}-of-{self.source.directory.name}" if self.source.quantized else target.name

    def export(self, target: Target, output: Path) -> Exported:
        """Writes ``output/NAME/``. Raises UserError for a target that is not installed, or not for this artefact."""
        lacks = missing(target)
        if lacks:
            raise UserError(lacks)
        if self.source.quantized and target.scheme != "float32":
            raise UserError(
                f"{self.source.directory} is quantized already, and export={target.name} would quantize it again: "
                "export the float student there, or this one, on its own grid, to onnx or openvino."
            )
        if target.group_size is not None:
            self.check_groups(target, target.group_size)
        name = self.name(target)
        with new_directory(output / name) as unfinished:
            files = importlib.import_module(WRITERS[target.runtime]).write(self.source, target, unfinished)
            found = self.finish(name, target, files, unfinished)
        return Exported(name, output / name, *found)

    def check_groups(self, target: Target, group: int) -> None:
        """Raises UserError for a linear layer that the target's groups do not divide."""
        named = self.source.artefact.model.named_modules()
        widths = {name: layer.in_features for name, layer in named if isinstance(layer, nn.Linear)}
        for name, width in widths.items():
            if width % group:
                raise UserError(
                    f"export.{target.name}.group_size={group} does not divide {width}, the width of the student's "
                    f"{name}. {target.fix(widths.values())}"
                )

    def finish(
        self, name: str, target: Target, files: list[str], directory: Path
    ) -> tuple[int, bool, dict[str, float], list[str]]:
        """What goes with the model, and the gate."""
        session = started(directory, target.runtime, files, torch.get_num_threads())
        figures, decision = self.gate.figures(SessionModel(session, self.source.artefact.model.config))
        reasons = misses(figures, target.gate_limits(self.source.quantized))
        self.add_rest(directory, decision)
        size = sum((directory / file).stat().st_size for file in files)
        weights = self.source.directory / "model.safetensors"
        about = {
            "name": name, "target": described(target), "runtime": session.runtime, "versions": versions(target),
            "inputs": list(self.source.inputs), "max_length": self.source.artefact.max_length,
            "model_files": files, "weights_bytes": size, "passed": not reasons, "reasons": reasons, "figures": figures,
            "source": {"directory": self.source.directory.name, "sha256": file_hash(weights)},
        }  # fmt: skip
        write_text(directory / "README.md", card(about, self.source.artefact, self.task, decision))
        if reasons:
            for file in files:
                (directory / file).rename(directory / (file + FAILED))
        kept = [path.name for path in directory.iterdir() if path.name != "README.md"]
        write_about(directory, about | {"files": files_of(directory, kept)})
        return size, not reasons, figures, reasons

    def add_rest(self, directory: Path, decision: Decision) -> None:
        """Tokenizer, config.json, and kd.json with the decision that suits this export's own logits."""
        for path in self.source.directory.iterdir():
            if path.is_file() and path.name not in STAY:
                shutil.copyfile(path, directory / path.name)
        config = copy.deepcopy(self.source.artefact.model.config)
        for name in ("quantization_config", "kd_quantization"):  # of the source's file, which is not here
            if hasattr(config, name):
                delattr(config, name)
        config.to_json_file(directory / "config.json")
        about = said_about(self.source.directory)
        about.pop("sha256", None)  # of the source's files; export.json has those of these
        about |= {"task": self.task.stored(), "decision": dict(decision)}
        write_text(directory / ABOUT, json.dumps(about | {"max_length": self.source.artefact.max_length}))


def described(target: Target) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(target).items()}


def versions(target: Target) -> Mapping[str, str]:
    """Of what wrote the file."""
    return {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", *RUNTIMES[target.runtime].modules)
    }
