from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kd import encoding
from kd.batches import Batches, Draw
from kd.datamodule import TextDataModule
from kd.encoding import pad, tokenizer_key
from kd.errors import UserError
from kd.sources import TextData

LENGTHS = np.random.default_rng(0).integers(3, 40, 103)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_row_once_an_epoch_over_all_ranks(ranks: int, accumulate: int) -> None:
    drawn = [list(Batches(LENGTHS, 8, 0, rank, ranks, accumulate)) for rank in range(ranks)]
    assert {len(batches) for batches in drawn} == {len(Batches(LENGTHS, 8, 0, 0, ranks, accumulate))}
    rows = [row for batches in drawn for draw in batches for row in draw.rows]
    assert sorted(rows) == list(range(len(LENGTHS)))
    assert all(len(draw.rows) > 0 for batches in drawn for draw in batches)


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_totals_are_those_of_the_whole_optimizer_step(ranks: int, accumulate: int) -> None:
    drawn = [list(Batches(LENGTHS, 8, 0, rank, ranks, accumulate)) for rank in range(ranks)]
    for start in range(0, len(drawn[0]), accumulate):
        step = [draw for batches in drawn for draw in batches[start : start + accumulate]]
        rows = [row for draw in step for row in draw.rows]
        expected = {"examples": len(rows), "tokens": int(LENGTHS[rows].sum())}
        assert all(draw.totals == expected for draw in step)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(LENGTHS, 8, seed)
        batches.set_epoch(epoch)
        return [row for draw in batches for row in draw.rows]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_batches_hold_rows_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 3200)
    padded = sum(len(d.rows) * int(lengths[d.rows].max()) for d in Batches(lengths, 32, 0))
    assert padded < 1.1 * lengths.sum()


def test_padding_is_to_the_longest_of_the_batch() -> None:
    made = pad({"input_ids": [[2, 7, 3], [2, 3]], "token_type_ids": [[0, 0, 0], [0, 1]], "label": [0, 1]}, pad_id=9)
    assert made["input_ids"].tolist() == [[2, 7, 3], [2, 3, 9]]
    assert made["token_type_ids"].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert made["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_texts_are_tokenised_once(text: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizers = {"student": text.tokenizer}
    first = TextDataModule(text, tokenizers, tmp_path)

    def never(*_: object) -> None:
        raise AssertionError("tokenised again")

    monkeypatch.setattr(encoding.Encode, "__call__", never)
    again = TextDataModule(text, tokenizers, tmp_path)
    assert first.splits["train"][Draw([0, 1], {})]["student"]["input_ids"].equal(
        again.splits["train"][Draw([0, 1], {})]["student"]["input_ids"]
    )
    with pytest.raises(AssertionError, match="tokenised again"):
        TextDataModule(text, tokenizers, tmp_path, max_length=16)  # another key


def test_a_broken_cache_file_is_named_and_rebuilt(
    text: TextData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers = {"student": text.tokenizer}
    TextDataModule(text, tokenizers, tmp_path)
    broken = sorted((tmp_path / "tokens").glob("*.arrow"))
    for path in broken:
        path.write_bytes(b"nonsense")
    TextDataModule(text, tokenizers, tmp_path)
    printed = capsys.readouterr().out
    assert all(f"{path} cannot be read" in printed for path in broken)


def test_limit_cuts_training_rows_only(text: TextData, tmp_path: Path) -> None:
    data = TextDataModule(text, {"student": text.tokenizer}, tmp_path, limit=50)
    assert {name: len(rows) for name, rows in data.splits.items()} == {
        "train": 50,
        "validation": 300,
        "test": 300,
    }


def test_cut_texts_are_counted(text: TextData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TextDataModule(text, {"student": text.tokenizer}, tmp_path, max_length=8)
    long = sum(len(ids) > 8 for ids in text.tokenizer(list(text.splits["train"]["text"]))["input_ids"])
    assert f"train: {long} of 200 texts are longer than 8 tokens and were cut." in capsys.readouterr().out
    assert data.splits["train"].lengths.max() == 8


def test_cut_texts_are_refused_on_request(text: TextData, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^train: \d+ of 200 texts are longer than 8 tokens, one of them begins '.+', and"
    ):
        TextDataModule(text, {"student": text.tokenizer}, tmp_path, max_length=8, truncate=False)
    TextDataModule(text, {"student": text.tokenizer}, tmp_path, max_length=64, truncate=False)


def test_a_teacher_may_read_further_than_its_student(text: TextData, tmp_path: Path) -> None:
    tokenizers = {"student": text.tokenizer, "teacher": text.tokenizer}
    data = TextDataModule(text, tokenizers, tmp_path, max_length={"student": 6, "teacher": 32})
    batch = data.splits["train"][Draw([0, 1], {})]
    alone = [text.tokenizer(list(text.splits["train"]["text"][:2]), truncation=True, max_length=size, padding=True)
             for size in (6, 32)]  # fmt: skip
    assert [batch[role]["input_ids"].tolist() for role in tokenizers] == [one["input_ids"] for one in alone]
    assert data.key != TextDataModule(text, tokenizers, tmp_path, max_length=6).key


def test_a_call_does_not_change_the_tokenizers_key(text: TextData) -> None:
    before = tokenizer_key(text.tokenizer)
    text.tokenizer("the soup was good", truncation=True, max_length=4, padding="max_length")
    assert tokenizer_key(text.tokenizer) == before


def test_teacher_and_student_share_one_encoding(data: TextDataModule) -> None:
    batch = data.splits["train"][Draw([0, 1], {"examples": 2})]
    assert batch["student"] is batch["teacher"]
    assert batch["labels"].dtype == torch.int64


MANY = np.random.default_rng(0).integers(3, 41, 997)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_token_budget_holds_and_every_row_is_drawn_once(ranks: int) -> None:
    for epoch in (0, 1):
        of_ranks = []
        for rank in range(ranks):
            batches = Batches(MANY, 32, 0, rank, ranks, accumulate=2, tokens=400)
            batches.set_epoch(epoch)
            of_ranks.append(list(batches))
            assert len(of_ranks[-1]) == len(batches)
        drawn = [row for draws in of_ranks for draw in draws for row in draw.rows]
        assert sorted(drawn) == list(range(len(MANY)))
        sizes = [len(draw.rows) * MANY[draw.rows].max() for draws in of_ranks for draw in draws]
        assert max(sizes) <= 400
        real = [MANY[draw.rows].sum() for draws in of_ranks for draw in draws]
        assert sum(real) / sum(sizes) > 0.93  # of the tokens are no padding
        assert np.mean(np.array(sizes) > 300) > 0.9  # the batches are full
        for step in zip(
            *of_ranks, strict=True
        ):  # every rank has rows of each, and knows the whole of an accumulated one
            assert all(len(draw.rows) for draw in step)
            assert len({tuple(draw.totals.items()) for draw in step}) == 1
        for first, second in zip(of_ranks[0][::2], of_ranks[0][1::2], strict=False):
            assert first.totals == second.totals


def test_a_token_budget_mixes_rows_anew_in_each_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[tuple[int, ...]]:
        batches = Batches(MANY, 32, seed, tokens=400)
        batches.set_epoch(epoch)
        return [tuple(draw.rows) for draw in batches]

    assert drawn(0, 1) == drawn(0, 1)
    assert not {*map(frozenset, drawn(0, 0))} & {*map(frozenset, drawn(0, 1))}
    assert drawn(0, 0) != drawn(1, 0)
