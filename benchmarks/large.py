"""A teacher of BERT-large's shape and a student of bert-small's, random weights: figures per row, totals from them.

    KD_STORE=../shared/store python benchmarks/large.py

What is measured: the Trainer's step (teacher and student together) and, of a whole run of kd on few rows, the teacher's
pass and the student's step in the epochs after the first (what lies between epochs left out), all per row. What is
computed, openly: a training of three epochs on SST-2's rows, and ten of them over one teacher. kd's pass is all that
comes before the first step, opening the files included: on few rows that makes it look slower than it is on many.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from kd.noise import silence, silence_transformers

silence()

from kd.table import markdown_table  # noqa: E402
from speed import kd_options, measure, prepare  # noqa: E402
from speed.table import describe, keep, machine, ratio  # noqa: E402

PARTS = ("Trainer, step", "kd, teacher's pass", "kd, step")
TRAINING = 67_349  # SST-2's rows


def totals(trainer: float, teacher_pass: float, step: float, epochs: int, runs: int) -> tuple[float, float]:
    """Seconds a row, of the Trainer and of kd, for so many runs over one teacher; the parts are seconds a row too."""
    return runs * epochs * trainer, teacher_pass + runs * epochs * step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--method", default="logit")
    parser.add_argument("--teacher", default="bert_large")
    parser.add_argument("--student", default="bert_small")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--part-steps", type=int, default=5, help="of the Trainer, after one for warming up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("large.json"))
    arguments = parser.parse_args()
    silence_transformers()
    about, out = machine(), arguments.out.resolve()
    print(describe(about), flush=True)
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    with prepare.workplace(arguments.teacher, arguments.student, arguments.rows, validation=32) as directory:
        work = prepare.make_work(
            directory, arguments.method, arguments.teacher, arguments.student, arguments.rows, threads=arguments.threads
        )
        options = kd_options.known()
        for i in range(arguments.rounds):
            other = measure.peer(work, "hf_trainer", {}, arguments.part_steps, warm_up=1)
            one = measure.kd(work, [on for on, _ in options.values()], probe=False)
            cached = "teacher's signals cached" in options
            parts["Trainer, step"].append(other.step / work.batch)
            parts["kd, teacher's pass"].append((one.before - one.step) / work.rows if cached else 0.0)
            parts["kd, step"].append(one.later * one.steps_run / (work.rows * work.epochs))
            print(
                f"round {i + 1}: " + ", ".join(f"{n} {1000 * v[-1]:.2f} ms a row" for n, v in parts.items()), flush=True
            )
            for line in one.notes:
                print(f"    {line}")
    print(
        "\n"
        + markdown_table(["part", "ms a row"], [[n, f"{1000 * statistics.median(v):.2f}"] for n, v in parts.items()])
    )
    rows = []
    for what, runs in (("one run", 1), ("a sweep of ten", 10)):
        rounds = zip(parts[PARTS[0]], parts[PARTS[1]], parts[PARTS[2]], strict=True)
        made = [totals(trainer, first, step, work.epochs, runs) for trainer, first, step in rounds]
        theirs, ours = ([each[k] for each in made] for k in (0, 1))
        hours = [f"{statistics.median(values) * TRAINING / 3600:.2f}" for values in (theirs, ours)]
        rows.append([f"{what}, {work.epochs} epochs, {TRAINING} rows", *hours, str(ratio(theirs, ours))])
    print("\n" + markdown_table(["computed from the parts", "Trainer, hours", "kd, hours", "faster by"], rows) + "\n")
    keep(out, {"machine": about, "work": work, "seconds_a_row": parts})


if __name__ == "__main__":
    main()
