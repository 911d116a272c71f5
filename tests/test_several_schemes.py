"""Several quantized artefacts of one run: each is what a run with its scheme alone gives."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path

import pytest
import torch
from commands import SMALL, train
from torch.optim.lr_scheduler import LambdaLR

from kd.callbacks import QuantizationCallback
from kd.command_line import compose
from kd.errors import UserError
from kd.named_schemes import keeping_worst, named_schemes
from kd.schemes import Settings


def test_settings_for_all_reach_those_that_take_them() -> None:
    found = named_schemes(compose(["quant=[int8,int4]", "quant.group_size=64", "quant.head=true"]))
    assert list(found) == ["int8", "int4"]
    assert [found[name]["head"] for name in found] == [True, True]
    assert found["int4"]["group_size"] == 64
    assert "group_size" not in found["int8"]
    one = named_schemes(compose(["quant=[int8,int4]", "quant.int4.group_size=64"]))
    assert (one["int4"]["group_size"], one["int8"]["head"]) == (64, False)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["quant=int8", "quant.group_size=64"], "quant=int8 takes no group_size"),
        (["quant.sensitivity=true", "quant.head=true"], "quant=none quantizes nothing"),
        (["quant=int8_qat", "quant.keep_float=auto"], "is known once the student is trained"),
        (["quant=int8", "quant.keep_float=atuo"], "Did you mean 'auto'?"),
    ],
)
def test_settings_without_a_scheme_that_takes_them_are_refused(lines: list[str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        named_schemes(compose(lines))
    assert says in str(caught.value)


def test_keep_float_auto_is_known_by_name() -> None:
    assert keeping_worst(compose(["quant=[int8,int4]", "quant.int4.keep_float=auto"])) == ["int4"]


def test_the_learning_rate_is_scaled_from_the_start_step_on() -> None:
    settings = Settings("x", "int4_weight_only", qat=True, group_size=32, start_step=3, learning_rate_scale=0.5)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    callback = QuantizationCallback(settings, None)  # type: ignore[arg-type]  # asks no rows of a scheme without ranges
    schedule = callback.scaled(lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1 - step / steps))
    scheduler = schedule(optimizer, 10)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 0.9, 0.8, 0.35, 0.3])


@pytest.mark.slow
def test_one_run_gives_what_single_runs_give(tmp_path: Path) -> None:
    """The same bytes: PTQ of the float student, QAT of a training of its own with its own start."""
    lines = [*SMALL, "report.measure=false", "logger=csv"]
    both = train(
        tmp_path, *lines, "quant=[int8,int4_qat]", "quant.sensitivity=true", "quant.int4_qat.start_step=5",
        "quant.int4_qat.learning_rate_scale=0.5", f"hydra.run.dir={tmp_path}/both",
    )  # fmt: skip
    assert both.returncode == 0, both.stderr
    for name, more in (("int8", []), ("int4_qat", ["quant.start_step=5", "quant.learning_rate_scale=0.5"])):
        one = train(tmp_path, *lines, f"quant={name}", *more, f"hydra.run.dir={tmp_path}/{name}")
        assert one.returncode == 0, one.stderr
        ours, alone = (tmp_path / run / f"student-{name}" / "model.safetensors" for run in ("both", name))
        assert filecmp.cmp(ours, alone, shallow=False), name
    report = json.loads((tmp_path / "both" / "report.json").read_text())
    assert list(report["models"]) == ["teacher", "student", "student-int8", "student-int4_qat"]
    assert report["sensitivity"]["int8"].count("\n") == 1 + 16  # a line for each quantized layer
    assert "layer quantized alone" in (tmp_path / "both" / "report.md").read_text()
    assert (tmp_path / "both" / "qat" / "int4_qat" / "metrics.csv").is_file()


@pytest.mark.slow
def test_a_start_step_after_the_end_is_refused(tmp_path: Path) -> None:
    done = train(tmp_path, *SMALL, "quant=int8_qat", "quant.start_step=1000", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert "quant.start_step=1000: the training has 20 steps" in done.stderr
    assert "Traceback" not in done.stderr
