"""Texts to tokens: once, kept on disk; and to padded tensors."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd.store import content_key, locked

FORMAT = 1  # of the tokenised files; part of their key
LONG = 20_000  # rows whose tokenising is worth a progress bar
NOT_INPUTS = ("label", "cut", "places")
NO_TOKEN = -1  # the place of a word that was cut off, or of which the tokenizer leaves nothing


def tokenizer_key(tokenizer: Any, inputs: bool = True) -> str:
    """Equal for two tokenizers that encode alike; without ``inputs``, for two that give the same tokens.

    A BERT's tokenizer gives token types too, a DistilBERT's does not.
    """
    special = json.dumps(tokenizer.special_tokens_map, default=str)
    return stated_key(
        tokenizer.backend_tokenizer.to_str(), special, tuple(tokenizer.model_input_names if inputs else ())
    )


@functools.lru_cache(maxsize=8)
def stated_key(backend: str, special: str, inputs: tuple[str, ...]) -> str:
    """The key of a tokenizer written out, which takes 50 ms; a run asks twenty times."""
    stated = json.loads(backend)
    del stated["truncation"], stated["padding"]  # the state its last call left behind
    more = {"inputs": inputs} if inputs else {}
    return content_key(backend=stated, special=json.loads(special), **more)


class Encode:
    """What ``datasets.map`` runs: texts, or pairs, to token ids cut at ``max_length``, and whether each was cut.

    Of a pair the longer text is cut first. Words (``tokens``) are read as the text they make with blanks between them,
    as any user of the model will hand it over; ``places`` is where each word's first token stands, or NO_TOKEN.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        words = rows.get("tokens")
        encoded = self.tokenizer(
            rows["text"] if words is None else [" ".join(row) for row in words], rows.get("text_pair"),
            truncation=True, max_length=self.max_length, return_attention_mask=False,
        )  # fmt: skip
        columns = dict(encoded)
        columns["cut"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        if words is not None:
            columns["places"] = [first_tokens(*one) for one in zip(encoded.encodings, words, strict=True)]
        return columns


def first_tokens(encoding: Any, words: Sequence[str]) -> list[int]:
    """Where the first token of each word stands that was read from ``" ".join(words)``."""
    places, start = [], 0
    for word in words:
        found = (encoding.char_to_token(start + i) for i in range(len(word)))  # some letters give no token
        places.append(next((place for place in found if place is not None), NO_TOKEN))
        start += len(word) + 1
    return places


def encode(rows: Any, key: str, tokenizer: Any, max_length: int, cache: Path, name: str) -> Any:
    """The tokenised rows, from the cache if they are there. A broken cache file is named and made anew."""
    from datasets import disable_progress_bars, enable_progress_bars  # 0.6 s that reading an artefact does not need

    key = content_key(data=key, tokenizer=tokenizer_key(tokenizer), max_length=max_length, format=FORMAT)
    path = cache / "tokens" / f"{key}.arrow"
    texts = [name for name in rows.column_names if name != "label"]
    arguments = {
        "batched": True, "remove_columns": texts, "new_fingerprint": key, "cache_file_name": str(path),
        "desc": f"Tokenising {name}",
    }  # fmt: skip
    (disable_progress_bars if len(rows) < LONG else enable_progress_bars)()
    with locked(path):
        try:
            return rows.map(Encode(tokenizer, max_length), **arguments)
        except (OSError, ValueError) as error:
            if not path.exists():
                raise
            print(f"{path} cannot be read ({type(error).__name__}); tokenising anew.")
            path.unlink()
            return rows.map(Encode(tokenizer, max_length), **arguments)


def pad(columns: dict[str, list[Any]], pad_id: int) -> dict[str, Tensor]:
    """Token columns as tensors ``[B, L]``, L the longest row, with the attention mask."""
    inputs = {name: rows for name, rows in columns.items() if name not in NOT_INPUTS}
    lengths = [len(ids) for ids in columns["input_ids"]]
    return padded(lengths, {name: [value for row in rows for value in row] for name, rows in inputs.items()}, pad_id)


def padded(lengths: Any, columns: Mapping[str, Any], pad_id: int) -> dict[str, Tensor]:
    """The same of ``columns`` that have the numbers of all rows, one row of such a length after the other."""
    ends = torch.as_tensor(lengths)
    mask = torch.arange(int(ends.max())) < ends[:, None]
    made = {}
    for name, numbers in columns.items():
        tensor = torch.full(mask.shape, pad_id if name == "input_ids" else 0)
        tensor[mask] = torch.as_tensor(numbers).long()
        made[name] = tensor
    return made | {"attention_mask": mask.long()}
