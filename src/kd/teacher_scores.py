"""What a teacher answered on the scored rows, kept by content: the jobs of a sweep score it once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from kd.datamodule import TextDataModule
from kd.encoding import tokenizer_key
from kd.store import content_key
from kd.tasks import Task

FORMAT = 1
OF_FILES = ("_name_or_path", "architectures", "dtype", "transformers_version")  # where a model lay, not what it is


def model_hash(model: Any) -> str:
    """Of everything that determines what a model answers: its class, its configuration, its weights."""
    config = {key: value for key, value in model.config.to_dict().items() if key not in OF_FILES}
    found = hashlib.sha256(f"{type(model).__name__}{sorted(config.items(), key=str)}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def scores_key(weights: str, data: TextDataModule, task: Task, device: torch.device) -> str:
    """Everything that determines the logits of the scored rows, ``weights`` being the model's hash; the student's
    tokenizer too, for units both read.
    """
    return content_key(
        format=FORMAT, weights=weights, data=data.key, task=task.stored() | task.settings(),
        tokenizers={role: tokenizer_key(tokenizer) for role, tokenizer in data.tokenizers.items()},
        device=device.type, torch=torch.__version__, transformers=transformers.__version__,
    )  # fmt: skip


def read(cache: Path, key: str) -> dict[str, Tensor]:
    """The kept logits, by split; none if no run kept them, or if the file is broken, which is said."""
    path = cache / "scores" / f"{key}.safetensors"
    if not path.is_file():
        return {}
    try:
        return load(path.read_bytes())
    except SafetensorError as error:
        print(f"Teacher: {path} cannot be read ({error}); scoring anew.")
        return {}


def keep(cache: Path, key: str, logits: dict[str, Tensor]) -> None:
    """The file appears whole or not at all; runs that do the same at once write the same."""
    path = cache / "scores" / f"{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(save({split: tensor.contiguous() for split, tensor in logits.items()}))
    unfinished.replace(path)
