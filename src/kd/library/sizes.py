"""How many numbers a model has learned, computed from its architecture alone.

Counted is what ``AutoModel`` builds: the encoder, with its pooler where the family has one, and no head of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BYTES = 4  # of a float32


def parameters(architecture: Mapping[str, Any]) -> int:
    """Raises KeyError for a family that kd does not know."""
    return COUNTS[architecture["model_type"]](architecture)


def pooler(architecture: Mapping[str, Any]) -> int:
    """Of these, what only pools the first token's state; a checkpoint of a language model often lacks it."""
    return linear(architecture["hidden_size"], architecture["hidden_size"]) if has_pooler(architecture) else 0


def has_pooler(architecture: Mapping[str, Any]) -> bool:
    return architecture["model_type"] in ("bert", "roberta")


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def layers(architecture: Mapping[str, Any]) -> int:
    """Attention, feed-forward and two layer norms, as often as there are layers."""
    width, inner = architecture["hidden_size"], architecture["intermediate_size"]
    norms = 2 * 2 * width
    one = 4 * linear(width, width) + linear(width, inner) + linear(inner, width) + norms
    return int(architecture["num_hidden_layers"] * one)


def embeddings(architecture: Mapping[str, Any], width: int, types: int) -> int:
    rows = architecture["vocab_size"] + architecture["max_position_embeddings"] + types
    return int(rows * width + 2 * width)  # and a layer norm


def embedding_tables(architecture: Mapping[str, Any]) -> int:
    """Of these, the rows of tokens, positions and token types: what quantizing linear layers alone leaves as it is."""
    own = architecture
    width = own.get("embedding_size", 128) if own["model_type"] == "electra" else own["hidden_size"]
    if own["model_type"] == "modernbert":
        return int(own["vocab_size"] * width)
    types = 0 if own["model_type"] == "distilbert" else own.get("type_vocab_size", 2)
    return int((own["vocab_size"] + own["max_position_embeddings"] + types) * width)


def bert(architecture: Mapping[str, Any]) -> int:
    first = embeddings(architecture, architecture["hidden_size"], architecture.get("type_vocab_size", 2))
    return first + layers(architecture) + pooler(architecture)


def distilbert(architecture: Mapping[str, Any]) -> int:
    return embeddings(architecture, architecture["hidden_size"], 0) + layers(architecture)


def electra(architecture: Mapping[str, Any]) -> int:
    width, narrow = architecture["hidden_size"], architecture.get("embedding_size", 128)
    first = embeddings(architecture, narrow, architecture.get("type_vocab_size", 2))
    return first + (linear(narrow, width) if narrow != width else 0) + layers(architecture)


def modernbert(architecture: Mapping[str, Any]) -> int:
    """No biases, rotary positions, a gate beside the feed-forward's input; its first layer has no norm before it."""
    width, inner, count = (architecture[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    layer = 4 * width * width + 3 * width * inner + 2 * width
    return int((architecture["vocab_size"] + 1) * width + count * layer - width + width)


COUNTS = {"bert": bert, "roberta": bert, "distilbert": distilbert, "electra": electra, "modernbert": modernbert}
