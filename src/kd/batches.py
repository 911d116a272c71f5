"""Which rows make a batch: shuffled and of similar length for training, longest first for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Sampler

POOL = 50  # batches that are sorted by length together: little padding, and still random
STEPS = 8  # lengths from one power of two to the next that are told apart by token budgets: padding is 12 % at most

Numbers = np.ndarray[Any, Any]


@dataclass
class Draw:
    """The rows of one batch, and how many units of each kind the global batch has that it belongs to.

    ``epoch`` is that of a training; None where models are scored.
    """

    rows: Sequence[int]
    totals: dict[str, int]
    epoch: int | None = None


class Batches(Sampler[Draw]):
    """Shuffled batches of rows of similar length, for one rank.

    A global batch (``ranks * batch_size`` rows) is dealt out to the ranks; ``accumulate`` of them make one optimizer
    step, whose totals every batch carries. Every row is drawn once an epoch; the last batches may be smaller. The
    order depends on ``seed`` and epoch alone. ``done`` batches of the epoch are left out, where a training goes on.
    ``counts`` says how many units of further kinds each row has.

    With ``tokens``, a batch has as many rows as make at most so many tokens on a rank, padding included, instead of
    ``batch_size`` rows; rows of about one length are mixed anew in each epoch. Every epoch has as many batches.
    """

    def __init__(
        self, lengths: Numbers, batch_size: int, seed: int, rank: int = 0, ranks: int = 1,
        accumulate: int = 1, counts: Mapping[str, Numbers] | None = None, tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.lengths = lengths
        self.counts = {"tokens": lengths, **(counts or {})}
        self.size = batch_size * ranks
        self.seed = seed
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate
        self.epoch = self.done = 0
        self.ends = None if tokens is None else self.planned(tokens)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.done = 0
        self.epoch = epoch

    def global_batches(self) -> list[Numbers]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        batches: list[Numbers] = []
        if self.ends is not None:
            order = order[np.argsort(-rounded_up(self.lengths[order]), kind="stable")]
            batches = np.split(order, self.ends)
            random.shuffle(batches)
            return batches
        for start in range(0, len(order), self.size * POOL):
            pool = order[start : start + self.size * POOL]
            pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
            batches += [pool[i : i + self.size] for i in range(0, len(pool), self.size)]
        if len(batches[-1]) < self.ranks and len(batches) > 1:  # too few rows for every rank to have one
            batches[-2:] = [np.concatenate(batches[-2:])]
        random.shuffle(batches)
        return batches

    def planned(self, tokens: int) -> list[int]:
        """Where global batches end among the rows, longest first, but for the last; the same in every epoch."""
        lengths = np.minimum(np.sort(rounded_up(self.lengths))[::-1], self.lengths.max())
        assert tokens >= lengths[0], "contradictions.py compares it with data.max_length"
        ends = [0]
        while ends[-1] < len(lengths):
            ends.append(ends[-1] + self.ranks * int(tokens // lengths[ends[-1]]))
        last = len(lengths) - ends[-2]
        return ends[1:-2] if last < self.ranks else ends[1:-1]  # every rank has a row of the last one, too

    def __iter__(self) -> Iterator[Draw]:
        batches = self.global_batches()
        for start in range(self.done, len(batches), self.accumulate):
            step = batches[start : start + self.accumulate]
            rows = np.concatenate(step)
            totals = {name: max(1, int(count[rows].sum())) for name, count in self.counts.items()}
            for batch in step:
                yield Draw(batch[self.rank :: self.ranks].tolist(), {"examples": len(rows), **totals}, self.epoch)

    def __len__(self) -> int:
        if self.ends is not None:
            return len(self.ends) + 1
        full, rest = divmod(len(self.lengths), self.size)
        return full + (rest >= self.ranks or (rest > 0 and full == 0))


def rounded_up(lengths: Numbers) -> Numbers:
    """Lengths to the next of STEPS between two powers of two: rows that are as good as equally long."""
    step = 2 ** np.maximum(0, np.ceil(np.log2(np.maximum(lengths, 1))).astype(int) - int(np.log2(STEPS)) - 1)
    found: Numbers = -(-lengths // step) * step
    return found


class Sorted(Sampler[Draw]):
    """Longest first, each row once: for scoring."""

    def __init__(self, lengths: Numbers, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        order = np.argsort(-lengths, kind="stable")[rank::ranks]
        self.batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(rows, {}) for rows in self.batches)

    def __len__(self) -> int:
        return len(self.batches)
