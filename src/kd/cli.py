"""``kd``: what is not training, and training for those who installed the package without a checkout."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

from kd import __version__, export_command
from kd.errors import UserError, nearest
from kd.library.parsers import add_parsers
from kd.parts import text_values
from kd.store import said_about
from kd.tables import Table, check_file, read_table

LIKELIEST = 5  # labels that are shown with their probability
Text = str | tuple[str, ...] | list[str]  # a text, a pair, the words of a text


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("kd", description="Distil, quantize and measure BERT-family models.")
    top.add_argument("--version", action="version", version=f"kd {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("train", help="the same as python train.py; see kd train --help", add_help=False)
    predict = commands.add_parser("predict", help="label names and probabilities for texts")
    predict.add_argument("--model", required=True, help="a student directory of a run, or one of its exports")
    predict.add_argument("--input", help="a file with the texts (CSV, TSV, JSON lines, parquet); the result is CSV")
    predict.add_argument(
        "--column", action="append", metavar="NAME",
        help="its column with the texts, FIRST,SECOND for pairs (default: as in the training data, text if unknown)",
    )  # fmt: skip
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("text", nargs="*", help="texts to label; two by two for a model of pairs")
    compare = commands.add_parser("compare", help="a table over runs: mean and deviation over seeds")
    compare.add_argument("place", nargs="+", metavar="DIR", help="runs, sweeps, trees of them, or report.json files")
    compare.add_argument("--sort", metavar="COLUMN", help="the column to sort by, best first (default: test)")
    compare.add_argument("--out", metavar="DIR", help="also write compare.md, compare.csv and compare.png there")
    bench = commands.add_parser("bench", help="speed and memory of models and exports, side by side on the CPU")
    bench.add_argument(
        "--model", required=True, action="append", metavar="DIR", help="a model or an export, or a run: all it has"
    )
    bench.add_argument("--threads", type=positive, help="of each (default: OMP_NUM_THREADS, or the CPU's cores)")
    bench.add_argument("--seconds", type=positive, default=60, help="for all together (default: 60)")
    bench.add_argument(
        "--rows", metavar="FILE", help="texts for real lengths, as for kd predict (default: the run's validation rows)"
    )
    bench.add_argument("--out", metavar="DIR", help="also write bench.md, bench.json and bench.png there")
    export_command.add_parser(commands)
    add_parsers(commands)
    return top


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def table_of(path: Path, names: list[str], known: tuple[str, ...], words: bool) -> tuple[Table, list[Text]]:
    """A file's table and its texts, pairs or, for a model of ``words``, lists of them.

    Raises UserError if it cannot be read or has no such column.
    """
    check_file(path, "--input")
    table = read_table(path)
    names = [part for name in names for part in ([name] if name in table.columns else name.split(","))]
    if known and len(names) != len(known):
        raise UserError(f"--column {','.join(names)}: the model was trained on {len(known)}, {','.join(known)}.")
    if len(names) > 2:
        raise UserError(f"--column {','.join(names)}: give one column, or two for pairs.")
    table.require(names, "give --column")
    columns = [word_values(table, name) if words else text_values(table, name) for name in names]
    for name, column in zip(names, columns, strict=True):
        empty = [str(row) for row, text in zip(table.rows, column, strict=True) if not "".join(text).strip()]
        if empty:
            listed = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
            raise UserError(
                f"--input {path}: {len(empty)} of {len(table.rows)} rows have no text in the column {name!r} "
                f"({table.unit} {listed}): fill them or leave them out."
            )
    return table, list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def word_values(table: Table, name: str) -> list[Any]:
    """A column of lists of words as they stand, one of texts as texts."""
    values = table.column(name)
    lists = all(isinstance(row, list) and all(isinstance(word, str) for word in row) for row in values)
    return values if lists else text_values(table, name)


def texts_in(arguments: argparse.Namespace, known: tuple[str, ...], words: bool) -> tuple[Table | None, list[Text]]:
    """What is to be labelled, from a file or from the command line itself."""
    if arguments.input and arguments.text:
        raise UserError("Give texts or --input, not both.")
    if not (arguments.input or arguments.text):
        raise UserError('Give texts, or --input with a file of them: kd predict --model DIR "a text"')
    if arguments.input:
        return table_of(Path(arguments.input).expanduser(), arguments.column or list(known) or ["text"], known, words)
    if arguments.column:
        raise UserError("--column names a column of a file: give --input too.")
    texts = arguments.text
    if len(known) == 2:
        if len(texts) % 2:
            raise UserError(f"This model was trained on pairs of texts ({', '.join(known)}): give them two by two.")
        return None, list(zip(texts[::2], texts[1::2], strict=True))
    return None, texts


def write_csv(table: Table, found: list[dict[str, Any]]) -> None:
    """The table as it came, with the label and the probabilities; no column of the table is written over."""
    if "vector" in found[0]:
        more: dict[str, list[Any]] = {"vector": [json.dumps(row["vector"]) for row in found]}
    else:
        more = {"label": [row["label"] for row in found]}
    for name in found[0].get("probabilities", ()):
        more[f"p_{name}"] = [round(row["probabilities"][name], 6) for row in found]
    if "tags" in found[0]:
        more["tags"] = [" ".join(row["tags"]) for row in found]
    columns = {name: [json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value
                      for value in table.column(name)] for name in table.columns}  # fmt: skip
    for name, values in more.items():
        columns[f"predicted_{name}" if name in columns else name] = values
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))


def check_model(directory: Path) -> None:
    """Raises UserError for a directory that is not there, or that is a run instead of one of its models."""
    if not directory.is_dir():
        there = [path.name for path in directory.parent.glob("*") if path.is_dir()] if directory.parent.is_dir() else []
        raise UserError(f"--model {directory}: there is no such directory.{nearest(directory.name, there)}")
    models = sorted(
        str(path.relative_to(directory)) for form in ("student*", "export/*") for path in directory.glob(form)
    )
    if models and not (directory / "config.json").is_file():
        raise UserError(f"--model {directory} is a run: name one of its models, {', '.join(models)}.")
    exports = sorted(path.parent.name for path in directory.glob("*/export.json"))
    if exports:
        raise UserError(f"--model {directory} holds exports: name one of them, {', '.join(exports)}.")


def predict(arguments: argparse.Namespace) -> None:
    check_model(Path(arguments.model).expanduser())
    about = said_about(Path(arguments.model))
    words = about.get("task", {}).get("kind") == "TokenClassification"
    table, texts = texts_in(arguments, tuple(about.get("text_columns", ())), words)
    from kd.artefact import load

    found = load(arguments.model).predict(texts)
    if arguments.json:
        for text, row in zip(texts, found, strict=True):
            print(json.dumps({"text": text, **row}, ensure_ascii=False))
    elif table is not None:
        write_csv(table, found)
    else:
        for text, row in zip(texts, found, strict=True):
            shown = text if isinstance(text, str) else " | ".join(text)
            likely = sorted(row.get("probabilities", {}).items(), key=lambda item: -item[1])[:LIKELIEST]
            chances = "  ".join(f"{name} {value:.3f}" for name, value in likely)
            label = f"{row['label']:.4g}" if isinstance(row["label"], float) else row["label"] or "(none)"
            print(f"{label}  {f'({chances})  ' if chances else ''}{shown}")


def compare(arguments: argparse.Namespace) -> None:
    from kd.compare import compare  # imports no torch

    print(compare([Path(place) for place in arguments.place], arguments.sort, arguments.out and Path(arguments.out)))


def bench(arguments: argparse.Namespace) -> None:
    from kd.bench_command import bench

    models = [Path(model).expanduser() for model in arguments.model]
    rows, out = (value and Path(value).expanduser() for value in (arguments.rows, arguments.out))
    print(bench(models, arguments.threads, arguments.seconds, rows, out))


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        from kd import launch

        sys.argv = [str(launch.__file__), *sys.argv[2:]]  # what further ranks are started with
        return launch.main()
    arguments = parser().parse_args()
    if arguments.command is None:
        return parser().print_help()
    from kd.noise import silence

    silence()
    try:
        if arguments.command == "compare":
            compare(arguments)
        elif arguments.command == "bench":
            bench(arguments)
        elif arguments.command in ("models", "data"):
            from kd.library.command import run  # imports no torch

            run(arguments)
        else:
            from kd.noise import silence_transformers

            silence_transformers()
            if arguments.command == "export":
                check_model(Path(arguments.model).expanduser())
                export_command.export(arguments)
            else:
                predict(arguments)
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has enough, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return None
