"""kd.measure: processes of their own, in turn. Nothing here depends on how fast the machine is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import model

from kd import demo
from kd.artefact import save_float
from kd.errors import UserError
from kd.measure import FEWEST_ROUNDS, LARGE, SHORT, compared_with, in_batches, legend, measure, race, throughput
from kd.measure_process import Measured, Worker, inputs_of
from kd.measure_worker import MOST_CALLS, made_inputs, turn
from kd.tasks import Classification

KEYS = {
    "latency_ms_p50", "latency_ms_p95", "latency_ms_p50_128", "latency_ms_p95_128", "latency_ms_p50_32x64",
    "rows_per_second", "rows_per_second_real", "peak_memory_bytes",
}  # fmt: skip


def saved(directory: Path, **more: Any) -> Path:
    save_float(directory, model(1, 32, **more), demo.tokenizer(), 32, task=Classification(demo.LABELS))
    return directory


def fake_export(directory: Path) -> Path:
    """What the worker takes for an export: it looks for export.json alone."""
    saved(directory)
    (directory / "export.json").write_text(json.dumps({"format_version": 1}))
    return directory


def test_figures_of_models_of_all_kinds_and_what_was_shortened(tmp_path: Path) -> None:
    places = [
        Measured("bert", saved(tmp_path / "bert")),
        Measured("distilbert", saved(tmp_path / "distilbert", model_type="distilbert", max_position_embeddings=20)),
        Measured("roberta", saved(tmp_path / "roberta", model_type="roberta")),
    ]
    figures, notes = measure(places, 0.0, 1, [[3, 70], [5]])
    assert {name: set(found) for name, found in figures.items()} == {place.name: KEYS for place in places}
    for found in figures.values():
        assert found["latency_ms_p95"] >= found["latency_ms_p50"] > 0
        assert found["rows_per_second"] == pytest.approx(32_000 / found["latency_ms_p50_32x64"])
        assert 50e6 < found["peak_memory_bytes"] < 5e9
    shortened = [f"{shape} was measured as {short}: distilbert takes no more tokens"
                 for shape, short in (("1x32", "1x20"), ("1x128", "1x20"), ("32x64", "32x20"))]  # fmt: skip
    assert notes[:3] == shortened
    compared_with(figures, "bert")
    assert (figures["bert"]["speed_up"], figures["bert"]["speed_up_32x64"]) == (1, 1)
    assert figures["roberta"]["speed_up"] == figures["bert"]["latency_ms_p50"] / figures["roberta"]["latency_ms_p50"]


class Noted:
    """A worker that notes its turns."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.place, self.log = Measured(name, Path(name)), log

    def turn(self, lengths: Sequence[int], vocabulary: int, untimed: int, seconds: float) -> list[float]:
        self.log.append((self.place.name, len(lengths)))
        return [float(len(lengths))] * 2


def test_a_round_is_a_turn_of_each_in_an_order_that_changes() -> None:
    log: list[tuple[str, int]] = []
    workers: list[Any] = [Noted(name, log) for name in "abc"]
    found = race(workers, [[7] * 4, [7] * 5], SHORT, 100, 0.05, "x")
    rounds = [log[start : start + 3] for start in range(0, len(log), 3)]
    assert all(sorted(name for name, _ in one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(name for name, _ in one) for one in rounds[:30]}) > 3
    assert [{rows for _, rows in one} for one in rounds[:4]] == [{4}, {4}, {5}, {4}]  # the first is the warm-up
    assert all(set(batches[0]) == {4.0} and set(batches[1]) == {5.0} for batches in found.values())
    assert sum(len(batch) for batch in found["a"]) == 2 * (len(rounds) - 1) >= 2 * FEWEST_ROUNDS


def test_a_turn_calls_once_at_least_and_leaves_calls_untimed() -> None:
    calls = 0

    def call(_inputs: Any) -> float:
        nonlocal calls
        calls += 1
        return float(calls)

    assert turn(call, {}, 2, 0.0)["seconds"] == [3.0]
    assert turn(call, {}, 0, 1e9)["seconds"] == [float(i) for i in range(4, 4 + MOST_CALLS)]


