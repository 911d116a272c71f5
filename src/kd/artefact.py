"""What a run leaves and a user loads: directories with weights as safetensors, config, tokenizer and model card."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd import quantization
from kd.architecture import stored_architecture
from kd.errors import UserError
from kd.store import new_directory
from kd.tasks import Classification
from kd.tasks.base import Task

BATCH = 32


@dataclass
class Artefact:
    """A loaded model, float or quantized: ``model`` (a module), ``tokenizer``, ``task``."""

    model: Any
    tokenizer: Any
    task: Task
    max_length: int

    @torch.no_grad()
    def logits(self, texts: Sequence[str]) -> Tensor:
        """``[N, C]`` for N texts; each batch padded to its longest."""
        found = [torch.empty(0, len(self.task.label_names))]
        for start in range(0, len(texts), BATCH):
            encoded = self.tokenizer(
                list(texts[start : start + BATCH]), truncation=True, max_length=self.max_length,
                padding=True, return_tensors="pt",
            )  # fmt: skip
            found.append(self.model(**encoded).logits.float())
        return torch.cat(found)

    def predict(self, texts: str | Sequence[str]) -> list[dict[str, Any]]:
        """One dict a text, as the task describes a prediction: ``label`` and ``probabilities`` by name."""
        return self.task.describe(self.logits([texts] if isinstance(texts, str) else texts))


def save_float(directory: Path, model: Any, tokenizer: Any, max_length: int) -> int:
    """A directory that stock transformers loads. Returns the bytes of the weights file."""
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished)
        return finish(unfinished, tokenizer, max_length)


def save_quantized(
    directory: Path, model: Any, tokenizer: Any, max_length: int, settings: quantization.Settings,
    summary: quantization.Summary,
) -> int:  # fmt: skip
    """A directory that ``kd.load`` loads. Returns the bytes of the weights file."""
    with new_directory(directory) as unfinished:
        quantization.save(model, settings, summary, unfinished)
        return finish(unfinished, tokenizer, max_length)


def finish(directory: Path, tokenizer: Any, max_length: int) -> int:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(directory)
    weights = directory / "model.safetensors"
    weights.chmod(0o644)  # safetensors makes it readable for its owner alone
    return weights.stat().st_size


def load(directory: str | Path) -> Artefact:
    """Opens ``student/`` or ``student-<quant>/`` of a run. Raises UserError if it is neither."""
    directory = Path(directory)
    for name in ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} is no model that kd wrote: there is no {name}. Give a student directory of a run, "
                "such as runs/.../student."
            )
    from transformers import AutoTokenizer

    config = stored_architecture(directory)
    names = [name for _, name in sorted((int(i), name) for i, name in config.get("id2label", {}).items())]
    task = Classification(names or ["LABEL_0", "LABEL_1"])
    quantized = config.get("quantization_config", {}).get("quant_method") == "kd"
    if quantized:
        model = quantization.load(directory, task.auto_class())
    else:
        model, info = task.auto_class().from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if info["missing_keys"]:
            raise UserError(
                f"{directory} holds no trained classifier: {', '.join(sorted(info['missing_keys'])[:3])} missing. Its "
                "answers would be random."
            )
        model.eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    positions = int(config.get("max_position_embeddings", 512))
    return Artefact(model, tokenizer, task, min(int(tokenizer.model_max_length), positions))
