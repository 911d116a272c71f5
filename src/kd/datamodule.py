"""Texts to batches: tokenised once and kept on disk, grouped by length, padded to the longest of the batch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from datasets import disable_progress_bars, enable_progress_bars
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from kd.errors import UserError
from kd.sources import TextData
from kd.store import content_key, locked

FORMAT = 1  # of the tokenised files; part of their key
LIMIT_SEED = 0  # of data.limit's subset: the same rows whatever the run's seed, so that runs share a teacher
LONG = 20_000  # rows whose tokenising is worth a progress bar
PAIR_LENGTH = 6  # [CLS], a word, two separators (RoBERTa has three), a word
POOL = 50  # batches that are sorted by length together: little padding, and still random


def tokenizer_key(tokenizer: Any, inputs: bool = True) -> str:
    """Equal for two tokenizers that encode alike; without ``inputs``, for two that give the same tokens.

    A BERT's tokenizer gives token types too, a DistilBERT's does not.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    del backend["truncation"], backend["padding"]  # the state its last call left behind
    more = {"inputs": tokenizer.model_input_names} if inputs else {}
    return content_key(backend=backend, special=tokenizer.special_tokens_map, **more)


class Encode:
    """What ``datasets.map`` runs: texts, or pairs, to token ids cut at ``max_length``, and whether each was cut.

    Of a pair the longer text is cut first.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = self.tokenizer(
            rows["text"], rows.get("text_pair"), truncation=True, max_length=self.max_length,
            return_attention_mask=False,
        )  # fmt: skip
        columns = dict(encoded)
        columns["cut"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        return columns


def encode(rows: Any, key: str, tokenizer: Any, max_length: int, cache: Path, name: str) -> Any:
    """The tokenised rows, from the cache if they are there. A broken cache file is named and made anew."""
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


@dataclass
class Draw:
    """The rows of one batch, and how many examples and tokens the global batch has that it belongs to."""

    rows: Sequence[int]
    totals: dict[str, int]


class Batches(Sampler[Draw]):
    """Shuffled batches of rows of similar length, for one rank.

    A global batch (``ranks * batch_size`` rows) is dealt out to the ranks; ``accumulate`` of them make one optimizer
    step, whose totals every batch carries. Every row is drawn once an epoch; the last batches may be smaller. The
    order depends on ``seed`` and epoch alone. ``done`` batches of the epoch are left out, where a training goes on.
    """

    def __init__(
        self, lengths: np.ndarray[Any, Any], batch_size: int, seed: int, rank: int = 0, ranks: int = 1,
        accumulate: int = 1,
    ) -> None:  # fmt: skip
        self.lengths = lengths
        self.size = batch_size * ranks
        self.seed = seed
        self.rank, self.ranks, self.accumulate = rank, ranks, accumulate
        self.epoch = self.done = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.done = 0
        self.epoch = epoch

    def global_batches(self) -> list[np.ndarray[Any, Any]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(len(self.lengths))
        batches: list[np.ndarray[Any, Any]] = []
        for start in range(0, len(order), self.size * POOL):
            pool = order[start : start + self.size * POOL]
            pool = pool[np.argsort(-self.lengths[pool], kind="stable")]
            batches += [pool[i : i + self.size] for i in range(0, len(pool), self.size)]
        if len(batches[-1]) < self.ranks and len(batches) > 1:  # too few rows for every rank to have one
            batches[-2:] = [np.concatenate(batches[-2:])]
        random.shuffle(batches)
        return batches

    def __iter__(self) -> Iterator[Draw]:
        batches = self.global_batches()
        for start in range(self.done, len(batches), self.accumulate):
            step = batches[start : start + self.accumulate]
            rows = np.concatenate(step)
            totals = {"examples": len(rows), "tokens": int(self.lengths[rows].sum())}
            for batch in step:
                yield Draw(batch[self.rank :: self.ranks].tolist(), totals)

    def __len__(self) -> int:
        full, rest = divmod(len(self.lengths), self.size)
        return full + (rest >= self.ranks or (rest > 0 and full == 0))


class Sorted(Sampler[Draw]):
    """Longest first, each row once: for scoring."""

    def __init__(self, lengths: np.ndarray[Any, Any], batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        order = np.argsort(-lengths, kind="stable")[rank::ranks]
        self.batches = [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]

    def __iter__(self) -> Iterator[Draw]:
        return (Draw(rows, {}) for rows in self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Rows(Dataset[dict[str, Any]]):
    """Batches by row numbers: each model's own encoding, padded, and the labels."""

    def __init__(self, encodings: dict[str, Any], pads: dict[str, int]) -> None:
        self.encodings = encodings
        self.pads = pads
        first = encodings["student"]  # whose tokens are the unit of token means
        self.lengths = np.array([len(ids) for ids in first["input_ids"]])
        self.labels = torch.tensor(first["label"] if "label" in first.column_names else [0] * len(self.lengths))

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        made: dict[int, dict[str, Tensor]] = {}
        batch: dict[str, Any] = {}
        for role, encoding in self.encodings.items():
            if id(encoding) not in made:  # teacher and student share one encoding
                made[id(encoding)] = pad(encoding[draw.rows], self.pads[role])
            batch[role] = made[id(encoding)]
        return batch | {
            "labels": self.labels[draw.rows],
            "rows": torch.tensor(draw.rows),
            "totals": draw.totals,
        }


