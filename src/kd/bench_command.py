"""``kd bench``: speed and memory of artefacts side by side, as the report of a run measures them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kd import __version__
from kd.errors import UserError
from kd.export.directory import is_export, read_about
from kd.measure import compared_with, in_batches, legend, measure
from kd.measure_process import Measured
from kd.store import said_about, write_text
from kd.table import QUALITY, SCORES, SPEED, filled

MOST_ROWS = 2048  # of a data set, for its lengths
SHOWN = [column for column in QUALITY if column[0] in (*SCORES, "weights")] + SPEED


def bench(models: Sequence[Path], threads: int | None, seconds: float, rows: Path | None, out: Path | None) -> str:
    """The table and what to know about it; with ``out`` also bench.json, bench.md and bench.png there.

    Raises UserError for what is no artefact or cannot be opened.
    """
    places, skipped = found(models)
    threads = threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    lengths, whose = real_lengths(places, rows)
    figures, notes = measure(places, seconds, threads, lengths)
    reference = "student" if "student" in figures else places[0].name
    compared_with(figures, reference)
    known, select = scores_of(places)
    about = {"threads": threads, "reference": reference, "notes": [*whose, *skipped, *notes]}
    report: dict[str, Any] = {
        "title": f"{len(places)} models, {threads} thread{'s' * (threads > 1)}",
        "select": select,
        "models": {
            place.name: known[place.name] | {"weights_bytes": weights_bytes(place.directory)} | figures[place.name]
            for place in places
        },
        "measured": about,
        "about": {"kd": __version__, "machine": platform.machine(), "seconds": seconds},
    }
    text = f"{filled(report, SHOWN)}\n\n{legend(about)}"
    if out is not None:
        write(out, report, text)
    return text


def found(given: Sequence[Path]) -> tuple[list[Measured], list[str]]:
    """The artefacts that are named, or that stand in the runs that are named, and what of these is left out."""
    several = len(given) > 1
    places: dict[str, Path] = {}
    skipped = []
    for place in given:
        if not place.is_dir():
            raise UserError(f"--model {place}: there is no such directory.")
        inside = [place] if is_artefact(place) else sorted(artefacts_in(place), key=lambda path: path.name != "student")
        if not inside:
            raise UserError(
                f"--model {place}: neither a model that kd wrote nor a run with such. Name a run directory, its "
                "student directories or its export/ directories."
            )
        for path in inside:
            name = f"{place.resolve().name}/{path.name}" if several and path != place else path.resolve().name
            if name in places:
                name = str(path)
            if path != place and is_export(path) and not read_about(path)["passed"]:
                skipped.append(f"{name} is left out: it did not pass its gate")
            else:
                places[name] = path
    return [Measured(name, path) for name, path in places.items()], skipped


def is_artefact(directory: Path) -> bool:
    return (directory / "config.json").is_file()


def artefacts_in(run: Path) -> Iterator[Path]:
    for pattern in ("student*", "export/*"):
        yield from sorted(path for path in run.glob(pattern) if is_artefact(path))


def weights_bytes(directory: Path) -> int:
    """Of model.safetensors; of an export, of the files of its model."""
    if not is_export(directory):
        return (directory / "model.safetensors").stat().st_size
    about = read_about(directory)
    return sum(about["files"][name]["bytes"] for name in about["model_files"])


def real_lengths(places: Sequence[Measured], rows: Path | None) -> tuple[list[list[int]], list[str]]:
    """Batches of lengths in tokens of the given file's rows, or of the validation rows of the first model's run."""
    first = places[0].directory
    run = next((path for path in list(first.resolve().parents)[:2] if (path / "config.yaml").is_file()), None)
    if rows is not None:
        texts = texts_of_file(rows, first)
    elif run is not None:
        texts = texts_of_run(run, first)
    else:
        return [], ["rows/s real was not measured: give --rows FILE"]
    from transformers import AutoTokenizer

    from kd.encoding import Encode

    tokenizer = AutoTokenizer.from_pretrained(first, local_files_only=True)
    encoded = Encode(tokenizer, int(tokenizer.model_max_length))(texts)
    return in_batches([len(ids) for ids in encoded["input_ids"]]), []


def texts_of_file(path: Path, model: Path) -> dict[str, list[Any]]:
    """Columns as ``Encode`` takes them."""
    from kd.cli import table_of

    about = said_about(model)
    words = about.get("task", {}).get("kind") == "TokenClassification"
    known = tuple(about.get("text_columns", ()))
    _, texts = table_of(path, list(known) or ["text"], known, words)
    texts = texts[:MOST_ROWS]
    if words and isinstance(texts[0], list):
        return {"tokens": texts}
    if isinstance(texts[0], tuple):
        first, second = zip(*texts, strict=True)
        return {"text": list(first), "text_pair": list(second)}
    return {"text": texts}


def texts_of_run(run: Path, model: Path) -> dict[str, list[Any]]:
    """The validation rows that a run was set to, as its task reads them."""
    from kd.build import build
    from kd.export_command import config_of
    from kd.tasks import restored

    data, about = build(config_of(run / "config.yaml").data.source), said_about(model)
    rows = (restored(about["task"]).prepare(data) if "task" in about else data).splits["validation"]
    kept = [name for name in ("text", "text_pair", "tokens") if name in rows.column_names]
    columns: dict[str, list[Any]] = rows.select_columns(kept).select(range(min(len(rows), MOST_ROWS)))[:]
    return columns


def scores_of(places: Sequence[Measured]) -> tuple[dict[str, dict[str, Any]], str]:
    """What the reports of the runs say of the scores, and by which metric; nothing where runs have several.

    An export that was written after the report brings the score of its gate.
    """
    known: dict[str, dict[str, Any]] = {place.name: {} for place in places}
    selects = set()
    for place in places:
        directory = place.directory.resolve()
        path = next((up / "report.json" for up in list(directory.parents)[:2] if (up / "report.json").is_file()), None)
        if path is None:
            continue
        report = json.loads(path.read_text(encoding="utf-8"))
        selects.add(report["select"])
        figures = report["models"].get(directory.name, {})
        if not figures and is_export(directory):
            figures = {"validation": {report["select"]: read_about(directory)["figures"]["score"]}}
        known[place.name] = {split: figures[split] for split in SCORES if split in figures}
    if len(selects) == 1:
        return known, selects.pop()
    return {place.name: {} for place in places}, ""


def write(out: Path, report: dict[str, Any], text: str) -> None:
    from kd.picture import draw_alone

    try:
        out.mkdir(parents=True, exist_ok=True)
        draw_alone(report, out / "bench.png")
        write_text(out / "bench.md", f"# {report['title']}\n\n{text}\n\n![bench](bench.png)\n")
        write_text(out / "bench.json", json.dumps(report, indent=2))
    except OSError as error:
        raise UserError(f"--out {out}: {error}. Name a directory that can be written to.") from error
