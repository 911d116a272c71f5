"""Columns of lists as they lie on the disk: any row's numbers without a Python object for each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kd.batches import Numbers


class Ragged:
    """One column of tokenised rows, each a list of numbers of its own length, read from the memory-mapped file.

    ``lengths`` are those of all rows. A copy in another process opens the file itself.
    """

    def __init__(self, rows: Any, column: str) -> None:
        assert rows._indices is None, "tokenised rows lie in the order in which they are read"
        self.rows, self.column = rows, column
        self.chunks: list[tuple[Numbers, Numbers]] | None = None
        self.lengths = np.concatenate([np.diff(offsets) for offsets, _ in self.opened()] or [np.zeros(0, np.int64)])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"chunks": None}

    def opened(self) -> list[tuple[Numbers, Numbers]]:
        """Of each piece of the file where its rows begin and end, and the values: views, nothing is read yet."""
        if self.chunks is None:
            pieces = self.rows.data.column(self.column).chunks
            self.chunks = [(piece.offsets.to_numpy(), piece.values.to_numpy(zero_copy_only=True)) for piece in pieces]
            self.starts = np.cumsum([0, *(len(offsets) - 1 for offsets, _ in self.chunks)])
        return self.chunks

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Numbers:
        chunks = self.opened()
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        (offsets, values), place = chunks[number], row - self.starts[number]
        found: Numbers = values[offsets[place] : offsets[place + 1]]
        return found

    def __iter__(self) -> Iterator[Numbers]:
        return (self[row] for row in range(len(self)))

    def of(self, rows: Iterable[int]) -> Numbers:
        """The numbers of some rows, one row after the other."""
        return np.concatenate([self[row] for row in rows])


def ragged_columns(rows: Any, names: Iterable[str]) -> dict[str, Ragged]:
    return {name: Ragged(rows, name) for name in names}
