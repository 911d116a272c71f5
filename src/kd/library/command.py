"""``kd models`` and ``kd data``: what there is, and getting, checking, comparing and removing it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kd.errors import UserError
from kd.library.catalogue import DataSet, Model, data_named, data_sets, model_named, models
from kd.library.listing import COLUMNS, DATA_COLUMNS, data_facts, in_full, model_facts, overview, side_by_side
from kd.store import Wanted, find, store_directory

Action = Callable[[argparse.Namespace, Path], None]


def run(arguments: argparse.Namespace) -> None:
    """Raises UserError for what cannot be done; exits with 1 if something is not as it was noted."""
    if arguments.action is None:
        return arguments.parser.print_help()  # type: ignore[no-any-return]
    actions = MODELS if arguments.command == "models" else DATA
    return actions[arguments.action](arguments, store_directory())


def say(facts: Any, as_json: bool, text: Callable[[], str]) -> None:
    print(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else text())


def list_models(arguments: argparse.Namespace, store: Path) -> None:
    facts = [model_facts(model, store) for model in models(store)]
    legend = (
        f"\nStore: {store}. Parameters are the encoder's, computed from the architecture; installed or not, MB are of "
        "float32.\ndistilbert_small and _tiny: with 30,522 words, else as many as the teacher has. layers: some of the "
        "teacher's.\nMore on one: kd models show NAME. Into the store: kd models download NAME"
    )
    say(facts, arguments.json, lambda: overview(facts, COLUMNS) + legend)


def list_data(arguments: argparse.Namespace, store: Path) -> None:
    facts = [data_facts(data, store) for data in data_sets(store)]
    legend = f"\nStore: {store}. Your own: kd data add NAME FILE, or kd train data=files data.train=FILE"
    say(facts, arguments.json, lambda: overview(facts, DATA_COLUMNS) + legend)


def show_model(arguments: argparse.Namespace, store: Path) -> None:
    from kd.library.document import example

    model = model_named(arguments.name, store)
    facts = model_facts(model, store)
    place = Path(facts["path"] or model.wanted(store).directory)
    pins = {"hub": model.known.hub, "archive": model.known.archived}
    facts["pinned"] = [f"{sha256} {name} ({kind})" for kind, sums in pins.items() for name, sha256 in sums.items()]
    more = f"\n\n{example(model.name, place)}" if model.own_weights else ""
    say(facts, arguments.json, lambda: in_full(facts) + more)


def show_data(arguments: argparse.Namespace, store: Path) -> None:
    facts = data_facts(data_named(arguments.name, store), store)
    more = f"\n\nkd train data={arguments.name} teacher=minilm_l6 student=layers"
    say(facts, arguments.json, lambda: in_full(facts) + more)


def compare_models(arguments: argparse.Namespace, store: Path) -> None:
    facts = [model_facts(model_named(name, store), store) for name in arguments.name]
    say(facts, arguments.json, lambda: side_by_side(facts))


def compare_data(arguments: argparse.Namespace, store: Path) -> None:
    facts = [data_facts(data_named(name, store), store) for name in arguments.name]
    say(facts, arguments.json, lambda: side_by_side(facts))


def download_models(arguments: argparse.Namespace, store: Path) -> None:
    chosen = [model_named(name, store) for name in arguments.name]
    roles = [role for role in ("teacher", "student") if getattr(arguments, f"all_{role}s")]
    own = [model for model in models(store) if model.own_weights and not model.added]
    chosen += [model for model in own if model.suits in roles or (roles and model.suits == "either")]
    if not chosen:
        raise UserError(
            "Name models to download (kd models list has the names), or give --all-teachers, --all-students."
        )
    for model in chosen:
        if not model.own_weights:
            raise UserError(f"{model.name} has no weights to download: kd makes it for a run.")
    download(list(dict.fromkeys(model.name for model in chosen)), chosen, arguments, store)


def download_data(arguments: argparse.Namespace, store: Path) -> None:
    chosen = [data_named(name, store) for name in arguments.name]
    chosen += [data for data in data_sets(store) if arguments.all and data.hub_id]
    if not chosen:
        raise UserError("Name data sets to download (kd data list has the names), or give --all.")
    download(list(dict.fromkeys(data.name for data in chosen)), chosen, arguments, store)


def download(names: list[str], things: Any, arguments: argparse.Namespace, store: Path) -> None:
    """One after another; what fails does not keep the others away."""
    from kd.library.installation import install

    failed = []
    for name in names:
        thing = next(one for one in things if one.name == name)
        wanted = thing.wanted(store)
        here = find(wanted)
        if here is not None:  # in the store, or in the hub's cache, which runs find as well
            print(f"{name} is here already: {here}")
            continue
        try:
            print(f"{name} is here: {install(wanted, arguments.new_checksums)}")
        except UserError as error:
            failed.append(str(error))
    if failed:
        raise UserError("\n".join(failed))


def verify_models(arguments: argparse.Namespace, store: Path) -> None:
    from kd.library.document import installed
    from kd.library.verification import verified_model

    named = [model_named(name, store).wanted(store).directory for name in arguments.name]
    verify(named or installed(store, "model"), arguments.json, verified_model)


def verify_data(arguments: argparse.Namespace, store: Path) -> None:
    from kd.library.document import installed
    from kd.library.verification import verified_data

    named = [data_named(name, store).wanted(store).directory for name in arguments.name]
    verify(named or installed(store, "dataset"), arguments.json, verified_data)


def verify(places: list[Path], as_json: bool, look: Callable[[Path], tuple[bool, str]]) -> None:
    found = {place.name: look(place) for place in places}
    facts = [{"name": name, "right": right, "said": said} for name, (right, said) in found.items()]
    lines = [f"{name}: {'' if right else 'WRONG: '}{said}" for name, (right, said) in found.items()]
    say(facts, as_json, lambda: "\n".join(lines) or "There is nothing in the store.")
    if not all(right for right, _ in found.values()):
        sys.stdout.flush()
        sys.exit(1)


def remove_models(arguments: argparse.Namespace, store: Path) -> None:
    things = {model.name: model for model in models(store)}
    remove([there("model", name, things, store) for name in arguments.name], store)


def remove_data(arguments: argparse.Namespace, store: Path) -> None:
    things = {data.name: data for data in data_sets(store)}
    remove([there("dataset", name, things, store) for name in arguments.name], store)


def there(kind: str, name: str, things: Mapping[str, Model | DataSet], store: Path) -> Wanted:
    """What has that name, or lies in the store under it: a broken one has no other."""
    by_hand = Wanted(kind, name, None, store)
    if name not in things and name == Path(name).name and by_hand.directory.is_dir():
        return by_hand
    return (model_named if kind == "model" else data_named)(name, store).wanted(store)


def remove(things: Sequence[Wanted], store: Path) -> None:
    from kd.library import installation

    for wanted in things:
        size = installation.remove(wanted)
        print(f"{wanted.name} is removed from {store}, {size / 1e6:,.1f} MB.")


def add_model(arguments: argparse.Namespace, store: Path) -> None:
    from kd.library.addition import add

    place, shape = add(arguments.name, Path(arguments.path).expanduser(), store, arguments.licence)
    what = f"{shape['model_type']}, {shape['num_hidden_layers']} layers, {shape['hidden_size']} wide"
    print(f"{arguments.name} ({what}) is in {place}: kd train teacher={arguments.name} ...")


def add_data(arguments: argparse.Namespace, store: Path) -> None:
    from kd.library.data_addition import add_data as put

    path = Path(arguments.path).expanduser()
    place = put(arguments.name, path, store, arguments.task, arguments.text, arguments.label)
    print(f"{arguments.name} is in {place}: kd train data={arguments.name} ...")


def convert_model(arguments: argparse.Namespace, _: Path) -> None:
    from kd.library.conversion import convert_directory

    directory = Path(arguments.path).expanduser()
    out = Path(arguments.out).expanduser() if arguments.out else directory.with_name(f"{directory.name}-converted")
    print(f"{convert_directory(directory, out, arguments.lower_case)}\nIt is in {out}: teacher.weights={out}")


MODELS: dict[str, Action] = {
    "list": list_models, "show": show_model, "download": download_models, "verify": verify_models,
    "remove": remove_models, "add": add_model, "compare": compare_models, "convert": convert_model,
}  # fmt: skip
DATA: dict[str, Action] = {
    "list": list_data, "show": show_data, "download": download_data, "verify": verify_data, "remove": remove_data,
    "add": add_data, "compare": compare_data,
}  # fmt: skip
