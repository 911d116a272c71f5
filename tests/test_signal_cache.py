"""Kept signals are the live ones, row by row, and are computed again only where something is another or broken."""

from __future__ import annotations

import csv
import errno
import pickle
import shutil
import signal as signals_of_the_system
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import SMALL, TWO_RANKS, stopped, train
from conftest import OWN, model

from kd import signal_pass, teacher_scores
from kd.batches import Draw
from kd.datamodule import Rows, TextDataModule
from kd.errors import UserError
from kd.kept_signals import KeptSignals, completed, file_of
from kd.lit_module import FrozenTeacher
from kd.signal_cache import CacheSettings, kept_signals
from kd.signals import Recorder
from kd.tasks import Classification

ALL = ("logits", "cls/1", "hidden/2", "embedding", "query/2", "key/2", "value/1", "attention/2")
ON = CacheSettings("on", "float32", "32-true", torch.device("cpu"), 3.0)


def kept(
    teacher: Any, data: TextDataModule, cache: Path, settings: CacheSettings = ON, wanted: tuple[str, ...] = ALL
) -> KeptSignals | None:
    task = Classification(["negative", "positive"])
    FrozenTeacher(teacher, ())
    return kept_signals(teacher, teacher_scores.model_hash(teacher), data, task, settings, "t", cache, wanted)


def found(teacher: Any, data: TextDataModule, cache: Path, settings: CacheSettings = ON) -> KeptSignals:
    signals = kept(teacher, data, cache, settings)
    assert signals is not None
    return signals


