"""The command line: composed, and slips in it answered with the nearest name.

Only hydra is imported here, so that a misspelled name is answered before torch is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd.architecture import as_conf
from kd.choices import OR_A_WORD
from kd.errors import UserError, nearest
from kd.library import added
from kd.schedules import KEYS
from kd.tables import stem_of

NARROW = 768
LONG = 40  # letters of a name in a path
SEVERAL = ("logger", "quant", "export")  # groups of which a list can be named
OPEN = re.compile(r"student\.overrides(\.|$)|method\.\w+\.(weight|temperature)_schedule(\.|$)")  # keys that no file has


def default_lr(student: DictConfig) -> float:
    """The default learning rate: 5e-5, and 1e-4 for students narrower than BERT-base."""
    named = student.architecture
    width = as_conf(student.overrides, named.get("model_type", "")).get("hidden_size", named.hidden_size)
    return 1e-4 if int(width) < NARROW else 5e-5


def data_name(kind: str, *parts: Any) -> str:
    """What a run on somebody's own data is called: ``files-reviews`` for data.train=some/reviews.csv."""
    stems = [re.sub(r"[^\w.]+", "_", stem_of(Path(str(part)))) for part in parts if part is not None]
    return "-".join([kind, *stems])[:60]  # W&B's tags end at 64


def joined(*, _parent_: DictConfig) -> str:
    """The blocks of a group of which several can be named, as one word: ``int8+int4``; none: ``none``."""
    names = [str(key) for key, value in plain(_parent_).items() if isinstance(value, dict)]
    word = "+".join(names) or "none"
    return word if len(word) <= LONG else f"{names[0]}+{len(names) - 1}"


OmegaConf.register_new_resolver("joined", joined, replace=True)
OmegaConf.register_new_resolver("default_lr", default_lr, replace=True)
OmegaConf.register_new_resolver("data_name", data_name, replace=True)


