"""``kd``: what is not training, and training for those who installed the package without a checkout."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kd.errors import UserError


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("kd", description="Distil, quantize and measure BERT-family models.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("train", help="the same as python train.py; see kd train --help", add_help=False)
    predict = commands.add_parser("predict", help="label names and probabilities for texts")
    predict.add_argument("--model", required=True, help="a student directory of a run, float or quantized")
    predict.add_argument("--input", help="a CSV file with the texts; the result is CSV on standard output")
    predict.add_argument("--column", default="text", help="its column with the texts (default: text)")
    predict.add_argument("--json", action="store_true", help="one JSON object a line")
    predict.add_argument("text", nargs="*", help="texts to label")
    compare = commands.add_parser("compare", help="a table over runs: mean and deviation over seeds")
    compare.add_argument("place", nargs="+", metavar="DIR", help="runs, sweeps, trees of them, or report.json files")
    compare.add_argument("--sort", metavar="COLUMN", help="the column to sort by, best first (default: test)")
    compare.add_argument("--out", metavar="DIR", help="also write compare.md, compare.csv and compare.png there")
    return top


def texts_of(path: Path, column: str) -> Any:
    """The table of a CSV file. Raises UserError if it cannot be read or lacks the column."""
    import pandas as pd

    try:
        table = pd.read_csv(path, keep_default_na=False)  # "NA" and "null" are words
    except (OSError, ValueError) as error:
        raise UserError(f"--input {path} cannot be read as CSV: {error}") from error
    if column not in table.columns:
        raise UserError(f"--input {path} has no column {column!r}, only {', '.join(table.columns)}: give --column.")
    empty = [row for row, text in enumerate(table[column], start=1) if not str(text).strip()]
    if empty:
        raise UserError(f"--input {path}: row {empty[0]} has no text in the column {column!r}.")
    return table


def predict(arguments: argparse.Namespace) -> None:
    if bool(arguments.input) == bool(arguments.text):
        raise UserError('Give texts, or --input with a CSV file: kd predict --model DIR "a text"')
    table = texts_of(Path(arguments.input), arguments.column) if arguments.input else None
    texts = [str(text) for text in (arguments.text if table is None else table[arguments.column])]
    from kd.artefact import load

    found = load(arguments.model).predict(texts)
    if arguments.json:
        for text, row in zip(texts, found, strict=True):
            print(json.dumps({"text": text, **row}, ensure_ascii=False))
    elif table is not None:
        table["label"] = [row["label"] for row in found]
        for name in found[0]["probabilities"] if found else []:
            table[f"p_{name}"] = [round(row["probabilities"][name], 6) for row in found]
        table.to_csv(sys.stdout, index=False)
    else:
        for text, row in zip(texts, found, strict=True):
            chances = "  ".join(f"{name} {value:.3f}" for name, value in row["probabilities"].items())
            print(f"{row['label']}  ({chances})  {text}")


def compare(arguments: argparse.Namespace) -> None:
    from kd.compare import compare  # imports no torch

    print(compare([Path(place) for place in arguments.place], arguments.sort, arguments.out and Path(arguments.out)))


def main() -> None:
    if sys.argv[1:2] == ["train"]:
        from kd import launch

        sys.argv = [str(launch.__file__), *sys.argv[2:]]  # what further ranks are started with
        return launch.main()
    arguments = parser().parse_args()
    from kd.noise import silence

    silence()
    try:
        if arguments.command == "compare":
            compare(arguments)
        else:
            from kd.noise import silence_transformers

            silence_transformers()
            predict(arguments)
    except UserError as error:
        sys.exit(f"{error}")
    return None
