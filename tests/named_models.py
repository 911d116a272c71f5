"""Model directories as a hub has them, with weights of zeros, made without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kd.library.catalogue import Model, models

SMALL = {
    "model_type": "bert", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32,
    "vocab_size": 66, "max_position_embeddings": 24, "type_vocab_size": 2,
}  # fmt: skip


def bert_shapes(own: Mapping[str, Any], old_names: bool = False) -> dict[str, tuple[int, ...]]:
    """What BertModel has, written down from the paper: three embeddings, six linear maps and two norms a layer."""
    width, inner = own["hidden_size"], own["intermediate_size"]
    gain, shift = ("gamma", "beta") if old_names else ("weight", "bias")
    found: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        found.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str) -> None:
        found.update({f"{name}.LayerNorm.{gain}": (width,), f"{name}.LayerNorm.{shift}": (width,)})

    for name, rows in (("word", "vocab_size"), ("position", "max_position_embeddings"), ("token_type", "")):
        found[f"bert.embeddings.{name}_embeddings.weight"] = (own[rows] if rows else 2, width)
    norm("bert.embeddings")
    for i in range(own["num_hidden_layers"]):
        layer = f"bert.encoder.layer.{i}"
        for part in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        linear(f"{layer}.intermediate.dense", width, inner)
        linear(f"{layer}.output.dense", inner, width)
        norm(f"{layer}.attention.output")
        norm(f"{layer}.output")
    linear("bert.pooler.dense", width, width)
    return found


def put_bert(directory: Path, own: Mapping[str, Any] = SMALL, words: int | None = None, **config: Any) -> Path:
    """A BERT of zeros; ``words`` in vocab.txt, as many as the model has unless told otherwise."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.zeros(size, np.float32) for name, size in bert_shapes(own).items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps({"architectures": ["BertModel"], **own, **config}))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    count = own["vocab_size"] if words is None else words
    (directory / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(count - 5))]) + "\n")
    return directory


def named(name: str, store: Path) -> Model:
    return next(model for model in models(store) if model.name == name)