@torch.no_grad()
def live(teacher: Any, rows: Rows, numbers: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    inputs = rows[Draw(numbers, {})]["teacher"]
    return Recorder(teacher, ALL)(**inputs), inputs["attention_mask"].bool()


def real(signal: str, tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Without what stands at padding."""
    kind = signal.partition("/")[0]
    if kind in ("hidden", "embedding"):
        return tensor[mask]
    if kind in ("query", "key", "value"):
        return tensor.transpose(1, 2)[mask]
    return (
        tensor[(mask[:, None, :, None] & mask[:, None, None, :]).expand_as(tensor)] if kind == "attention" else tensor
    )


def test_in_float32_a_batch_of_the_pass_is_read_back_bit_by_bit(data: TextDataModule, tmp_path: Path) -> None:
    teacher, rows = model(2, 32), data.splits["train"]
    signals = found(teacher, data, tmp_path)
    for numbers in signal_pass.SignalPass(
        teacher, ["logits"], rows, tmp_path, "float32", "32-true", ON.device
    ).batches(np.zeros(len(rows))):  # fmt: skip
        expected, mask = live(teacher, rows, numbers)
        made = completed(signals.of(numbers), ALL)
        for signal in ALL:
            assert torch.equal(real(signal, made[signal], mask), real(signal, expected[signal], mask)), signal


@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-6), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_shuffled_batches_read_what_the_teacher_would_say(
    data: TextDataModule, tmp_path: Path, dtype: str, error: float
) -> None:
    teacher, rows = model(2, 32), data.splits["train"]
    signals = found(teacher, data, tmp_path, replace(ON, dtype=dtype))
    for draw in data.batches():  # of the sampler: shuffled, other batches than those of the pass
        numbers = list(draw.rows)
        expected, mask = live(teacher, rows, numbers)
        made = completed(signals.of(numbers), ALL)
        for signal in ALL:
            assert made[signal].dtype == torch.float32
            ours, theirs = real(signal, made[signal], mask), real(signal, expected[signal], mask)
            bound = error * (8 if signal.startswith("attention") else 1)  # a product of two that were rounded
            torch.testing.assert_close(ours, theirs, rtol=error, atol=bound)


@pytest.mark.parametrize("threads", [1, 3, 40])
def test_threads_with_a_batch_each_make_the_same(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(signal_pass, "TOKENS", {"cpu": 100})
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = found(model(2, 32), data, tmp_path / "alone").of(list(range(64)))
        torch.set_num_threads(threads)
        together = found(model(2, 32), data, tmp_path / "together").of(list(range(64)))
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for signal, tensor in alone.items():
        torch.testing.assert_close(together[signal], tensor, rtol=2e-6, atol=2e-6)


def test_batches_carry_them_in_workers_too_and_no_teacher_input(data: TextDataModule, tmp_path: Path) -> None:
    teacher, rows = model(2, 32), data.splits["train"]
    signals = found(teacher, data, tmp_path)
    rows.kept = pickle.loads(pickle.dumps(signals))
    data.num_workers = 2
    draws = list(data.batches())
    for draw, batch in zip(draws, data.loader("train", data.batches()), strict=True):
        assert "teacher" not in batch
        assert batch["rows"].tolist() == list(draw.rows)
        for signal, tensor in signals.of(list(draw.rows)).items():
            assert torch.equal(batch["signals"][signal], tensor)


def test_a_second_run_asks_nothing_and_another_content_does(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = model(2, 32)
    found(teacher, data, tmp_path)
    asked: list[int] = []
    entries = signal_pass.SignalPass.entries

    def counted(self: signal_pass.SignalPass, rows: list[int], of: Recorder) -> dict[str, torch.Tensor]:
        asked.extend(rows)
        return entries(self, rows, of)

    monkeypatch.setattr(signal_pass.SignalPass, "entries", counted)
    kept(teacher, data, tmp_path, wanted=("logits", "attention/2"))
    assert not asked
    assert "computed earlier" in capsys.readouterr().out
    kept(teacher, data, tmp_path, wanted=("logits", "hidden/1"))
    assert set(asked) == set(range(len(data.splits["train"])))
    assert "hidden/1 of 64 rows" in capsys.readouterr().out
    half, lower = replace(ON, dtype="float16"), replace(ON, precision="bf16-mixed")
    others: list[tuple[Any, CacheSettings]] = [(model(2, 32, seed=1), ON), (teacher, half), (teacher, lower)]
    for other, settings in others:
        asked.clear()
        kept(other, data, tmp_path, settings, wanted=("logits",))
        assert asked


@pytest.mark.parametrize("harm", ["truncated", "changed", "description"])
def test_a_broken_file_is_named_and_made_anew(
    data: TextDataModule, tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = model(2, 32)
    signals = found(teacher, data, tmp_path)
    right = signals.of([3, 1])["cls/1"]
    path = file_of(signals.directory, "cls/1")
    stored = path.read_bytes()
    if harm == "description":
        path.with_suffix(".json").write_text("{")
    else:
        path.write_bytes(stored[:-8] if harm == "truncated" else stored[:-8] + bytes(8))
    again = found(teacher, data, tmp_path)
    assert path.stem in capsys.readouterr().out
    assert torch.equal(again.of([3, 1])["cls/1"], right)
    assert path.read_bytes() == stored


def test_a_pass_that_was_killed_goes_on_where_it_was(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = model(2, 32)
    whole = found(teacher, data, tmp_path / "whole").of(list(range(64)))
    monkeypatch.setattr(signal_pass, "TOKENS", {"cpu": 100})
    write, written = signal_pass.SignalPass.write, list[int]()

    def counted(self: signal_pass.SignalPass, files: Any, rows: list[int], made: dict[str, torch.Tensor]) -> None:
        if 30 < len(written) < 100:
            written.extend([0] * 100)  # once
            raise KeyboardInterrupt
        written.extend(rows)
        write(self, files, rows, made)

    monkeypatch.setattr(signal_pass.SignalPass, "write", counted)
    with pytest.raises(KeyboardInterrupt):
        found(teacher, data, tmp_path / "part")
    before = len(written) - 100
    resumed = found(teacher, data, tmp_path / "part")
    assert 30 < before < 64
    assert len(written) == 164  # each row once
    for signal, tensor in resumed.of(list(range(64))).items():
        torch.testing.assert_close(tensor, whole[signal], rtol=2e-6, atol=2e-6)
    assert not list((tmp_path / "part" / "signals").glob(".*.work"))


def test_no_room_on_the_disk(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("kd.signal_cache.shutil.disk_usage", lambda _: usage._replace(free=2**28 + 1000))
    with pytest.raises(UserError, match=r"cache=on: .* do not fit: they take .* MB, .* 268\.4 MB left"):
        kept(model(2, 32), data, tmp_path)
    assert kept(model(2, 32), data, tmp_path, replace(ON, when="auto")) is None
    assert "computed in every step: they take" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.npy"))


def test_auto_and_off_say_why(data: TextDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = model(2, 32)
    assert kept(teacher, data, tmp_path, replace(ON, when="off")) is None
    assert "computed in every step: cache=off" in capsys.readouterr().out
    assert kept(teacher, data, tmp_path, replace(ON, when="auto", passes=0.25)) is None
    assert "the run reads 25 % of the training rows" in capsys.readouterr().out
    data.splits["train"].units.changing = True
    assert kept(teacher, data, tmp_path, replace(ON, when="auto")) is None
    assert "others in every epoch" in capsys.readouterr().out


def test_what_float16_cannot_hold_is_kept_in_bfloat16(
    data: TextDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = model(2, 32)
    with torch.no_grad():
        teacher.classifier.bias.fill_(1e5)
    signals = kept(teacher, data, tmp_path, replace(ON, dtype="float16"), ("logits",))
    assert "logits has values that float16 cannot hold" in capsys.readouterr().out
    assert signals is not None
    assert signals.of([0])["logits"].dtype == torch.bfloat16
    torch.testing.assert_close(signals.of([0])["logits"].float(), torch.full((1, 2), 1e5), rtol=1e-2, atol=0)
    with torch.no_grad():
        teacher.classifier.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="no finite numbers"):
        kept(teacher, data, tmp_path, replace(ON, dtype="float16"), ("logits",))


@pytest.mark.parametrize("family", list(OWN))
@pytest.mark.parametrize("pooling", [None, "attention"])
@torch.no_grad()
def test_a_bfloat16_pass_of_any_family_is_near_the_float32_one(
    data: TextDataModule, tmp_path: Path, family: str, pooling: str | None
) -> None:
    """512 tokens: angles of positions that were rounded to 8 bits would be far off by then."""
    window: dict[str, Any] = {"local_attention": 128} if family == "modernbert" else {}
    head: dict[str, Any] = {"pooling": pooling} if pooling else {}
    teacher = model(2, 64, model_type=family, max_position_embeddings=600, **window, **head).eval()
    assert signal_pass.in_bfloat16(teacher).dtype == torch.bfloat16
    assert teacher.dtype == torch.float32
    ids = torch.randint(5, 500, (2, 512), generator=torch.Generator().manual_seed(0))
    wanted = ("logits", "cls/2", "hidden/2", "query/2", "key/1")
    one, two = (
        Recorder(each, wanted)(input_ids=ids, attention_mask=torch.ones_like(ids))
        for each in (teacher, signal_pass.in_bfloat16(teacher))
    )
    for signal in wanted:
        bound = 0.012 if signal in ("query/2", "key/1") else 0.03
        assert (two[signal].float() - one[signal]).norm() < bound * one[signal].norm(), signal


def test_rows_with_as_many_units_as_there_are_rows_are_read_by_their_own(tmp_path: Path) -> None:
    """One word a row on the mean, but not in each."""
    lengths, units = np.array([3, 3, 3]), np.array([2, 0, 1])
    np.save(file_of(tmp_path, "logits"), np.arange(6, dtype=np.float32).reshape(3, 2))
    kept_here = KeptSignals(tmp_path, ["logits"], lengths, units, "float32")
    assert kept_here.of([2])["logits"].tolist() == [[4, 5]]
    assert kept_here.of([1, 0])["logits"].tolist() == [[0, 1], [2, 3]]


def test_a_pass_that_nobody_can_go_on_with_is_not_left_on_the_disk(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, entries = model(2, 32), signal_pass.SignalPass.entries
    asked: list[int] = []

    def too_large(self: signal_pass.SignalPass, rows: list[int], of: Recorder) -> dict[str, torch.Tensor]:
        asked.append(len(rows))
        if self.dtype == "float16" and len(rows) > 1:
            raise signal_pass.TooLargeError("cls/1")
        return entries(self, rows, of)

    def killed(self: signal_pass.SignalPass, rows: list[int], of: Recorder) -> dict[str, torch.Tensor]:
        if len(rows) > 1:
            raise KeyboardInterrupt
        return entries(self, rows, of)

    half, wanted = replace(ON, dtype="float16"), ("logits", "cls/1")
    monkeypatch.setattr(signal_pass.SignalPass, "entries", too_large)
    signals = kept(teacher, data, tmp_path, half, wanted)
    assert signals is not None
    assert signals.of([0])["logits"].dtype == torch.bfloat16
    asked.clear()
    kept(teacher, data, tmp_path, half, wanted)
    assert not asked  # it is known that float16 does not do
    monkeypatch.setattr(signal_pass.SignalPass, "entries", killed)
    with pytest.raises(KeyboardInterrupt):
        kept(teacher, data, tmp_path, wanted=wanted)
    monkeypatch.setattr(signal_pass.SignalPass, "entries", entries)
    assert len(list((tmp_path / "signals").glob(".*.work"))) == 1
    kept(teacher, data, tmp_path, wanted=("logits", "hidden/1"))  # further runs have no use for what was begun
    assert not list((tmp_path / "signals").glob(".*.work"))


def test_a_disk_that_fills_up_is_named_and_given_back(
    data: TextDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[int] = []

    def full(_file: int, _start: int, count: int) -> None:
        if taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(count)

    monkeypatch.setattr("kd.signal_pass.os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=r"No space left on device: .*logits\.npy"):
        kept(model(2, 32), data, tmp_path, wanted=("logits", "cls/1"))
    assert taken
    assert not list((tmp_path / "signals").glob(".*.work"))
    assert kept(model(2, 32), data, tmp_path, replace(ON, when="auto"), wanted=("logits", "cls/1")) is None
    assert "was filled while they were written" in capsys.readouterr().out
    assert not list((tmp_path / "signals").glob(".*.work"))


def losses(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: float(row[key]) for key in row if key.startswith("train/loss") and row[key]} for row in rows]


@pytest.mark.slow
def test_two_ranks_with_workers_learn_the_same_from_kept_signals_after_a_kill(tmp_path: Path) -> None:
    lines = [
        *SMALL, *TWO_RANKS, "method=feature", "quant=none", "report.measure=false", "logger=csv", "data.num_workers=2",
        "trainer.log_every_n_steps=1",
    ]  # fmt: skip
    live = train(tmp_path, *lines, "cache=off", f"hydra.run.dir={tmp_path / 'live'}")
    assert live.returncode == 0, live.stderr
    assert "computed in every step: cache=off" in live.stdout
    begun = tmp_path / "cache" / "signals"
    lines.append("cache_dtype=float32")
    stopped(
        tmp_path, *lines, f"hydra.run.dir={tmp_path / 'killed'}", cache=tmp_path / "cache",
        when=lambda: bool(list(begun.glob(".*.work/done.npy"))), signal_number=signals_of_the_system.SIGKILL,
    )  # fmt: skip
    kept = train(tmp_path, *lines, f"hydra.run.dir={tmp_path / 'kept'}")
    assert kept.returncode == 0, kept.stderr
    assert "are computed once and kept in" in kept.stdout
    ours, theirs = losses(tmp_path / "kept"), losses(tmp_path / "live")
    assert len(ours) == len(theirs) > 6
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    assert not list(begun.glob(".*.work"))
