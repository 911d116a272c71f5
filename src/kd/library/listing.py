"""What is told of models and data sets, as values for scripts and as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.library.catalogue import DataSet, Model
from kd.library.places import places
from kd.library.sizes import embedding_tables
from kd.store import find, source_of, split_files
from kd.table import NONE, markdown_table

PIECES = {"roberta": "byte-level BPE", "modernbert": "byte-level BPE"}  # the others: WordPiece
WORDS = {"name": "name", "family": "family", "task": "task", "suits": "suits", "installed": "installed",
         "licence": "licence"}  # fmt: skip
COLUMNS = {"layers": "layers", "width": "width", "heads": "heads", "parameters": "parameters", "bytes": "MB (float32)"}
DATA_COLUMNS = {"labels": "labels", "bytes": "MB"}
NOT_COMPARED = ("path", "sources", "files", "from", "date", "notes", "hub_id")


def model_facts(model: Model, store: Path) -> dict[str, Any]:
    """What ``--json`` gives of a model. ``bytes`` are those of float32 weights, installed or not."""
    own = model.architecture
    where, path = installed(model, store) if model.own_weights else ("made by kd", None)
    return {
        "name": model.name, "roles": list(model.roles), "suits": model.suits, "family": own.get("model_type"),
        "layers": own.get("num_hidden_layers"), "width": own.get("hidden_size"),
        "heads": own.get("num_attention_heads"), "feed_forward": own.get("intermediate_size"),
        "vocabulary": own.get("vocab_size"), "vocabulary_of": "the teacher" if model.of_teacher else "its own",
        "positions": own.get("max_position_embeddings"), "tokenizer": tokenizer(model),
        "parameters": model.parameters, "embedding_share": embedding_share(model), "bytes": model.bytes,
        "licence": model.known.licence, "hub_id": model.hub_id,
        "sources": sources(model, store) if model.own_weights else [],
        "installed": where, "path": str(path) if path else None, **noted(path),
    }  # fmt: skip


def data_facts(data: DataSet, store: Path) -> dict[str, Any]:
    where, path = installed(data, store)
    splits = split_files(path) if path else {}
    return {
        "name": data.name, "stored_as": data.stored_as, "task": data.task, "labels": len(data.label_names) or None,
        "label_names": list(data.label_names), "licence": data.known.licence, "hub_id": data.hub_id,
        "sources": sources(data, store), "installed": where, "path": str(path) if path else None,
        "bytes": sum(file.stat().st_size for files in splits.values() for file in files) if splits else None,
        "rows": {split: rows(files) for split, files in splits.items() if files}, **noted(path),
    }  # fmt: skip


def sources(thing: Model | DataSet, store: Path) -> list[str]:
    return [place.address for place in places(thing.wanted(store), thing.known)]


def rows(files: Sequence[Path]) -> int | None:
    """How many there are; None for files that are no parquet."""
    from pyarrow import ArrowInvalid, parquet

    try:
        return sum(int(parquet.ParquetFile(file).metadata.num_rows) for file in files)
    except ArrowInvalid:
        return None


def installed(thing: Model | DataSet, store: Path) -> tuple[str, Path | None]:
    path = find(thing.wanted(store))
    if path is None:
        return "no", None
    return ("store" if store in path.parents else "hub cache"), path


def noted(path: Path | None) -> dict[str, Any]:
    about = source_of(path) if path else {}
    return {key: about.get(key) for key in ("from", "date", "notes", "files")}


def tokenizer(model: Model) -> str | None:
    family = model.architecture.get("model_type")
    if family is None or model.of_teacher:
        return "the teacher's"
    if not model.own_weights:
        return "the data's"
    if model.added:
        return PIECES.get(family, "WordPiece")
    return f"{PIECES.get(family, 'WordPiece')}, {'uncased' if model.known.lower_case else 'cased'}"


def embedding_share(model: Model) -> float | None:
    return round(embedding_tables(model.architecture) / model.parameters, 4) if model.parameters else None


def shown(key: str, value: Any) -> str:
    """A value as people read it."""
    if value is None or value == []:
        return NONE
    if key == "bytes":
        return f"{value / 1e6:,.1f}"
    if key == "embedding_share":
        return f"{100 * value:.0f} %"
    if isinstance(value, Mapping):
        return ", ".join(f"{one} {shown(one, inner)}" for one, inner in value.items()) or NONE
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def overview(facts: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """A row for each: words first, then the figures."""
    words = {key: word for key, word in WORDS.items() if key in facts[0]}
    lines = [[shown(key, one[key]) for key in (*words, *columns)] for one in facts]
    return markdown_table([*words.values(), *columns.values()], lines, left=len(words))


def side_by_side(facts: Sequence[Mapping[str, Any]]) -> str:
    """A column for each."""
    keys = [key for key in facts[0] if key not in ("name", *NOT_COMPARED)]
    names = ["MB" if key == "bytes" else key.replace("_", " ") for key in keys]
    lines = [[name, *(shown(key, one[key]) for one in facts)] for name, key in zip(names, keys, strict=True)]
    return markdown_table(["", *(str(one["name"]) for one in facts)], lines)


def in_full(facts: Mapping[str, Any]) -> str:
    """A line for each fact, and the checksums below each other."""
    width = max(map(len, facts))
    lines = []
    for key in (key for key in facts if key != "files"):
        value = facts[key]
        several = value if isinstance(value, list) and any(len(str(one)) > 30 for one in value) else [value]
        lines.append(f"{key.replace('_', ' '):<{width}}  {shown(key, several[0])}{' MB' if key == 'bytes' else ''}")
        lines += [f"{'':<{width}}  {shown(key, one)}" for one in several[1:]]
    files = facts.get("files") or {}
    return "\n".join([*lines, *(f"{one['sha256']}  {name}  {one['bytes']:,} bytes" for name, one in files.items())])