def conf_dir() -> Path:
    """``conf/`` beside train.py in a checkout, inside the package in an installed wheel."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def forced(lines: list[str]) -> list[str]:
    """``student.overrides.ANY=VALUE`` as hydra wants it: a key that is new must be forced in."""
    return [f"++{line}" if OPEN.match(line.partition("=")[0]) and "=" in line else line for line in lines]


def compose(overrides: list[str]) -> DictConfig:
    added.register()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", forced(overrides))


def options(group: str) -> list[str]:
    """The files of a config group, by name, and what was added to the store under such a name."""
    return sorted([*(path.stem for path in (conf_dir() / group).glob("*.yaml")), *added.names(group)])


def flat(node: Any, prefix: str = "", opened: bool = False) -> Iterator[tuple[str, Any, bool]]:
    """``(dotted key, value, is it an argument of a _target_)`` for every leaf and every inner node."""
    for key, value in node.items():
        name = f"{prefix}{key}"
        yield name, value, opened
        if isinstance(value, dict):
            yield from flat(value, f"{name}.", "_target_" in value)


def is_group(key: str) -> bool:
    return (conf_dir() / key).is_dir()


def variants(overrides: list[Override]) -> Iterator[list[Override]]:
    """The overrides of single runs that together hold every choice of a sweep."""
    parser = OverridesParser.create()
    choices = []
    for override in overrides:
        if override.is_choice_sweep():
            lines = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
            choices.append(parser.parse_overrides(lines))
        elif not override.is_sweep_override():
            choices.append([override])
    for i in range(max((len(choice) for choice in choices), default=1)):
        yield [choice[min(i, len(choice) - 1)] for choice in choices]


def check_groups(overrides: list[Override]) -> None:
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if key == "model":
            raise UserError(f"{override.input_line}: name the two models, teacher={value} or student={value}.")
        if isinstance(value, dict):
            raise UserError(
                f"{override.input_line}: name a file of conf/{key}/, and set its keys singly: {key}.KEY=VALUE."
            )
        if key not in SEVERAL and (isinstance(value, list) or override.is_delete()):
            raise UserError(
                f"{override.input_line}: name one {key} ({', '.join(options(key))}); to run several one after another: "
                f"-m {key}=FIRST,SECOND"
            )
        names = value if isinstance(value, list) else [value]
        twice = [str(name) for i, name in enumerate(names) if name in names[:i]]
        if twice:
            raise UserError(f"{override.input_line}: {twice[0]} is named twice.")
        for name in names:
            known = options(key)
            nothing = name is None and (key in ("experiment", "logger", "export") or override.is_delete())
            if not nothing and str(name) not in known:
                raise UserError(
                    f"{key}={name}: there is no {key} of that name.{nearest(str(name), known)} "
                    f"Known: {', '.join(known)}."
                )


def check_keys(overrides: list[Override], groups: list[str]) -> None:
    """Every key exists and its value has the type of the default."""
    base = plain(compose(groups))
    known = {name: (value, opened) for name, value, opened in flat(base)}
    top = [name for name in known if "." not in name]
    named = {override.key_or_group for override in overrides}
    for override in overrides:
        key = override.key_or_group
        for other in named if re.fullmatch(r"quant\.\w+", key) else ():
            if re.fullmatch(rf"quant\.\w+\.{key[6:]}", other):
                raise UserError(f"{key} is for every scheme, and {other} for one: give each scheme its own.")
        parent = known.get(key.rpartition(".")[0], (None, False))[0]
        opened = isinstance(parent, dict) and "_target_" in parent and override.is_add()
        opened = opened or bool(OPEN.match(key))  # kd.overrides and kd.schedules look at those
        if key not in known and not opened:
            hint = of_term(key, known) or elsewhere(key) or nearest(key, known if "." in key else [*top, *known])
            shown = override.input_line or key
            raise UserError(f"{shown}: there is no setting {key!r}.{hint} All settings: --cfg job.")
        if not (override.is_delete() or takes_null(override, groups)):
            check_type(key, override.value(), known.get(key, (None, False))[0])
            for name, (value, _) in known.items():  # quant.KEY goes to every scheme
                if key.startswith("quant.") and re.fullmatch(rf"quant\.\w+\.{key[6:]}", name):
                    check_type(key, override.value(), value)


def takes_null(override: Override, groups: list[str]) -> bool:
    """Whether null is given where it is the default, and only an experiment says otherwise."""
    if override.value() is not None:
        return False
    without = plain(compose([line for line in groups if not line.startswith("experiment=")]))
    return any(name == override.key_or_group and value is None for name, value, _ in flat(without))


def of_term(key: str, known: Collection[str]) -> str:
    """A hint for a slip in a setting of a loss term that is there, schedules included."""
    term = key.rpartition(".")[0]
    if not key.startswith("method.") or f"{term}._target_" not in known:
        return ""
    own = [name for name in known if name.startswith(f"{term}.") and not name.endswith("_")]
    own += [f"{term}.{name}" for name, attribute in KEYS.items() if f"{term}.{attribute}" in own]
    return (
        nearest(key.rpartition(".")[2], [name.rpartition(".")[2] for name in own]) or f" {term} has {', '.join(own)}."
    )


def elsewhere(key: str) -> str:
    """A hint if another file of the same group has such a setting: student.num_layers is student=layers' own."""
    group, _, rest = key.partition(".")
    having: dict[str, list[str]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        name, loaded = path.stem, OmegaConf.load(path)
        keys = [key for key, _, _ in flat(plain(loaded))] if isinstance(loaded, DictConfig) else []
        for close in difflib.get_close_matches(rest, keys, n=1, cutoff=0.8):
            having.setdefault(close, []).append(f"{group}={name}")
    if not having:
        return ""
    close = difflib.get_close_matches(rest, having, n=1, cutoff=0.0)[0]
    more = " For other students it is student.overrides.num_hidden_layers." if key == "student.num_layers" else ""
    return f" {', '.join(having[close])} {'have' if len(having[close]) > 1 else 'has'} {group}.{close}.{more}"


def check_type(key: str, value: Any, default: Any) -> None:
    if (isinstance(default, str) and default.startswith("${")) or default is None:
        return
    if key in OR_A_WORD and isinstance(value, str):  # check_values looks at it
        return
    wanted: tuple[type, ...] = (type(default),)
    word = {bool: "true or false", int: "a whole number", float: "a number", dict: "a group of settings"}
    if isinstance(default, float):
        wanted = (float, int)
    if type(default) in word and (not isinstance(value, wanted) or (type(value) is bool) != (wanted[0] is bool)):
        raise UserError(f"{key}={value}: {key} is {word[type(default)]}, its default is {str(default).lower()}.")


def plain(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(container, dict)
    return container  # type: ignore[return-value]


def parsed_lines(lines: list[str], multirun: bool) -> list[Override]:
    """Raises UserError for what is no override, and for several values where there is one run."""
    try:
        parsed = OverridesParser.create().parse_overrides(forced(lines))
    except HydraException as error:
        broken = str(error).splitlines()[0]
        raise UserError(
            f"The command line does not compose: {broken}. Settings are KEY=VALUE without blanks; a list or a text "
            "with blanks stands in quotes: 'student.keep=[1,3,5]'."
        ) from error
    several = [o for o in parsed if o.is_sweep_override()]
    if several and not multirun:
        raise UserError(
            f"{several[0].input_line} gives several values: -m runs one job for each (python train.py -m ...); one "
            f"value with a comma in it stands in quotes: '{several[0].key_or_group}=\"A,B\"'."
        )
    return [o for o in parsed if not o.key_or_group.startswith("hydra")]


def check_command_line(lines: list[str], multirun: bool = True) -> None:
    """Raises UserError for a group, key or value that does not exist, naming the nearest that does."""
    from kd.check import check_values

    parsed = parsed_lines(lines, multirun)
    try:
        for single in variants(parsed):
            groups = [o for o in single if is_group(o.key_or_group)]
            check_groups(groups)
            group_lines = [str(o.input_line) for o in groups]
            check_keys([o for o in single if o not in groups], group_lines)
            base = {name for name, _, _ in flat(plain(compose(group_lines)))}
            cfg = compose([str(o.input_line) for o in single])
            for name, _, opened in flat(plain(cfg)):
                if name not in base and not opened and not OPEN.match(name):
                    raise UserError(f"There is no setting {name!r}.{nearest(name, base)}")
            check_values(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"The command line does not compose: {error}") from error
