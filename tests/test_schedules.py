"""Weights and temperatures that change while training."""

from __future__ import annotations

import math
from typing import Any

import pytest

from kd.build import build_losses
from kd.command_line import check_command_line, compose
from kd.errors import UserError
from kd.schedules import schedule, schedules_of
from kd.tasks import Classification

STEP = {"name": "step", "at": [0.5, 0.75], "factors": [1, 0.1, 0]}


@pytest.mark.parametrize(
    ("given", "factors"),  # at 0, a half, three quarters and the end
    [
        ("constant", [1, 1, 1, 1]), ("linear_up", [0, 0.5, 0.75, 1]), ("linear_down", [1, 0.5, 0.25, 0]),
        ("cosine", [1, 0.5, (1 + math.cos(0.75 * math.pi)) / 2, 0]),
        ({"name": "linear", "start": 1, "end": 0.25}, [1, 0.625, 0.4375, 0.25]),
        ({"name": "cosine", "start": 0, "end": 2}, [0, 1, 1 - math.cos(0.75 * math.pi), 2]),
        (STEP, [1, 0.1, 0, 0]),
    ],
)  # fmt: skip
def test_factors(given: Any, factors: list[float]) -> None:
    made = schedule("method.soft.weight_schedule", given)
    assert [made.factor(share) for share in (0, 0.5, 0.75, 1)] == pytest.approx(factors)


@pytest.mark.parametrize(
    ("key", "given", "answer"),
    [
        ("weight_schedule", "linear_dwn", "Did you mean 'linear_down'"),
        ("weight_schedule", 0.5, "give one of constant, linear_up"),
        ("weight_schedule", {"name": "linear", "start": 1}, "linear takes start and end"),
        ("weight_schedule", STEP | {"at": [0.5]}, "one entry more than at"),
        ("weight_schedule", STEP | {"at": [0.75, 0.5]}, "one entry more than at, whose shares rise"),
        ("weight_schedule", STEP | {"at": [50, 75]}, "shares of the steps, above 0 and below 1"),
        ("weight_schedule", STEP | {"factors": "1,0"}, "no list of numbers"),
        ("weight_schedule", {"name": "linear", "start": math.nan, "end": 1}, "no list of numbers"),
        ("weight_schedule", {"name": ["linear"], "start": 0, "end": 1}, "give one of constant"),
        ("weight_schedule", STEP | {"factors": [0, 0, 0]}, "not all of them are 0"),
        ("weight_schedule", {"name": "linear", "start": 1, "end": -1}, "factors are 0 or more"),
        ("temperature_schedule", "linear_down", "a temperature is above 0"),
    ],
)
def test_what_is_no_schedule_is_refused(key: str, given: Any, answer: str) -> None:
    with pytest.raises(UserError, match=answer) as refused:
        schedules_of("method.soft", {"temperature": 4.0, "weight": 1.0, key: given})
    assert str(refused.value).startswith(f"method.soft.{key}")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("method.hard.temperature_schedule=linear_up", "this term has no temperature"),
        ("method.sof.weight_schedule=linear_up", "no setting 'method.sof'"),
        ("method.soft.wieght_schedule=linear_up", "Did you mean 'weight_schedule'"),
        ("method.soft.temprature=2", "Did you mean 'temperature'"),
        ("method.patient.xyz=2", "method.patient has method.patient.weight"),
        ("method.soft.weight_schedule.name=linear", "linear takes start and end"),
    ],
)
def test_slips_on_the_command_line(line: str, answer: str) -> None:
    with pytest.raises(UserError, match=answer):
        check_command_line([line])


def test_a_term_follows_its_schedules_and_describes_itself_as_configured() -> None:
    lines = [
        "method.soft.weight_schedule=linear_down",
        "method.soft.temperature_schedule={name: step, at: [0.5], factors: [1, 0.5]}",
    ]
    check_command_line(lines)
    losses = build_losses(
        compose([*lines, "data=demo", "teacher=tiny_demo", "student=tiny_demo"]), Classification(["a", "b"])
    )
    soft = losses["soft"]
    said = soft.described()
    assert "weight times 1 to 0, linear" in said
    assert "temperature times 1, 0.5 from 50% of the steps" in said
    soft.at(0.75)
    assert [soft.weight, vars(soft)["temperature"]] == [0.125, 2.0]
    assert soft.described() == said
    soft.at(0.0)
    assert [soft.weight, vars(soft)["temperature"]] == [0.5, 4.0]
    assert losses["hard"].schedules == {}
