"""How time and memory of kd grow with rows, with length, and with layers: a table and a picture.

    KD_STORE=../shared/store python benchmarks/growth.py

MiniLM-L6 to bert-mini on SST-2, logit distillation. Rows beyond SST-2's repeat. Of many rows the preparation, the
teacher's pass (where there is one) and some steps are measured; lengths and layers with few rows. Texts of one length
are SST-2's words put together. Anonymous memory is what no file backs: cached text and signals are mapped files,
which "peak" has too as far as they were touched.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd.noise import silence, silence_transformers

silence()

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

from kd.table import markdown_table  # noqa: E402
from speed import kd_options, measure, prepare  # noqa: E402
from speed.table import describe, keep, machine  # noqa: E402
from speed.work import Work  # noqa: E402

Figures = dict[str, float]
COLUMNS = {
    "prepare": "s to the tokens", "before": "s to the first step", "step": "ms a step", "anonymous": "anonymous MB",
    "peak": "peak MB",
}  # fmt: skip


def figures(work: Work, steps: int, overrides: list[str]) -> Figures:
    """Of one run: seconds until the rows are tokens, from then to the first step, of a step; megabytes."""
    found = measure.kd_run(work, [f"trainer.max_steps={steps}", *overrides])
    [(begin, ticks)] = measure.jobs(found)
    read = next(when for when, line in found["lines"] if line.startswith("Data: "))
    named = next(when for when, line in found["lines"] if line.startswith("kd: "))  # before torch and the data
    return {
        "prepare": read - named, "before": ticks[0] - begin, "step": (ticks[-1] - ticks[0]) / (len(ticks) - 1) * 1000,
        "anonymous": found["anonymous_megabytes"], "peak": found["megabytes"],
    }  # fmt: skip


def write_texts_of(length: int, directory: Path, rows: int) -> None:
    """Rows whose texts have at least ``length`` tokens, to be cut there."""
    table = pq.read_table(prepare.store() / "data/sst2/train.parquet", columns=["text", "label"])
    words = " ".join(table["text"][: rows * length // 4].to_pylist()).split()  # of some ten words each
    texts = [" ".join(words[i * length : (i + 1) * length]) for i in range(rows)]
    made = pa.table({"text": texts, "label": [i % 2 for i in range(rows)]})
    for split, count in (("train", rows), ("validation", 64)):
        pq.write_table(made.slice(0, count), directory / f"{split}.parquet")


def show(what: str, found: dict[int, Figures]) -> None:
    rows = [[str(size), *(f"{each[name]:.1f}" for name in COLUMNS)] for size, each in found.items()]
    print("\n" + markdown_table([what, *COLUMNS.values()], rows, left=0) + "\n", flush=True)


def draw(found: dict[str, dict[int, Figures]], file: Path) -> None:
    """Both axes logarithmic: what grows as its size does is a line that rises as the dashed one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(4 * len(found), 6), squeeze=False)
    for column, (what, sizes) in enumerate(found.items()):
        groups = (("prepare", "before", "step"), ("anonymous", "peak"))
        for row, names in enumerate(groups):
            axis = axes[row][column]
            for name in names:
                values = [each[name] / (1000 if name == "step" else 1) for each in sizes.values()]
                axis.plot(list(sizes), values, marker="o", label=COLUMNS[name].replace("ms a", "s a"))
            first, last = min(sizes), max(sizes)
            low = min(each[names[0]] for each in sizes.values())
            axis.plot([first, last], [low, low * last / first], "--", color="0.7", label="as its size")
            axis.set(xscale="log", yscale="log", xlabel=what)
            axis.set_xticks(list(sizes), [f"{size:,}" for size in sizes], minor=False)
            axis.set_xticks([], minor=True)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=120)
    print(f"drawn in {file}")


def measured(arguments: argparse.Namespace, base: Work) -> dict[str, dict[int, Figures]]:
    directory, fast = Path(base.directory), kd_options.fastest(always_cached=True)
    found: dict[str, dict[int, Figures]] = {"rows": {}, "tokens": {}, "layers": {}}
    for rows in arguments.rows:
        prepare.write_rows(directory, rows, 64)
        found["rows"][rows] = figures(replace(base, rows=rows), arguments.steps, fast)
        print(f"{rows} rows: {found['rows'][rows]}", flush=True)
    show("rows", found["rows"])
    few = replace(base, rows=arguments.few)
    for length in arguments.lengths:
        write_texts_of(length, directory, few.rows)
        found["tokens"][length] = figures(replace(few, max_length=length), arguments.steps, fast)
        print(f"{length} tokens: {found['tokens'][length]}", flush=True)
    show("tokens", found["tokens"])
    prepare.write_rows(directory, few.rows, 64)
    for layers in arguments.layers:
        more: list[Any] = ["student.weights=random", f"student.architecture.num_hidden_layers={layers}"]
        found["layers"][layers] = figures(few, arguments.steps, [*fast, *more])
        print(f"{layers} layers: {found['layers'][layers]}", flush=True)
    show("layers of the student", found["layers"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--few", type=int, default=512, help="rows where lengths and layers are varied")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("growth.json"), help="and the picture beside it, .png")
    arguments = parser.parse_args()
    silence_transformers()
    about, out = machine(), arguments.out.resolve()
    print(describe(about), flush=True)
    with prepare.workplace("minilm_l6", "bert_mini", arguments.few) as directory:
        base = prepare.make_work(
            directory, "logit", "minilm_l6", "bert_mini", arguments.few, threads=arguments.threads
        )  # fmt: skip
        found = measured(arguments, base)
    keep(out, {"machine": about, "figures": found})
    draw(found, out.with_suffix(".png"))


if __name__ == "__main__":
    main()
