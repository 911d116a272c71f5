"""A sweep of ten runs over one teacher, ``train.py -m``, against ten trainings with the Trainer.

    KD_STORE=../shared/store python benchmarks/sweep.py

MiniLM-L6 to bert-mini, ten temperatures. Of kd, "training" is the sum over the ten runs of the time from the
teacher's pass, where there is one, to the last step; "from first to last" is what passed between the first of these
and the last step of the tenth, with loading, scoring and reports of all runs but the last. Ten times the Trainer's
training, computed from a part of one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kd.noise import silence, silence_transformers

silence()

from kd.table import markdown_table  # noqa: E402
from speed import kd_options, measure, prepare  # noqa: E402
from speed.table import describe, keep, machine, ratio  # noqa: E402

RUNS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--method", default="logit")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--part-steps", type=int, default=40, help="of the Trainer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("sweep.json"))
    arguments = parser.parse_args()
    silence_transformers()
    about, out = machine(), arguments.out.resolve()
    print(describe(about), flush=True)
    seconds: dict[str, list[float]] = {"Trainer, ten times": [], "kd, training": [], "kd, from first to last": []}
    with prepare.workplace("minilm_l6", "bert_mini", arguments.rows) as directory:
        work = prepare.make_work(
            directory, arguments.method, "minilm_l6", "bert_mini", arguments.rows, threads=arguments.threads
        )
        temperatures = "method.soft.temperature=" + ",".join(str(t) for t in range(1, RUNS + 1))
        fast = kd_options.fastest()
        for i in range(arguments.rounds):
            before = measure.peer(work, "hf_trainer", {}, arguments.part_steps)
            jobs = measure.jobs(measure.kd_run(work, [*fast, temperatures], sweep=True))
            assert [len(ticks) for _, ticks in jobs] == [work.steps] * RUNS
            after = measure.peer(work, "hf_trainer", {}, arguments.part_steps)
            trainer = (before.seconds + after.seconds) / 2
            each = [ticks[-1] - begin for begin, ticks in jobs]
            print(
                f"round {i + 1}: Trainer {before.seconds:.1f} s before and {after.seconds:.1f} s after; "
                f"kd's runs {[round(s, 1) for s in each]} s",
                flush=True,
            )
            for name, value in zip(seconds, (RUNS * trainer, sum(each), jobs[-1][1][-1] - jobs[0][0]), strict=True):
                seconds[name].append(value)
        trainers = seconds["Trainer, ten times"]
        rows = [[n, ", ".join(f"{v:.1f}" for v in own), str(ratio(trainers, own))] for n, own in seconds.items()]
        print("\n" + markdown_table(["", "seconds", "faster by"], rows) + "\n")
        keep(out, {"machine": about, "work": work, "seconds": seconds})


if __name__ == "__main__":
    main()
