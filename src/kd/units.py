"""What has a label: a row, a word of it, or a token behind a mask.

Models answer for every token; the ``places`` that stand among a role's inputs say which of the answers count, as
numbers of tokens in the padded batch ``[B * L]``. The k-th place of every role is about the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.batches import Draw, Numbers
from kd.errors import UserError
from kd.ragged import Ragged

UNLABELLED = -100  # the place is compared with the teacher's, but there is no label


class Units:
    """``counts`` has, for every row, how many ``labels`` there are and how many ``logits`` are compared.

    ``labels`` are those of all rows, one after the other, as scoring sees them.
    ``unread`` counts those that no model can be asked about, since it reads nothing of them.
    ``changing``: models are given other inputs in every epoch.
    """

    counts: dict[str, Numbers]
    unread = 0
    changing = False

    @property
    def labels(self) -> Tensor:
        raise NotImplementedError

    def label(self, batch: dict[str, Any], draw: Draw) -> None:
        """Puts ``labels`` into a padded batch, and ``places`` among the inputs of each role if not all tokens count."""
        raise NotImplementedError


class RowUnits(Units):
    """One label a row, a number or several; not a number where the data have none."""

    def __init__(self, encodings: Mapping[str, Any], tokenizers: Mapping[str, Any], seed: int) -> None:
        rows = encodings["student"]
        found = torch.tensor(rows["label"][:]) if "label" in rows.column_names else torch.full((len(rows),), torch.nan)
        self.found = found
        self.counts = {name: np.ones(len(rows), np.int64) for name in ("labels", "logits")}

    @property
    def labels(self) -> Tensor:
        return self.found

    def label(self, batch: dict[str, Any], draw: Draw) -> None:
        batch["labels"] = self.found[draw.rows]


class WordUnits(Units):
    """One tag a word, asked at the word's first token. A word that some role does not read to is not asked.

    Labels are ``[N, 2]``: the tag, and 1 at the first asked word of each row, where entities of earlier rows end.
    """

    def __init__(self, encodings: Mapping[str, Any], tokenizers: Mapping[str, Any], seed: int) -> None:
        places = {role: encoding["places"][:] for role, encoding in encodings.items()}
        self.asked: dict[str, list[list[int]]] = {role: [] for role in places}
        self.tags: list[Tensor] = []
        for row, tags in enumerate(encodings["student"]["label"][:]):
            read = [word for word in range(len(tags)) if all(places[role][row][word] >= 0 for role in places)]
            for role, asked in self.asked.items():
                asked.append([places[role][row][word] for word in read])
            begins = [int(i == 0) for i in range(len(read))]
            self.tags.append(torch.tensor([[tags[word] for word in read], begins], dtype=torch.long).T)
        count = np.array([len(tags) for tags in self.tags])
        self.unread = sum(map(len, encodings["student"]["label"][:])) - int(count.sum())
        if not count.any():
            raise UserError(
                f"Of {len(count)} rows no word is read, so no tag can be learned or scored: look at the tokens."
            )
        self.counts = {"labels": count, "logits": count}

    @property
    def labels(self) -> Tensor:
        return torch.cat(self.tags)

    def label(self, batch: dict[str, Any], draw: Draw) -> None:
        batch["labels"] = torch.cat([self.tags[row] for row in draw.rows])
        for role, asked in self.asked.items():
            if role not in batch:  # a teacher whose signals are kept
                continue
            batch[role] = batch[role] | {"places": flat([asked[row] for row in draw.rows], batch[role])}


class MaskUnits(Units):
    """Tokens behind masks (Devlin et al. 2019, section 3.1): of the chosen ones 80 % are masked, 10 % replaced.

    A fixed ``share`` of each row's tokens is chosen (one at least), so that the number of labels is known beforehand;
    which ones depends on seed, epoch and row, in scoring on the row alone. ``everywhere``: while training all real
    tokens are compared with the teacher, not only the chosen ones. All roles read the same tokens.
    """

    changing = True

    def __init__(
        self, encodings: Mapping[str, Any], tokenizers: Mapping[str, Any], seed: int, share: float, everywhere: bool
    ) -> None:  # fmt: skip
        tokenizer = tokenizers["student"]
        self.seed, self.share, self.everywhere = seed, share, everywhere
        self.mask = tokenizer.mask_token_id
        special = {*tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self.words = np.array([i for i in range(len(tokenizer)) if i not in special])
        self.special = np.array([*special])
        self.ids = Ragged(encodings["student"], "input_ids")
        real = np.array([len(self.real(row)) for row in range(len(self.ids))])
        self.chosen = np.where(real > 0, np.maximum(1, np.rint(share * real)), 0).astype(int)
        self.counts = {"labels": self.chosen, "logits": real if everywhere else self.chosen}

    def real(self, row: int) -> Numbers:
        """Where a row has tokens that are none of the tokenizer's own."""
        return np.flatnonzero(~np.isin(self.ids[row], self.special))

    def masked(self, row: int, epoch: int | None) -> tuple[Numbers, Numbers]:
        """The places of a row that were chosen, in order, and its ids with masks."""
        random = np.random.default_rng((row, 0) if epoch is None else (row, 1, self.seed, epoch))
        places = np.sort(random.permutation(self.real(row))[: self.chosen[row]])
        ids, way = self.ids[row].copy(), random.random(len(places))
        ids[places[way < 0.8]] = self.mask
        replaced = places[way >= 0.9]
        ids[replaced] = random.choice(self.words, len(replaced))
        return places, ids

    @property
    def labels(self) -> Tensor:
        return torch.from_numpy(
            np.concatenate([self.ids[row][self.masked(row, None)[0]] for row in range(len(self.ids))]).astype(np.int64)
        )

    def label(self, batch: dict[str, Any], draw: Draw) -> None:
        every = self.everywhere and draw.epoch is not None
        asked, labels = [], []
        inputs = {role: batch[role]["input_ids"].clone() for role in ("student", "teacher") if role in batch}
        assert all(ids.equal(inputs["student"]) for ids in inputs.values()), "checked by build.refuse_token_level"
        for i, row in enumerate(draw.rows):
            places, ids = self.masked(row, draw.epoch)
            for padded in inputs.values():
                padded[i, : len(ids)] = torch.from_numpy(ids)
            asked.append(self.real(row) if every else places)
            labels.append(np.where(np.isin(asked[-1], places), self.ids[row][asked[-1]], UNLABELLED))
        batch["labels"] = torch.from_numpy(np.concatenate(labels).astype(np.int64))
        for role, ids in inputs.items():
            batch[role] = batch[role] | {"input_ids": ids, "places": flat(asked, batch[role])}


def flat(places: Sequence[Sequence[int] | Numbers], inputs: Mapping[str, Tensor]) -> Tensor:
    """Places of each row as places in the padded batch."""
    length = inputs["input_ids"].shape[1]
    found = [place + i * length for i, row in enumerate(places) for place in row]
    return torch.tensor(found, dtype=torch.long)


def logits_at(model: Any, places: Tensor | None = None, **inputs: Tensor) -> Tensor:
    """The logits of a batch: ``[B, C]``; where single tokens are asked, ``[N, C]`` of N places."""
    if places is None:
        logits: Tensor = model(**inputs).logits
        return logits
    decoder = model.get_output_embeddings()
    if decoder is None:
        logits = model(**inputs).logits
        return logits.flatten(0, 1)[places]
    # logits of a whole vocabulary for every token would take gigabytes: the others are left out before
    handle = decoder.register_forward_pre_hook(lambda _module, states: (states[0].flatten(0, 1)[places],))
    try:
        logits = model(**inputs).logits
    finally:
        handle.remove()
    return logits
