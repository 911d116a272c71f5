"""Texts to batches: each model's own encoding, padded to the longest of the batch, and what is asked about the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.batches import Batches, Draw, Numbers, Sorted
from kd.encoding import NOT_INPUTS, encode, padded, tokenizer_key
from kd.errors import UserError
from kd.halving import Split
from kd.kept_signals import KeptSignals
from kd.ragged import Ragged, ragged_columns
from kd.sources import TextData
from kd.store import content_key
from kd.units import RowUnits, Units

LIMIT_SEED = 0  # of data.limit's subset: the same rows whatever the run's seed, so that runs share a teacher
SHOWN = 60  # letters of a text in a message
PAIR_LENGTH = 6  # [CLS], a word, two separators (RoBERTa has three), a word
MakeUnits = Callable[[Mapping[str, Any], Mapping[str, Any], int], Units]


class Rows(Dataset[dict[str, Any]]):
    """Batches by row numbers: the encoding of each role, padded, and the labels of the rows' ``units``.

    ``kept``: what the teacher made of these rows, if it was computed before; then nothing is encoded for it.
    """

    def __init__(self, encodings: dict[str, Any], pads: dict[str, int], units: Units) -> None:
        made: dict[int, dict[str, Ragged]] = {}  # teacher and student may share one encoding
        for rows in encodings.values():
            names = [name for name in rows.column_names if name not in NOT_INPUTS]
            made.setdefault(id(rows), ragged_columns(rows, names))
        self.columns = {role: made[id(rows)] for role, rows in encodings.items()}
        self.pads = pads
        self.units = units
        self.kept: KeptSignals | None = None

    @property
    def lengths(self) -> Numbers:
        """The student's, whose tokens are the unit of token means."""
        return self.lengths_of("student")

    def lengths_of(self, role: str) -> Numbers:
        return self.columns[role]["input_ids"].lengths

    @property
    def labels(self) -> Tensor:
        """Of all units, in the order of the rows, as scoring sees them."""
        return self.units.labels

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        made: dict[int, dict[str, Tensor]] = {}
        batch: dict[str, Any] = {}
        for role, columns in self.columns.items():
            if role == "teacher" and self.kept is not None:
                continue
            if id(columns) not in made:
                made[id(columns)] = self.padded(role, draw.rows)
            batch[role] = made[id(columns)]
        batch |= {"rows": torch.tensor(draw.rows), "totals": draw.totals}
        if self.kept is not None:
            batch["signals"] = self.kept.of(draw.rows)
        self.units.label(batch, draw)
        return batch

    def padded(self, role: str, rows: Sequence[int]) -> dict[str, Tensor]:
        """What a role's model is given of some rows."""
        columns = self.columns[role]
        numbers = {name: column.of(rows) for name, column in columns.items()}
        return padded(columns["input_ids"].lengths[rows], numbers, self.pads[role])


