"""What has a label: words at their first tokens, tokens behind masks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import OWN, architecture
from datasets import Dataset
from words import TAGS, UNREAD, WORDS, byte_pairs, raw, tagged, text_data, word_pieces

from kd.batches import Draw
from kd.datamodule import Rows, TextDataModule
from kd.encoding import NO_TOKEN, Encode
from kd.models import random_model
from kd.tasks import MaskedLM, Task, TokenClassification
from kd.units import UNLABELLED, MaskUnits, WordUnits, logits_at

LONG = 200
TOKENIZERS = {"student": word_pieces(), "teacher": byte_pairs()}


def read(words: list[list[str]], role: str, max_length: int = LONG) -> dict[str, Any]:
    return Encode(TOKENIZERS[role], max_length)({"tokens": words})


def spelled(role: str, ids: list[int]) -> str:
    """The letters that tokens stand for."""
    tokenizer = TOKENIZERS[role]
    if role == "teacher":
        return str(tokenizer.decode(ids)).strip()
    return "".join(str(token).removeprefix("##") for token in tokenizer.convert_ids_to_tokens(ids))


def from_place(role: str, ids: list[int], place: int, places: list[int]) -> str:
    """What stands from a word's place to the next word's."""
    return spelled(role, ids[place : min((p for p in places if p > place), default=len(ids) - 1)])


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_words_place_is_its_first_token(role: str) -> None:
    rows = [WORDS, WORDS[::-1], ["Zürich"], ["🙂", "O'Neill", "e\u0301t\u00e9", "..."]]
    found = read(rows, role)
    for words, ids, places in zip(rows, found["input_ids"], found["places"], strict=True):
        assert places == sorted(set(places))
        assert places[0] == 1  # behind [CLS] or <s>
        for word, place in zip(words, places, strict=True):
            spelling = from_place(role, ids, place, places)
            assert spelling == (word if role == "teacher" else word.lower()) or "[UNK]" in spelling


def test_words_without_tokens_have_no_place() -> None:
    words = ["bank", UNREAD, "", f"{UNREAD}walks", "the"]
    found = read([words], "student")
    places = found["places"][0]
    assert [place == NO_TOKEN for place in places] == [False, True, True, False, False]
    tokens = TOKENIZERS["student"].convert_ids_to_tokens([found["input_ids"][0][p] for p in places if p >= 0])
    assert tokens == ["bank", "walk", "the"]
    assert [place == NO_TOKEN for place in read([words], "teacher")["places"][0]] == [False, False, True, False, False]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_words_that_were_cut_off_have_no_place(role: str) -> None:
    whole, cut = read([WORDS], role), read([WORDS], role, 12)
    assert (whole["cut"], cut["cut"]) == ([False], [True])
    assert cut["places"][0] == [place if place < 11 else NO_TOKEN for place in whole["places"][0]]


def word_units(rows: Any, lengths: dict[str, int]) -> tuple[dict[str, Any], WordUnits]:
    encodings = {
        role: Dataset.from_dict(read(rows["tokens"], role, length) | {"label": rows["label"]})
        for role, length in lengths.items()
    }
    return encodings, WordUnits(encodings, TOKENIZERS, 0)


def test_roles_are_asked_the_same_words_at_places_of_their_own() -> None:
    """Some words have no token for the student, others are cut off for the teacher alone."""
    rows = tagged(40, seed=3)
    encodings, units = word_units(rows, {"student": LONG, "teacher": 24})
    asked_words = 0
    for row, (words, tags) in enumerate(zip(rows["tokens"], rows["label"], strict=True)):
        places = {role: encodings[role][row]["places"] for role in encodings}
        expected = [i for i in range(len(words)) if all(places[role][i] != NO_TOKEN for role in places)]
        assert units.tags[row].tolist() == [[tags[word], int(i == 0)] for i, word in enumerate(expected)]
        for role in encodings:
            ids = encodings[role][row]["input_ids"]
            assert len(units.asked[role][row]) == len(expected)
            for word, place in zip(expected, units.asked[role][row], strict=True):
                spelling = from_place(role, ids, place, places[role])
                wanted = words[word] if role == "teacher" else words[word].lower()
                last = role == "teacher" and word == expected[-1]  # the cut may go through it
                assert wanted.startswith(spelling.rstrip("�")) if last else spelling.rstrip(UNREAD + " ") == wanted
        asked_words += len(expected)
    lost = [word for words in rows["tokens"] for word in words if word == UNREAD]
    assert len(lost) > 0
    assert asked_words < sum(len(words) for words in rows["tokens"]) - len(lost)
    assert units.labels.tolist() == [label for tags in units.tags for label in tags.tolist()]
    assert units.counts["labels"].tolist() == units.counts["logits"].tolist() == [len(tags) for tags in units.tags]


def test_places_in_a_padded_batch_point_at_the_words() -> None:
    rows = tagged(12, seed=4)
    encodings, units = word_units(rows, {"student": LONG, "teacher": LONG})
    chosen = [7, 0, 11, 3]
    batch = Rows(encodings, {"student": 0, "teacher": 1}, units)[Draw(chosen, {})]
    assert batch["labels"].tolist() == [label for row in chosen for label in units.tags[row].tolist()]
    for role in encodings:
        inputs = batch[role]
        expected = [encodings[role][row]["input_ids"][place] for row in chosen for place in units.asked[role][row]]
        assert inputs["input_ids"].flatten()[inputs["places"]].tolist() == expected
        assert inputs["attention_mask"].flatten()[inputs["places"]].all()


def test_a_row_of_which_nothing_is_read_has_no_label() -> None:
    rows = Dataset.from_dict({"tokens": [[UNREAD], ["bank", "the"], []], "label": [[1], [2, 0], []]})
    encodings, units = word_units(rows, {"student": LONG})
    assert units.counts["labels"].tolist() == [0, 2, 0]
    assert units.labels.tolist() == [[2, 1], [0, 0]]
    made = Rows(encodings, {"student": 0}, units)
    assert made[Draw([0, 1, 2], {})]["labels"].tolist() == [[2, 1], [0, 0]]
    alone = made[Draw([0], {})]
    assert (tuple(alone["labels"].shape), tuple(alone["student"]["places"].shape)) == ((0, 2), (0,))


def mask_units(rows: int = 60, seed: int = 0, share: float = 0.15, everywhere: bool = False) -> tuple[Any, MaskUnits]:
    tokenizer = TOKENIZERS["student"]
    columns = Encode(tokenizer, 40)({"text": [*raw(rows, 0, 40)["text"], ""]})
    encoding = Dataset.from_dict(columns)
    tokenizers = {"student": tokenizer, "teacher": tokenizer}
    units = MaskUnits({"student": encoding, "teacher": encoding}, tokenizers, seed, share, everywhere)
    return Rows({"student": encoding, "teacher": encoding}, {"student": 0, "teacher": 0}, units), units


@pytest.mark.parametrize("share", [0.05, 0.15, 0.4])
def test_a_fixed_share_of_each_rows_words_is_chosen_and_one_at_least(share: float) -> None:
    _, units = mask_units(share=share)
    for row, ids in enumerate(units.ids):
        real = len(ids) - 2
        wanted = max(1, round(share * real)) if real else 0  # the last text is empty
        assert units.counts["labels"][row] == units.counts["logits"][row] == wanted
        for epoch in (None, 0, 1):
            places, _ = units.masked(row, epoch)
            assert len(set(places.tolist())) == wanted
            assert list(places) == sorted(places)
            assert all(0 < place < len(ids) - 1 for place in places)  # not [CLS], not [SEP]


def test_of_the_chosen_tokens_80_in_100_are_masked_10_replaced_and_10_stay() -> None:
    _, units = mask_units()
    special = [*TOKENIZERS["student"].all_special_ids]
    masked = same = other = 0
    for epoch in range(60):
        for row, before in enumerate(units.ids):
            places, after = units.masked(row, epoch)
            elsewhere = np.setdiff1d(np.arange(len(before)), places)
            assert (before[elsewhere] == after[elsewhere]).all()
            masked += int((after[places] == units.mask).sum())
            same += int((after[places] == before[places]).sum())
            replaced = after[places][(after[places] != units.mask) & (after[places] != before[places])]
            assert not np.isin(replaced, [one for one in special if one != 1]).any()  # [UNK] is a word like others
            other += len(replaced)
    count = masked + same + other
    assert count > 10_000
    luck = 0.1 / len(units.words)  # another word that happens to be the same
    for found, share in ((masked, 0.8), (same, 0.1 + luck), (other, 0.1 - luck)):
        assert found / count == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / count))


def test_every_place_is_chosen_as_often_as_any_other() -> None:
    _, units = mask_units()
    row = int(np.argmax([len(ids) for ids in units.ids]))
    draws = 3000
    hits = np.zeros(len(units.ids[row]))
    for epoch in range(draws):
        hits[units.masked(row, epoch)[0]] += 1
    share = units.chosen[row] / len(units.real(row))
    assert hits[[0, -1]].tolist() == [0, 0]
    assert hits[1:-1] / draws == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / draws))


def test_masks_depend_on_seed_epoch_and_row_and_those_of_scoring_on_the_row_alone() -> None:
    (rows, one), (_, two) = mask_units(seed=0), mask_units(seed=1)

    def all_of(units: MaskUnits, epoch: int | None) -> list[list[int]]:
        return [units.masked(row, epoch)[1].tolist() for row in range(len(units.ids))]

    assert all_of(one, None) == all_of(two, None)
    assert torch.equal(one.labels, two.labels)
    drawn = [all_of(one, None), all_of(one, 0), all_of(one, 1), all_of(two, 0)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])
    assert all_of(one, 1) == drawn[2]
    for company in ([5], [5, 9], [30, 5, 2]):  # whatever else is in the batch
        ids = rows[Draw(company, {}, 1)]["student"]["input_ids"][company.index(5)]
        assert ids[: len(one.ids[5])].tolist() == drawn[2][5]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("epoch", [None, 3])
def test_batches_carry_masked_ids_for_both_roles_and_what_was_there(everywhere: bool, epoch: int | None) -> None:
    rows, units = mask_units(everywhere=everywhere)
    chosen = [8, 60, 1, 33]  # 60: the empty text
    before = [list(ids) for ids in rows.columns["student"]["input_ids"]]
    batch = rows[Draw(chosen, {}, epoch)]
    ids, places = (batch["student"][name] for name in ("input_ids", "places"))
    assert torch.equal(ids, batch["teacher"]["input_ids"])
    assert torch.equal(places, batch["teacher"]["places"])
    original = torch.zeros_like(ids)
    for i, row in enumerate(chosen):
        original[i, : len(before[row])] = torch.tensor(before[row])
    changed = (ids != original).flatten().nonzero()[:, 0]
    labelled = batch["labels"] != UNLABELLED
    assert set(changed.tolist()) <= set(places[labelled].tolist())
    assert torch.equal(batch["labels"][labelled], original.flatten()[places[labelled]])
    assert int(labelled.sum()) == units.counts["labels"][chosen].sum()
    if epoch is not None:  # what totals are made of
        assert len(places) == units.counts["logits"][chosen].sum()
    if everywhere and epoch is not None:
        expected = ((original > 3) | (original == 1)).flatten().nonzero()[:, 0]
        assert torch.equal(places, expected)
    else:
        assert bool(labelled.all())
    assert before == [list(ids) for ids in rows.columns["student"]["input_ids"]]


@pytest.mark.parametrize("everywhere", [False, True])
def test_scored_labels_are_those_that_scored_batches_carry(everywhere: bool) -> None:
    rows, units = mask_units(everywhere=everywhere)
    carried = torch.cat([rows[Draw([row], {})]["labels"] for row in range(len(rows))])
    assert torch.equal(carried, units.labels)


@pytest.mark.parametrize("ranks", [2, 3])
def test_masks_are_the_same_whatever_the_number_of_ranks(tmp_path: Path, ranks: int) -> None:
    data = TextDataModule(
        text_data(raw, []), {"student": TOKENIZERS["student"]}, tmp_path, 8, 40, units=MaskedLM().units, seed=5
    )

    def drawn(rank: int, of: int) -> dict[int, list[int]]:
        batches = data.batches(rank, of)
        batches.set_epoch(2)
        found = {}
        for draw in batches:
            batch = data.splits["train"][draw]
            for row, ids, real in zip(
                draw.rows, batch["student"]["input_ids"], batch["student"]["attention_mask"], strict=True
            ):
                found[row] = ids[real > 0].tolist()
        return found

    together: dict[int, list[int]] = {}
    for rank in range(ranks):
        together |= drawn(rank, ranks)
    assert together == drawn(0, 1)


@pytest.mark.parametrize("family", OWN)
@pytest.mark.parametrize("task", [MaskedLM(), TokenClassification(TAGS)], ids=lambda task: type(task).__name__)
def test_logits_at_places_are_those_of_the_whole_batch(family: str, task: Task) -> None:
    torch.manual_seed(0)
    model = random_model(architecture(model_type=family), task, TOKENIZERS["student"])
    ids = torch.randint(5, 70, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = mask[2, 3:] = 0
    places = torch.tensor([1, 2, 8, 9, 14, 20])
    whole = model(input_ids=ids, attention_mask=mask).logits
    found = logits_at(model, places, input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(found, whole.flatten(0, 1)[places], atol=1e-6, rtol=1e-5)
    again = logits_at(model, None, input_ids=ids, attention_mask=mask)
    assert torch.equal(again, whole)  # no hook stays
    assert logits_at(model, places[:0], input_ids=ids, attention_mask=mask).shape == (0, whole.shape[-1])
    gradients = []
    for logits in (found, whole.flatten(0, 1)[places]):
        model.zero_grad()
        logits.logsumexp(-1).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
