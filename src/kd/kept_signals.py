"""What a teacher made of the training rows, as files: one for each signal, memory-mapped, read by row numbers.

A file ``cls-6.npy`` has the entries of all rows, one row after the other: one entry a row (``cls/k``), one for each of
its units (``logits``) or of its tokens (the others). ``cls-6.json`` has its size and checksum and is written last:
without it the file does not count. ``attention/k``, as large as the square of a text, is made of query and key again
when it is read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.batches import Numbers
from kd.losses.functional import scaled_products

STORED = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}  # numpy has no bfloat16: its bits
HEADS_FIRST = ("query", "key", "value")  # [B, A, L, d] in a model, [L, A, d] of a row in a file
PIECE = 2**26  # bytes that are read at once for a checksum


def stored_as(signals: Iterable[str]) -> list[str]:
    """The signals that are written for those that are wanted."""
    found: set[str] = set()
    for signal in signals:
        kind, _, layer = signal.partition("/")
        found |= {f"query/{layer}", f"key/{layer}"} if kind == "attention" else {signal}
    return sorted(found)


def completed(kept: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """The wanted signals, float32, of what was stored for them."""
    found = {}
    for signal in wanted:
        kind, _, layer = signal.partition("/")
        made_of = [kept[f"{part}/{layer}"] for part in ("query", "key")] if kind == "attention" else [kept[signal]]
        found[signal] = scaled_products(*made_of) if kind == "attention" else made_of[0].float()
    return found


def entries_of(signal: str, lengths: Numbers, logits: Numbers) -> Numbers:
    """How many entries each row has, of ``lengths`` tokens and ``logits`` compared outputs."""
    if signal == "logits":
        return logits
    return np.ones_like(lengths) if signal.startswith("cls/") else lengths


def of_tokens(signal: str) -> bool:
    return signal != "logits" and not signal.startswith("cls/")


def file_of(directory: Path, signal: str) -> Path:
    return directory / f"{signal.replace('/', '-')}.npy"


def checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            found = zlib.crc32(piece, found)
    return found


def defect(directory: Path, signal: str, read: bool = True) -> str | None:
    """What is wrong with a stored signal, in words; an empty text: it is not there; None: it is whole.

    Without ``read``, by its size alone: one rank of a job reads it for all.
    """
    path = file_of(directory, signal)
    about = path.with_suffix(".json")
    if not about.is_file() or not path.is_file():
        return ""
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        right = said["bytes"], said["crc32"]
    except (ValueError, KeyError, TypeError):
        return f"{about} cannot be read"
    if path.stat().st_size != right[0]:
        return f"{path} has {path.stat().st_size} bytes instead of {right[0]}"
    return (
        None
        if not read or checksum(path) == right[1]
        else f"{path} does not have the checksum that it was written with"
    )


class KeptSignals:
    """Reads ``signals`` of any rows from a directory, in the stored type and the shapes that a model gives them in.

    Args:
        lengths: how many tokens of each row the teacher reads.
        logits: how many of its outputs are compared, for each row.
        dtype: of STORED.
    """

    def __init__(
        self, directory: Path, signals: Sequence[str], lengths: Numbers, logits: Numbers, dtype: str
    ) -> None:  # fmt: skip
        self.directory, self.signals, self.lengths, self.dtype = directory, list(signals), lengths, dtype
        self.counts = {signal: entries_of(signal, lengths, logits) for signal in self.signals}
        self.starts = {signal: np.cumsum([0, *count]) for signal, count in self.counts.items()}
        self.single = {signal: bool((count == 1).all()) for signal, count in self.counts.items()}
        self.maps: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"maps": {}}  # a worker opens the files itself

    def of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        return {signal: self.read(signal, np.asarray(rows)) for signal in self.signals}

    def read(self, signal: str, rows: Numbers) -> Tensor:
        if signal not in self.maps:
            self.maps[signal] = np.load(file_of(self.directory, signal), mmap_mode="r")
        file, starts = self.maps[signal], self.starts[signal]
        if not of_tokens(signal) and self.single[signal]:
            return self.tensor(file[rows])  # one entry a row: all at once
        pieces = [file[starts[row] : starts[row + 1]] for row in rows]
        if not of_tokens(signal):
            return self.tensor(np.concatenate(pieces))
        padded = np.zeros((len(rows), max(map(len, pieces)), *file.shape[1:]), file.dtype)
        for place, piece in zip(padded, pieces, strict=True):
            place[: len(piece)] = piece
        tensor = self.tensor(padded)
        return tensor.transpose(1, 2) if signal.partition("/")[0] in HEADS_FIRST else tensor

    def tensor(self, values: Numbers) -> Tensor:
        found = torch.from_numpy(np.ascontiguousarray(values))
        return found.view(torch.bfloat16) if self.dtype == "bfloat16" else found