class TextDataModule(L.LightningDataModule):
    """Batches for training and scoring; each role (``student``, ``teacher``) sees its own tokenizer's encoding.

    Args:
        max_length: tokens a row, of all roles or of each. Longer rows are cut and counted, or refused by ``truncate``.
        units: from the encodings and tokenizers of the roles and a seed to what has labels; a row, unless a task says
            otherwise.
        tokens_per_batch: of the student, padding included, in a training batch of one device, instead of
            ``batch_size`` rows.
    """

    def __init__(
        self, data: TextData, tokenizers: dict[str, Any], cache: Path, batch_size: int = 32,
        max_length: int | Mapping[str, int] = 128, limit: int | None = None, num_workers: int = 0, seed: int = 0,
        units: MakeUnits = RowUnits, truncate: bool = True, tokens_per_batch: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        lengths = {role: max_length if isinstance(max_length, int) else max_length[role] for role in tokenizers}
        if len(data.text_columns) == 2 and min(lengths.values()) < PAIR_LENGTH:
            raise UserError(f"data.max_length={min(lengths.values())}: a pair takes {PAIR_LENGTH} tokens or more.")
        self.data = data
        self.tokenizers, self.lengths = tokenizers, lengths
        self.cache = cache
        self.batch_size, self.tokens_per_batch = batch_size, tokens_per_batch
        self.parts = 1  # of a batch that go through the models one after the other; the trainer accumulates them
        self.num_workers = num_workers
        self.seed = seed
        self.make_units, self.truncate = units, truncate
        several = len({*lengths.values()}) > 1
        self.key = content_key(data=data.key, limit=limit, max_length=lengths if several else lengths["student"])
        self.splits: dict[str, Rows] = {}
        for split, rows in data.splits.items():
            key = f"{data.key}-{split}"
            if split == "train" and limit is not None and limit < len(rows):
                rows = rows.shuffle(seed=LIMIT_SEED).select(range(limit))
                key += f"-{limit}"
            if len(rows) == 0:
                raise UserError(f"data={data.name}: the {split} split has no rows.")
            self.splits[split] = self.encoded(rows, key, split)

    def encoded(self, rows: Any, key: str, split: str) -> Rows:
        made: dict[tuple[str, int], Any] = {}
        encodings = {}
        for role, tokenizer in self.tokenizers.items():
            name = tokenizer_key(tokenizer), self.lengths[role]
            if name not in made:
                made[name] = encode(rows, key, tokenizer, name[1], self.cache, f"{self.data.name} {split}")
                self.say_cut(made[name]["cut"][:], rows, name[1], split)
            encodings[role] = made[name]
        pads = {role: tokenizer.pad_token_id for role, tokenizer in self.tokenizers.items()}
        units = self.make_units(encodings, self.tokenizers, self.seed)
        if units.unread:
            print(f"{split}: {units.unread} words are not read, cut off or without a token: they are not scored.")
        return Rows(encodings, pads, units)

    def say_cut(self, cut: list[bool], rows: Any, max_length: int, split: str) -> None:
        """Counts the rows that lost their end. Raises UserError if none may."""
        count = sum(cut)
        if not count:
            return
        what = "pairs" if len(self.data.text_columns) == 2 else "texts"
        text = f"{split}: {count} of {len(cut)} {what} are longer than {max_length} tokens"
        if not self.truncate:
            row = rows[cut.index(True)]
            begins = (" ".join(row["tokens"]) if "tokens" in row else row["text"])[:SHOWN]
            raise UserError(
                f"{text}, one of them begins {begins!r}, and data.truncation=error allows none. Raise "
                "data.max_length as far as the models have positions, shorten them, or data.truncation=cut."
            )
        print(f"{text} and were cut.")

    def loader(self, split: str, sampler: Sampler[Draw]) -> DataLoader[Any]:
        # batch_size=None: the sampler draws whole batches and Rows pads them
        return DataLoader(
            self.splits[split], sampler=sampler, batch_size=None, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0, pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or opening it would draw from the generator of dropout
        )  # fmt: skip

    def batches(self, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> Batches:
        rows = self.splits["train"]
        return Batches(
            rows.lengths, self.batch_size, self.seed, rank, ranks, accumulate, rows.units.counts, self.tokens_per_batch
        )  # fmt: skip

    @property
    def most_rows(self) -> int:
        """Of a training batch of one device."""
        return self.batch_size if self.tokens_per_batch is None else max(len(draw.rows) for draw in self.batches())

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        accumulate = trainer.accumulate_grad_batches // self.parts
        batches = self.batches(trainer.global_rank, trainer.world_size, accumulate)
        progress = trainer.fit_loop.epoch_loop.batch_progress.current  # above 0 where a training goes on
        batches.epoch, batches.done = trainer.current_epoch, progress.ready // self.parts
        return self.loader("train", Split(batches, self.parts))

    def enough(self, count: int, key: str) -> None:
        """Raises UserError if there are fewer training rows to calibrate with than the setting ``key`` says."""
        there = len(self.splits["train"])
        if count > there:
            raise UserError(
                f"{key}={count}: data={self.data.name} has {there} training rows. Ask for as many or fewer."
            )

    def calibration_batches(self, count: int, key: str = "quant.calibration_rows") -> Iterator[dict[str, Tensor]]:
        """The student's inputs of ``count`` training rows, the same ones every time, each batch of rows of one length.

        So none is padded: what stands in the place of padding would set ranges too. Raises UserError if there are
        fewer rows.
        """
        self.enough(count, key)
        drawn = np.random.default_rng(LIMIT_SEED).permutation(len(self.splits["train"]))[:count]
        return self.of_one_length(drawn)

    def of_one_length(self, drawn: Numbers) -> Iterator[dict[str, Tensor]]:
        train = self.splits["train"]
        for length in np.unique(train.lengths[drawn]):
            rows = drawn[train.lengths[drawn] == length].tolist()
            for start in range(0, len(rows), self.batch_size):
                batch = train[Draw(rows[start : start + self.batch_size], {})]["student"]
                yield {name: tensor for name, tensor in batch.items() if name != "places"}

    def val_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        return self.score_loader("validation", trainer.global_rank, trainer.world_size)

    def score_loader(self, split: str, rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
        size = max(1, 2 * self.batch_size // self.parts)
        return self.loader(split, Sorted(self.splits[split].lengths, size, rank, ranks))