def pad(columns: dict[str, list[Any]], pad_id: int) -> dict[str, Tensor]:
    """Token columns as tensors ``[B, L]``, L the longest row, with the attention mask."""
    lengths = torch.tensor([len(ids) for ids in columns["input_ids"]])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    padded = {}
    for name, rows in columns.items():
        if name in ("label", "cut"):
            continue
        tensor = torch.full(mask.shape, pad_id if name == "input_ids" else 0)
        tensor[mask] = torch.tensor([value for row in rows for value in row])
        padded[name] = tensor
    return padded | {"attention_mask": mask.long()}


class TextDataModule(L.LightningDataModule):
    """Batches for training and scoring; each role (``student``, ``teacher``) sees its own tokenizer's encoding."""

    def __init__(
        self, data: TextData, tokenizers: dict[str, Any], cache: Path, batch_size: int = 32, max_length: int = 128,
        limit: int | None = None, num_workers: int = 0, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(data.text_columns) == 2 and max_length < PAIR_LENGTH:
            raise UserError(f"data.max_length={max_length}: a pair takes {PAIR_LENGTH} tokens or more.")
        self.data = data
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.key = content_key(data=data.key, limit=limit, max_length=max_length)
        self.splits: dict[str, Rows] = {}
        for split, rows in data.splits.items():
            key = f"{data.key}-{split}"
            if split == "train" and limit is not None and limit < len(rows):
                rows = rows.shuffle(seed=LIMIT_SEED).select(range(limit))
                key += f"-{limit}"
            if len(rows) == 0:
                raise UserError(f"data={data.name}: the {split} split has no rows.")
            self.splits[split] = self.encoded(rows, key, tokenizers, max_length, cache, split)

    def encoded(
        self, rows: Any, key: str, tokenizers: dict[str, Any], max_length: int, cache: Path, split: str
    ) -> Rows:
        made: dict[str, Any] = {}
        encodings = {}
        for role, tokenizer in tokenizers.items():
            name = tokenizer_key(tokenizer)
            if name not in made:
                made[name] = encode(rows, key, tokenizer, max_length, cache, f"{self.data.name} {split}")
                cut = sum(made[name]["cut"])
                if cut:
                    what = "pairs" if "text_pair" in rows.column_names else "texts"
                    print(f"{split}: {cut} of {len(rows)} {what} are longer than {max_length} tokens and were cut.")
            encodings[role] = made[name]
        return Rows(encodings, {role: tokenizer.pad_token_id for role, tokenizer in tokenizers.items()})

    def loader(self, split: str, sampler: Sampler[Draw]) -> DataLoader[Any]:
        # batch_size=None: the sampler draws whole batches and Rows pads them
        return DataLoader(
            self.splits[split], sampler=sampler, batch_size=None, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0, pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or opening it would draw from the generator of dropout
        )  # fmt: skip

    def batches(self, rank: int = 0, ranks: int = 1, accumulate: int = 1) -> Batches:
        lengths = self.splits["train"].lengths
        return Batches(lengths, self.batch_size, self.seed, rank, ranks, accumulate)

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        batches = self.batches(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        progress = trainer.fit_loop.epoch_loop.batch_progress.current  # above 0 where a training goes on
        batches.epoch, batches.done = trainer.current_epoch, progress.ready
        return self.loader("train", batches)

    def val_dataloader(self) -> DataLoader[Any]:
        trainer = self.trainer
        assert trainer is not None
        return self.score_loader("validation", trainer.global_rank, trainer.world_size)

    def score_loader(self, split: str, rank: int = 0, ranks: int = 1) -> DataLoader[Any]:
        return self.loader(split, Sorted(self.splits[split].lengths, 2 * self.batch_size, rank, ranks))
