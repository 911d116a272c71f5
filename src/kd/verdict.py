"""What a report's figures say in words, the unwelcome included. Without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kd.table import scored

CLOSE = 0.005  # of the score, or where less is better a share of it: half a point
SLOWER = 0.95  # times as fast as the float student


def sentence(report: dict[str, Any]) -> str:
    """Of the student, and of what was made from it: a few sentences. ``failed`` of a report: why, by name."""
    student, failed = report["models"]["student"], report.get("failed", {})
    made = [name for name in report["models"] if name not in ("teacher", "student", *failed)]
    parts = [of_student(report, student)]
    if not (report["teacher_beats_chance"] and report["student_beats_chance"]):
        made = []  # of what was made of a student that guesses there is nothing to say
    if len(made) == 1:
        parts.append(of_one(report, made[0]))
    elif made:
        parts.append(of_several(report, made))
    if failed:
        parts.append(f"Failed: {'; '.join(f'{name} ({why})' for name, why in failed.items())}.")
    return " ".join(parts)


def of_student(report: dict[str, Any], student: Mapping[str, Any]) -> str:
    select, split, teacher = report["select"], scored(dict(student)), report["models"]["teacher"]
    if not report["teacher_beats_chance"]:
        return "The teacher does not beat guessing beyond chance, so retention and agreement say nothing."
    if not report["student_beats_chance"]:
        return (
            f"The student does not beat guessing beyond chance: it has learned nothing that {split} shows. Train it "
            "longer."
        )
    ratio = teacher["weights_bytes"] / student["weights_bytes"]
    size = f"{ratio:.1f} times fewer" if ratio >= 1 else f"{1 / ratio:.1f} times more"
    kept = f"keeps {100 * student[f'{split}_retention']:.1f} % of the teacher's {split} {select}"
    if not report["higher_is_better"]:
        kept = f"has {student[split][select] / teacher[split][select]:.2f} times the teacher's {split} {select}"
    return f"The student {kept} with {size} bytes of weights; {split} has {report['rows'][split]} rows."


def change(report: dict[str, Any], name: str) -> float:
    """Of the score that counts, against the float student."""
    student, select = report["models"]["student"], report["select"]
    split = scored(student)
    return float(report["models"][name][split][select] - student[split][select])


def points(report: dict[str, Any], name: str) -> str:
    moved = change(report, name)
    return f"{100 * moved:+.2f} points" if report["higher_is_better"] else f"{moved:+.2f} {report['select']}"


def share(report: dict[str, Any], name: str) -> str:
    models = report["models"]
    return f"{100 * models[name]['weights_bytes'] / models['student']['weights_bytes']:.0f} %"


def speed(report: dict[str, Any], name: str) -> float | None:
    """How many times as fast as the float student at batch 1; None if it was not measured."""
    own, student = report["models"][name], report["models"]["student"]
    if "latency_ms_p50" not in own or "latency_ms_p50" not in student:
        return None
    return float(student["latency_ms_p50"] / own["latency_ms_p50"])


def is_close(report: dict[str, Any], name: str) -> bool:
    student, split = report["models"]["student"], scored(report["models"]["student"])
    if report["higher_is_better"]:
        return change(report, name) >= -CLOSE - 1e-9
    return change(report, name) <= CLOSE * abs(float(student[split][report["select"]]))


def of_one(report: dict[str, Any], name: str) -> str:
    text = f"{name} takes {share(report, name)} of the float student's bytes at {points(report, name)}."
    times = speed(report, name)
    if times is None:
        return text
    if times < SLOWER:
        return f"{text} It is {1 / times:.1f} times slower than float at batch 1 on this CPU: it saves bytes, not time."
    return f"{text} At batch 1 it takes {1 / times:.2f} times the float student's time."


def of_several(report: dict[str, Any], made: Sequence[str]) -> str:
    """The smallest and the fastest of those that answer as well as the float student; then what is wrong with which."""
    score = f"{scored(report['models']['student'])} {report['select']}"
    within = "half a point of" if report["higher_is_better"] else "half a percent of"
    close = [name for name in made if is_close(report, name)]
    speeds = {name: times for name in made if (times := speed(report, name)) is not None}
    text = (
        f"Of {len(made)} artefacts {len(close) or 'none'} stay{'s' * (len(close) < 2)} within {within} the float "
        f"student's {score}"
    )
    if close:
        best = min(close, key=lambda name: report["models"][name]["weights_bytes"])
        text += f"; the smallest of these is {best}, {share(report, best)} of its bytes at {points(report, best)}"
        best = max((name for name in close if name in speeds), key=speeds.__getitem__, default="")
        if best:
            text += f"; the fastest at batch 1 is {best}, {speeds[best]:.1f} times as fast at {points(report, best)}"
    worse = [f"{name} ({points(report, name)})" for name in made if name not in close]
    slower = [f"{name} ({1 / times:.1f} times)" for name, times in speeds.items() if times < SLOWER]
    parts = [text]
    if worse:
        parts.append(f"Worse than that: {', '.join(worse)}")
    if slower:
        parts.append(f"Slower than float at batch 1: {', '.join(slower)}")
    return ". ".join(parts) + "."
