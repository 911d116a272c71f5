from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import model

from kd import demo
from kd.datamodule import TextDataModule
from kd.errors import Preempted, UserError
from kd.fit import FitSettings
from kd.last_state import LastState
from kd.models import Loaded, head_linear, load_model
from kd.pair import check_kind
from kd.report import Entry
from kd.sources import TextData
from kd.tasks import Classification, Multilabel, Ordinal, Regression
from kd.tasks.classification import wilson_interval
from kd.teacher import FineTune, check_labels, check_score, fine_tuned, steps_begun, teacher_key

TUNE = FineTune(when="auto", epochs=1, max_steps=2, batch_size=8, lr=1e-3, seed=0)


def settings() -> FitSettings:
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "auto",
        "max_epochs": 1,
        "max_steps": -1,
        "precision": "32-true",
        "accumulate_grad_batches": 1,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 10,
    }
    return FitSettings(trainer, functools.partial(torch.optim.AdamW, lr=1.0), "linear", 0.06, seed=7)


def test_wilson_interval() -> None:
    low, high = wilson_interval(0.5, 100)
    assert (round(low, 4), round(high, 4)) == (0.4038, 0.5962)  # textbook values
    assert wilson_interval(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_the_gate(task: Classification, capsys: pytest.CaptureFixture[str]) -> None:
    labels = torch.tensor([0] * 55 + [1] * 45)

    def scored(accuracy: float) -> Entry:
        return Entry(
            "t", None, "t", 0, 0, False, None, {"validation": {"accuracy": accuracy}}, {"validation": labels[:, None]}
        )

    with pytest.raises(UserError, match=r"0\.6000 \(95 % interval 0\.50.*gives 0\.5500.*teacher\.gate=false"):
        check_score(scored(0.60), labels, task, gate=True)  # above chance, but not surely
    check_score(scored(0.80), labels, task, gate=True)
    assert capsys.readouterr().out == ""
    check_score(scored(0.60), labels, task, gate=False)
    assert "Going on" in capsys.readouterr().out


def test_labels_in_another_order_are_permuted(capsys: pytest.CaptureFixture[str]) -> None:
    student = model()
    student.config.id2label = {0: "Positive", 1: "Negative"}
    inputs = {"input_ids": torch.tensor([[2, 9, 8, 3]])}
    before = student(**inputs).logits
    check_labels(student, Classification(["negative", "positive"]), gate=True)
    torch.testing.assert_close(student(**inputs).logits, before.flip(-1))
    assert student.config.id2label == {0: "negative", 1: "positive"}
    assert "put into the data's order" in capsys.readouterr().out


def test_labels_of_other_names_stop_unless_the_gate_is_open() -> None:
    student = model()
    student.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    with pytest.raises(UserError, match=r"LABEL_0.*teacher\.gate=false"):
        check_labels(student, Classification(demo.LABELS), gate=True)
    check_labels(student, Classification(demo.LABELS), gate=False)
    assert student.config.id2label == {0: "negative", 1: "positive"}
    with pytest.raises(UserError, match="has 2 labels, the task 3"):
        check_labels(student, Classification(["a", "b", "c"]), gate=False)


def test_a_teacher_is_fine_tuned_once(
    text: TextData, data: TextDataModule, task: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = TextDataModule(text, {"student": text.tokenizer}, tmp_path / "tokens", 8, 32, 64)
    arguments: Any = ("id", "tiny", text.tokenizer, task, rows, TUNE, settings(), tmp_path, lambda done: [])
    first = fine_tuned(Loaded(model(), False), *arguments)
    (kept,) = [path for path in (tmp_path / "teachers").iterdir() if path.is_dir()]
    assert sorted(path.name for path in kept.iterdir()) == [
        "config.json",
        "kd.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr("kd.teacher.fit", never)
    again = fine_tuned(Loaded(model(), False), *arguments)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    monkeypatch.undo()
    (kept / "model.safetensors").write_bytes(b"broken")
    mended = fine_tuned(Loaded(model(), False), *arguments)
    assert torch.equal(head_linear(mended).weight, head_linear(first).weight)
    assert load_model(kept, task).has_head


def test_the_key_knows_all_that_matters_and_nothing_else(text: TextData, tmp_path: Path, task: Classification) -> None:
    def rows(limit: int) -> TextDataModule:
        return TextDataModule(text, {"student": text.tokenizer}, tmp_path, 8, 32, limit)

    def key(identity: str = "a", limit: int = 64, seed: int = 0, lr: float = 1e-3, run_seed: int = 0) -> str:
        tune = FineTune("auto", 1, -1, 8, lr, seed)
        how = settings()
        how.seed = run_seed
        return teacher_key(identity, text.tokenizer, rows(limit), task, tune, how)

    assert len({key(), key("b"), key(limit=32), key(seed=1), key(lr=1e-4)}) == 5
    assert key(run_seed=5) == key()


def test_when_to_fine_tune() -> None:
    def wanted(when: str, has_head: bool, weights: str) -> bool:
        return FineTune(when, 1, -1, 8, 1e-3, 0).wanted(has_head, weights)

    assert wanted("auto", False, "pretrained")
    assert not wanted("auto", True, "pretrained")
    assert not wanted("auto", False, "random")
    assert wanted("always", True, "random")
    assert not wanted("never", False, "pretrained")


@pytest.mark.parametrize("otherwise", [False, True])
def test_a_fine_tuning_that_was_stopped_goes_on(
    text: TextData, task: Classification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], otherwise: bool,
) -> None:  # fmt: skip
    """Or begins anew, where it was stopped with word embeddings that were updated in another way."""
    rows = TextDataModule(text, {"student": text.tokenizer}, tmp_path / "tokens", 8, 32, 64)
    how = settings()
    how.checkpoint_seconds = 0
    tune = FineTune(when="auto", epochs=2, max_steps=-1, batch_size=8, lr=1e-3, seed=0)

    def tuned(cache: Path) -> Any:
        return fine_tuned(
            Loaded(model(), False), "id", "tiny", text.tokenizer, task, rows, tune, how, cache, lambda done: []
        )

    save = LastState.save

    def stops(self: LastState, trainer: Any, module: Any) -> None:
        save(self, trainer, module)
        if self.step == 11:
            raise Preempted(self.step, 15)

    monkeypatch.setattr(LastState, "save", stops)
    with pytest.raises(Preempted):
        tuned(tmp_path / "stopped")
    assert not [path for path in (tmp_path / "stopped" / "teachers").glob("[!.]*") if path.is_dir()]
    monkeypatch.undo()
    how.lazy_embeddings = otherwise
    resumed, alone = tuned(tmp_path / "stopped"), tuned(tmp_path / "alone")
    said = capsys.readouterr().out
    assert "going on after 11 steps" in said
    assert ("in another way; beginning anew" in said) == otherwise
    for name, tensor in alone.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    left = [path.name for path in (tmp_path / "stopped" / "teachers").iterdir() if path.is_dir()]
    assert left == [path.name for path in (tmp_path / "alone" / "teachers").iterdir() if path.is_dir()]


def test_a_broken_state_of_a_stopped_fine_tuning_is_named_and_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / ".teacher.work"
    (work / "checkpoints").mkdir(parents=True)
    (work / "checkpoints" / "last.ckpt").write_bytes(b"half")
    assert steps_begun(work, "key") == 0
    assert not work.exists()
    assert "last.ckpt cannot be read" in capsys.readouterr().out


def test_a_head_for_another_kind_of_output_is_refused() -> None:
    made = model()
    check_kind("teacher", made, Classification(demo.LABELS))
    for task in (Multilabel(demo.LABELS), Ordinal(["a", "b", "c"]), Regression(["x"])):
        with pytest.raises(UserError, match="trained for problem_type=single_label_classification"):
            check_kind("teacher", made, task)
    made.config.problem_type = None  # as in many a file of the hub
    check_kind("teacher", made, Multilabel(demo.LABELS))
