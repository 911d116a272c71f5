"""kd against other ways to distil, on the same work: seconds of a training, ratio, spread.

    KD_STORE=../shared/store python benchmarks/peers.py                        # pip install -e ".[bench]" first
    KD_STORE=../shared/store python benchmarks/peers.py --scores --rows 4000   # what the students have learned

MiniLM-L6 to bert-mini on SST-2, logit distillation and PKD. Each program runs in a process of its own, in turns, in
another order every round. kd's run is run whole, with its teacher's pass; the others are measured on --part-steps
steps after a warm-up, and the seconds of their whole training are computed from that. Imports, loading and the last
scoring are not counted; "whole process" has them.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.noise import silence, silence_transformers

silence()

from kd.table import markdown_table  # noqa: E402
from speed import kd_options, measure, prepare  # noqa: E402
from speed.measure import Measured  # noqa: E402
from speed.table import describe, keep, machine, rotated, table  # noqa: E402
from speed.work import Work  # noqa: E402

Program = Callable[[Work], Measured]
SETTINGS: dict[str, dict[str, Any]] = {  # of the Trainer, as its documentation offers them
    "Trainer": {},
    "Trainer, 2 workers": {"dataloader_num_workers": 2},
    "Trainer, grouped by length": {"train_sampling_strategy": "group_by_length"},
    "Trainer, bf16": {"bf16": True},
    "Trainer, grouped by length, bf16": {"bf16": True, "train_sampling_strategy": "group_by_length"},
}


def programs(part: int, slow_part: int) -> dict[str, Program]:
    """By the names in the table. A padded step takes several times as long: fewer of those are measured."""
    fast = kd_options.fastest()
    made: dict[str, Program] = {"kd": lambda work: measure.kd(work, fast)}
    for name, setting in SETTINGS.items():
        made[name] = functools.partial(measure.peer, module="hf_trainer", setting=setting, part=part)
    for name, module in (("TextBrewer", "textbrewer_general"), ("PyTorch loop, padded", "plain_loop")):
        made[name] = functools.partial(measure.peer, module=module, setting={}, part=slow_part, warm_up=2)
    return made


def check_installed() -> None:
    missing = [name for name in ("accelerate", "textbrewer") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f'{", ".join(missing)} is not installed: pip install -e ".[bench]"')


def rounds_of(work: Work, chosen: dict[str, Program], count: int) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {name: [] for name in chosen}
    for i in range(count):
        for name in rotated(list(chosen), i):
            begin = time.perf_counter()
            one = chosen[name](work)
            found[name].append(one)
            print(
                f"{work.method} round {i + 1}/{count} {name:34} {one.seconds:8.1f} s "
                f"{work.rows * work.epochs / one.seconds:6.0f} rows/s ({time.perf_counter() - begin:.0f} s to measure)",
                flush=True,
            )
            for line in one.notes if i == 0 else ():
                print(f"    {line}")
    return found


def speed(arguments: argparse.Namespace, works: list[Work]) -> None:
    about = machine()
    print(describe(about), flush=True)
    kept = {}
    chosen = programs(arguments.part_steps, min(arguments.part_steps, arguments.slow_part_steps))
    chosen = {name: program for name, program in chosen.items() if name in (arguments.programs or chosen)}
    for work in works:
        found = rounds_of(work, chosen, arguments.rounds)
        print(
            f"\n{work.method}: {work.rows} rows, {work.epochs} epochs, batches of {work.batch}, {work.threads} threads"
        )
        before = measure.kd_probe(work, Path(work.student_directory))
        print(f"All start from a student whose loss is {before['loss']:.3f}, accuracy {before['accuracy']:.3f}")
        print(table(found, work.rows * work.epochs, next(iter(found))) + "\n", flush=True)
        kept[work.method] = {"work": work, "rounds": found}
    keep(arguments.out, {"machine": about, "methods": kept})


def scores(arguments: argparse.Namespace, works: list[Work]) -> None:
    """Whole trainings of kd and the Trainer: validation accuracy, best and last epoch, for each seed."""
    programs: dict[str, Program] = {
        "kd": functools.partial(measure.kd, overrides=kd_options.fastest()),
        "Trainer": functools.partial(measure.peer, module="hf_trainer", setting={}, part=0, each_epoch=True),
    }
    kept: dict[str, list[list[float]]] = {}
    for work in works:
        for seed in range(arguments.seeds):
            one = replace(work, seed=seed)
            prepare.write_student(Path(one.directory), one.student, seed)
            for name, program in programs.items():
                found = program(one)
                accuracies = [epoch["accuracy"] for epoch in found.epochs]
                kept.setdefault(f"{work.method}, {name}", []).append(accuracies)
                shown = " ".join(f"{value:.4f}" for value in accuracies)
                print(f"{work.method} seed {seed} {name:8} accuracy by epoch: {shown}; {found.probe}", flush=True)
    rows = [
        [name, str(len(own)), mean_and_deviation([max(each) for each in own]), mean_and_deviation([e[-1] for e in own])]
        for name, own in kept.items()
    ]
    print("\n" + markdown_table(["validation accuracy", "seeds", "best epoch", "last epoch"], rows) + "\n")
    keep(arguments.out, {"machine": machine(), "works": works, "accuracy_by_epoch": kept})


def mean_and_deviation(values: list[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=["logit", "pkd"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part-steps", type=int, default=40, help="of the others; 0: their whole training")
    parser.add_argument("--slow-part-steps", type=int, default=15, help="of those that pad to the longest allowed")
    parser.add_argument("--lr", type=float, help="default: kd's; a higher one soon shows whether all learn the same")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--programs", nargs="+", help="only these, by their names in the table; ratios are to the first"
    )
    parser.add_argument("--scores", action="store_true", help="validation scores over seeds instead of speed")
    parser.add_argument("--seeds", type=int, default=3, help="for --scores")
    parser.add_argument(
        "--student", default="bert_mini", choices=["bert_mini", prepare.LAYERS],
        help="bert_mini from random weights, or three layers of the teacher, which learn from few rows",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", type=Path, help="for --scores: fine-tuned; default: kd fine-tunes MiniLM on the rows"
    )
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    arguments = parser.parse_args()
    arguments.out = arguments.out.resolve()
    check_installed()
    silence_transformers()
    fine_tuned = arguments.scores and arguments.teacher is None
    with prepare.workplace(
        "minilm_l6", arguments.student, arguments.rows, None if arguments.scores else 64
    ) as directory:
        if arguments.scores:
            teacher = prepare.fine_tune_teacher(directory) if fine_tuned else arguments.teacher
            shutil.rmtree(directory / "teacher")
            (directory / "teacher").symlink_to(teacher.resolve())
            shutil.rmtree(directory / "student-0")  # it may be the other teacher's
        more = {"lr": arguments.lr} if arguments.lr else {}
        works = [
            prepare.make_work(
                directory, method, "minilm_l6", arguments.student, arguments.rows, epochs=arguments.epochs,
                threads=arguments.threads, max_length=arguments.max_length, **more,
            )
            for method in arguments.methods
        ]  # fmt: skip
        (scores if arguments.scores else speed)(arguments, works)


if __name__ == "__main__":
    main()