def test_inputs_are_the_same_for_all_and_padded() -> None:
    made = made_inputs(["attention_mask", "input_ids"], [2, 5], 100)
    assert list(made) == ["attention_mask", "input_ids"]
    assert made["attention_mask"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert made["input_ids"][0, 2:].tolist() == [0, 0, 0]
    assert made["input_ids"][made["attention_mask"] == 1].min() >= 5
    again = made_inputs(["input_ids", "attention_mask", "token_type_ids"], [2, 5], 100)
    assert np.array_equal(again["input_ids"], made["input_ids"])
    assert made["input_ids"].dtype == np.int64
    assert again["token_type_ids"].shape == (2, 5)


def test_throughput_is_over_the_batches_that_were_timed() -> None:
    assert throughput([[1] * 10, [1] * 20, [1]], [[1.0, 3.0, 2.0], [4.0], []]) == 30 / 6
    assert in_batches(range(70)) == [list(range(32)), list(range(32, 64)), list(range(64, 70))]


def test_what_a_quantized_model_takes_is_that_of_its_float_model(tmp_path: Path) -> None:
    config = {"model_type": "kd-quantized", "vocab_size": 9, "max_position_embeddings": 20, "pad_token_id": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"model_type": "roberta"}}))
    found = inputs_of(tmp_path)
    assert (found.names, found.vocabulary, found.positions) == (("input_ids", "attention_mask"), 9, 18)


def test_a_model_that_cannot_be_opened_is_named_with_the_reason(tmp_path: Path) -> None:
    good, bad = saved(tmp_path / "good"), saved(tmp_path / "bad")
    (bad / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"int8 \(.*bad\): its process .* ended with code 1: .*no model\.safetensors"):
        measure([Measured("float", good), Measured("int8", bad)], 0.0, 1)


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    place = Measured("float", saved(tmp_path / "good"))
    worker = Worker(place, inputs_of(place.directory), 1)
    try:
        worker.answer()
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(UserError, match=r"^float \(.*good\): .* by signal 9 \(out of memory\?\)") as error:
            worker.turn([4], 100, 0, 0.0)
        assert "\n" not in str(error.value)
    finally:
        worker.close()


def test_an_export_is_opened_without_torch_and_its_process_holds_no_more_than_it_needs(tmp_path: Path) -> None:
    """The worker's imports for an export, with a session in the place of a runtime's; its parent has torch."""
    directory = fake_export(tmp_path / "onnx")
    code = (
        "import sys, pathlib\n"
        "import kd.export.session\n"
        "class Session:\n"
        "    inputs = ['input_ids']\n"
        "    def __call__(self, inputs):\n"
        "        assert list(inputs) == self.inputs\n"
        "kd.export.session.open_session = lambda directory, threads: Session()\n"
        "from kd.measure_worker import serve\n"
        "serve(pathlib.Path(sys.argv[1]), 1, ['input_ids', 'attention_mask', 'token_type_ids'])\n"
    )
    asked = [{"what": "turn", "lengths": [4, 9], "vocabulary": 100, "untimed": 1, "seconds": 0.0}, {"what": "memory"}]
    done = subprocess.run(
        [sys.executable, "-c", code, str(directory)], input="".join(json.dumps(one) + "\n" for one in asked),
        capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    opened, timed, memory = map(json.loads, done.stdout.splitlines())
    assert not {"torch", "transformers", "omegaconf", "datasets", "pandas"} & set(opened["modules"])
    assert (len(timed["seconds"]), timed["asleep"]) == (1, True)
    assert memory["bytes"] < 100e6  # not what pytest, its parent, has with torch


def test_the_legend_says_what_was_left_out() -> None:
    text = legend({"threads": 2, "reference": "student", "notes": ["real lengths: the first 2 of 9 batches"]})
    assert "2 threads" in text
    assert text.endswith("Note: real lengths: the first 2 of 9 batches.")
    assert (str(SHORT), str(LARGE)) == ("1x32", "32x64")
