"""trainer.precision=auto: what is chosen, kept, and said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from kd import machine, precision, resume
from kd.command_line import compose

BOTH = ("trainer.precision", "teacher.fine_tune.precision")


def chosen(monkeypatch: pytest.MonkeyPatch, cache: Path, lines: list[str], times: dict[int, float]) -> tuple[str, str]:
    """The student's and the teacher's precision on a chip whose layers take ``times`` by width as often in float32."""

    def measured(hidden_size: int, **_: Any) -> dict[str, float]:
        return {"32-true": times[hidden_size], "bf16-mixed": 1.0}

    monkeypatch.setattr(precision, "measured", measured)
    cfg = compose([*lines, f"paths.cache={cache}", "teacher=minilm_l6", "student=bert_mini"])
    precision.settle(cfg)
    student, teacher = (OmegaConf.select(cfg, key) for key in BOTH)
    return student, teacher


@pytest.mark.parametrize(
    ("lines", "times", "expected"),
    [
        ([], {256: 1.5, 384: 1.5}, ("bf16-mixed", "bf16-mixed")),
        ([], {256: 1.1, 384: 1.5}, ("32-true", "bf16-mixed")),  # each from its own width
        ([], {256: 0.9, 384: 0.9}, ("32-true", "32-true")),
        (["trainer.precision=32-true"], {}, ("32-true", "32-true")),  # as it was said; nothing is measured
        (["teacher.fine_tune.precision=32-true"], {256: 1.5}, ("bf16-mixed", "32-true")),
    ],
)
def test_bf16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str], times: dict[int, float],
    expected: tuple[str, str], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert chosen(monkeypatch, tmp_path, lines, times) == expected
    said = capsys.readouterr().out
    assert (f"Precision: {expected[0]}; a layer 256 wide takes" in said) == ("trainer.precision=32-true" not in lines)


def test_what_was_measured_once_holds_for_every_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert chosen(monkeypatch, tmp_path, [], {256: 1.5, 384: 1.5}) == ("bf16-mixed", "bf16-mixed")
    assert chosen(monkeypatch, tmp_path, [], {}) == ("bf16-mixed", "bf16-mixed")  # a second look would raise KeyError
    assert len(list((tmp_path / "machine").glob("*.json"))) == 2
    monkeypatch.setattr(machine, "abilities", lambda: "sse2")  # another chip under the same name
    assert chosen(monkeypatch, tmp_path, [], {256: 0.5, 384: 0.5}) == ("32-true", "32-true")


def test_the_generator_of_the_run_is_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    found = precision.measured(32, 2, 64)
    assert torch.equal(torch.rand(4), expected)
    assert set(found) == {"32-true", "bf16-mixed"}
    assert min(found.values()) > 0


def test_a_run_that_goes_on_keeps_what_it_found(tmp_path: Path) -> None:
    lines = ["data=demo", "teacher=tiny_demo", "student=tiny_demo"]
    earlier = compose([*lines, "trainer.precision=bf16-mixed", f"paths.output={tmp_path}"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(earlier, resolve=True))
    given = compose([*lines, "trainer.precision=auto", f"paths.output={tmp_path}", f"resume={tmp_path}"])
    found = resume.stored(tmp_path, given, ["trainer.precision"])
    assert [OmegaConf.select(found, key) for key in BOTH] == ["bf16-mixed", "bf16-mixed"]
