"""Whether a directory holds the model that it says, or that its name says. Reads headers only, and no torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd.architecture import as_conf, shape_fields
from kd.errors import UserError
from kd.library.shape import shape
from kd.library.sizes import parameters, pooler

WEIGHTS = "model.safetensors"
BASES = ("bert.", "roberta.", "distilbert.", "electra.", "model.", "base_model.")
HEADS = re.compile(r"(cls|classifier|pre_classifier|lm_head|vocab_\w+|discriminator_\w+|generator_\w+|head|decoder|"
                   r"qa_outputs|score|output)(\.|$)")  # fmt: skip
NO_WEIGHT = re.compile(r"(.*\.)?(position_ids|token_type_ids|inv_freq)$")  # buffers that older versions saved
LARGEST_HEADER = 100 << 20
WORD_ROWS = re.compile(r"(embeddings\.)?(word_embeddings|tok_embeddings)\.weight$")
LAYER = re.compile(r"(?:layer|layers)\.(\d+)\.")


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file. Raises UserError if it is none, or cut off."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(LARGEST_HEADER, path.stat().st_size):
                raise ValueError("no header of safetensors")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((int(one["data_offsets"][1]) for one in header.values()), default=0)
        if 8 + length + end != path.stat().st_size:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and its header says {8 + length + end:,}")
        return {name: tuple(one["shape"]) for name, one in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({error}): download or copy it again.") from error


def encoder(found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The tensors of the encoder by their names inside it, its pooler and buffers left out."""
    base = next((one for one in BASES if any(name.startswith(one) for name in found)), "")
    inside = {name.removeprefix(base): size for name, size in found.items() if name.startswith(base)}
    return {
        name: size for name, size in inside.items()
        if not HEADS.match(name) and not NO_WEIGHT.match(name) and not name.startswith("pooler.")
    }  # fmt: skip


def check_weights(directory: Path, architecture: Mapping[str, Any]) -> None:
    """Raises UserError if the weights are not those of the architecture, saying where they differ."""
    path = directory / WEIGHTS
    found = encoder(tensors(path))
    words = [size[0] for name, size in found.items() if WORD_ROWS.search(name)]
    if words and words[0] != architecture["vocab_size"]:
        raise UserError(
            f"{path} has embeddings for {words[0]:,} tokens, and vocab_size in config.json is "
            f"{architecture['vocab_size']:,}: take both files from one place."
        )
    layers = {int(at[1]) for at in map(LAYER.search, found) if at}
    if len(layers) != architecture["num_hidden_layers"]:
        raise UserError(
            f"{path} has {len(layers)} layers, and num_hidden_layers in config.json is "
            f"{architecture['num_hidden_layers']}: take both files from one place."
        )
    there, wanted = sum(map(math.prod, found.values())), parameters(architecture) - pooler(architecture)
    if there != wanted:
        raise UserError(
            f"{path} has {there:,} numbers in its encoder, and one of the architecture in config.json has {wanted:,}: "
            f"tensors are missing, too many or of another shape."
        )


def tokenizer_size(directory: Path) -> int | None:
    """How many tokens the tokenizer in a directory knows (its highest id and one); None if there is none."""
    path = directory / "tokenizer.json"
    try:
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            vocab = stored["model"]["vocab"]
            ids = [*vocab.values()] if isinstance(vocab, dict) else [*range(len(vocab))]
            return int(max([*ids, *(token["id"] for token in stored.get("added_tokens", ()))])) + 1
        if (directory / "vocab.txt").is_file():
            path = directory / "vocab.txt"
            return sum(1 for _ in path.open(encoding="utf-8", newline="\n"))
        if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            path = directory / "vocab.json"
            return int(max(json.loads(path.read_text(encoding="utf-8")).values())) + 1
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is broken ({type(error).__name__}: {error}): download or copy it again.") from error
    return None


def check_tokenizer(directory: Path, vocab_size: int) -> None:
    size = tokenizer_size(directory)
    if size is None:
        raise UserError(
            f"{directory} has no tokenizer: copy tokenizer.json, or vocab.txt, or vocab.json and merges.txt into it."
        )
    if size > vocab_size:
        raise UserError(
            f"{directory}: the tokenizer has {size:,} tokens, and vocab_size in config.json is {vocab_size:,}: they "
            "are not of one model. Take the tokenizer that belongs to the weights."
        )


def check_model(directory: Path, expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The architecture of a model directory, once config.json, weights and tokenizer fit each other and ``expected``.

    Raises UserError with the first thing that does not.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory} has no config.json: it is no model directory.")
    found = shape(directory)
    if expected:
        own = as_conf(expected, expected["model_type"])
        keys = [key for key in shape_fields(expected["model_type"]) if key in own and found.get(key) != own[key]]
        if keys:
            theirs, ours = (", ".join(f"{key}={one.get(key)}" for key in keys) for one in (found, own))
            raise UserError(f"{directory} is another model: its config.json has {theirs}, expected is {ours}.")
    if not (directory / WEIGHTS).is_file():
        pickled = (directory / "pytorch_model.bin").is_file()
        fix = f": kd models convert {directory} makes one of pytorch_model.bin" if pickled else ""
        raise UserError(f"{directory} has no {WEIGHTS}{fix}.")
    check_weights(directory, found)
    check_tokenizer(directory, found["vocab_size"])
    return found
