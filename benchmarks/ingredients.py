"""What each ingredient of kd's speed brings: none of them, one added after another, all but one; and the Trainer.

    KD_STORE=../shared/store python benchmarks/ingredients.py

The same training as benchmarks/peers.py, run whole each time, in turns. The first row of kd has its batches by length
already, which cannot be switched off: what they bring is the step from the Trainer's row to that one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kd.noise import silence, silence_transformers

silence()

from kd.table import markdown_table  # noqa: E402
from speed import kd_options, measure, prepare  # noqa: E402
from speed.table import Rounds, describe, keep, machine, middle, ratio, rotated  # noqa: E402

TRAINER = "Trainer"


def lines(rounds: Rounds, names: list[str]) -> str:
    """In the order in which they were named; each against the Trainer and against kd without any."""
    rows = []
    for name in names:
        own = [one.seconds for one in rounds[name]]
        times = [str(ratio([one.seconds for one in rounds[other]], own)) for other in (TRAINER, names[1])]
        rows.append(
            [name, f"{middle(rounds[name], 'seconds'):.1f}", *times, f"{1000 * middle(rounds[name], 'step'):.1f}"]
        )
    return markdown_table(["", "seconds", "than the Trainer", f"than {names[1]}", "ms a step"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--method", default="logit")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--part-steps", type=int, default=40, help="of the Trainer")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("ingredients.json"))
    arguments = parser.parse_args()
    silence_transformers()
    about, out = machine(), arguments.out.resolve()
    print(describe(about), flush=True)
    with prepare.workplace("minilm_l6", "bert_mini", arguments.rows) as directory:
        work = prepare.make_work(
            directory, arguments.method, "minilm_l6", "bert_mini", arguments.rows, threads=arguments.threads
        )
        variants = dict(kd_options.variants())
        names = [TRAINER, *variants]
        found: dict[str, list[measure.Measured]] = {name: [] for name in names}
        for i in range(arguments.rounds):
            for name in rotated(names, i):
                one = (
                    measure.peer(work, "hf_trainer", {}, arguments.part_steps)
                    if name == TRAINER
                    else measure.kd(work, variants[name], probe=False)
                )
                found[name].append(one)
                print(f"round {i + 1}/{arguments.rounds} {name:40} {one.seconds:8.1f} s", flush=True)
        print("\n" + lines(found, names) + "\n")
        keep(out, {"machine": about, "work": work, "variants": variants, "rounds": found})


if __name__ == "__main__":
    main()
