"""MODELS.md in the store: what is installed, what it is and how it is used. Written anew whenever that changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd.architecture import FAMILIES
from kd.errors import UserError
from kd.library.catalogue import DataSet, Model, data_sets, models
from kd.library.known import Known
from kd.library.record import LOCKS
from kd.library.shape import shape
from kd.store import complete, locked, source_of, write_text
from kd.table import NONE, markdown_table

PAGE = "MODELS.md"
HEAD = """# What is in this store

Written by kd, which writes it anew whenever a model or a data set comes or goes. `kd models verify` and `kd data
verify` check every file against the sums that were noted when it came.
"""


def installed(store: Path, kind: str) -> list[Path]:
    """The directories with a model (``model``) or data (``dataset``) in them, kd's or anybody's."""
    places = sorted((store / ("models" if kind == "model" else "data")).glob("[!.]*"))
    return [place for place in places if place.is_dir() and complete(kind, place, splits=True)]


def write(store: Path) -> None:
    """Needs a store that can be written."""
    named = {model.name: model for model in models(store) if model.own_weights}
    sections = [section(place, named.get(place.name)) for place in installed(store, "model")]
    rows = [line for line, _ in sections]
    header = ["name", "family", "licence", "suits", "layers", "width", "heads", "parameters", "bytes"]
    parts = [HEAD, "## Models\n", markdown_table(header, rows, left=4) + "\n" if rows else "None.\n"]
    parts += [text for _, text in sections]
    sets = {one.stored_as: one for one in data_sets(store)}
    parts += ["## Data\n", *[data_section(place, sets.get(place.name)) for place in installed(store, "dataset")]]
    with locked(store / LOCKS / "document"):
        write_text(store / PAGE, "\n".join(parts).rstrip() + "\n")


def section(place: Path, model: Model | None) -> tuple[list[str], str]:
    """A row of the table, and what is said below it."""
    about = source_of(place)
    if model is None:
        model = unnamed(place)
    if model is None:
        return [place.name, *[NONE] * 8], f"### {place.name}\n\nOf no family that kd knows.\n"
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    family, *figures = specification(model)
    shown = [place.name, family, model.known.licence, model.suits, *figures, f"{size:,}"]
    where = f"From {about['from']}, {about['date']}." if about else "Put there by hand; nothing is noted of its origin."
    notes = "".join(f"\n{note}." for note in about.get("notes", ()))
    sums = [f"    {one['sha256']}  {name}" for name, one in about.get("files", {}).items()]
    text = [f"### {place.name}\n", where + notes, "", example(place.name, place), "", *sums]
    return shown, "\n".join(text).rstrip() + "\n"


def unnamed(place: Path) -> Model | None:
    """A model that somebody put there under a name that conf/ does not have."""
    try:
        return Model(place.name, (), None, shape(place), Known("unknown"))
    except UserError:
        return None


def specification(model: Model) -> list[str]:
    """Family, layers, width, heads and parameters, as a table has them."""
    own: Mapping[str, Any] = model.architecture
    if not own:
        return [NONE] * 5
    keys = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads")
    assert own["model_type"] in FAMILIES
    return [*(str(own[key]) for key in keys), f"{model.parameters:,}"]


def example(name: str, place: Path) -> str:
    """How it is used, on the command line and in Python."""
    return f"""```bash
kd train teacher={name} student=bert_small     # or student={name}
```

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModel.from_pretrained("{place}")
states = model(**tokenizer("a text", return_tensors="pt")).last_hidden_state
```"""


def data_section(place: Path, data: DataSet | None) -> str:
    about = source_of(place)
    where = f"From {about['from']}, {about['date']}." if about else "Put there by hand; nothing is noted of its origin."
    use = f"`kd train data={data.name}`" if data else f"`kd train data=hub data.id={place}`"
    licence = f" Licence: {data.known.licence}." if data else ""
    return f"### {place.name}\n\n{where}{licence} {use}\n"
