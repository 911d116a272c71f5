"""From the command line to ``run.train``: composes the configuration and answers typing mistakes.

Only hydra is imported here, so that a misspelled name is answered before torch is loaded.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kd import resume
from kd.architecture import as_conf
from kd.errors import UserError, nearest
from kd.job import FAILURES, end_of_sweep, run_one, started_together
from kd.tables import stem_of

NARROW = 768
PLUGINS = (  # override, its module, the extra that brings it
    ("hydra/sweeper=search", "hydra_optuna_sweeper", "optuna"),
    ("hydra/sweeper=optuna", "hydra_optuna_sweeper", "optuna"),
    ("hydra/launcher=joblib", "hydra_joblib_launcher", "joblib"),
    ("hydra/launcher=submitit_slurm", "hydra_submitit_launcher", "submitit"),
    ("hydra/launcher=submitit_local", "hydra_submitit_launcher", "submitit"),
)
OPEN = "student.overrides"  # takes keys that no file has


def default_lr(student: DictConfig) -> float:
    """The default learning rate: 5e-5, and 1e-4 for students narrower than BERT-base."""
    named = student.architecture
    width = as_conf(student.overrides, named.get("model_type", "")).get("hidden_size", named.hidden_size)
    return 1e-4 if int(width) < NARROW else 5e-5


def data_name(kind: str, *parts: Any) -> str:
    """What a run on somebody's own data is called: ``files-reviews`` for data.train=some/reviews.csv."""
    stems = [re.sub(r"[^\w.]+", "_", stem_of(Path(str(part)))) for part in parts if part is not None]
    return "-".join([kind, *stems])[:60]  # W&B's tags end at 64


OmegaConf.register_new_resolver("default_lr", default_lr, replace=True)
OmegaConf.register_new_resolver("data_name", data_name, replace=True)


def conf_dir() -> Path:
    """``conf/`` beside train.py in a checkout, inside the package in an installed wheel."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def forced(lines: list[str]) -> list[str]:
    """``student.overrides.ANY=VALUE`` as hydra wants it: a key that is new must be forced in."""
    return [f"++{line}" if re.match(rf"{re.escape(OPEN)}[.=]", line) else line for line in lines]


def compose(overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return hydra.compose("config", forced(overrides))


def options(group: str) -> list[str]:
    """The files of a config group, by name."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


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
        if isinstance(value, dict):
            raise UserError(
                f"{override.input_line}: name a file of conf/{key}/, and set its keys singly: {key}.KEY=VALUE."
            )
        if key != "logger" and (isinstance(value, list) or override.is_delete()):
            raise UserError(
                f"{override.input_line}: name one {key} ({', '.join(options(key))}); to run several one after another: "
                f"-m {key}=FIRST,SECOND"
            )
        names = value if isinstance(value, list) else [value]
        for name in names:
            known = options(key)
            nothing = name is None and (key in ("experiment", "logger") or override.is_delete())
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
    for override in overrides:
        key = override.key_or_group
        parent = known.get(key.rpartition(".")[0], (None, False))[0]
        opened = isinstance(parent, dict) and "_target_" in parent and override.is_add()
        opened = opened or key.startswith(f"{OPEN}.")  # kd.overrides looks at those
        if key not in known and not opened:
            hint = elsewhere(key) or nearest(key, known if "." in key else [*top, *known])
            shown = override.input_line or key
            raise UserError(f"{shown}: there is no setting {key!r}.{hint} All settings: --cfg job.")
        if not override.is_delete():
            check_type(key, override.value(), known.get(key, (None, False))[0])


def elsewhere(key: str) -> str:
    """A hint if another file of the same group has such a setting: student.num_layers is student=layers' own."""
    group, _, rest = key.partition(".")
    for name in options(group):
        loaded = OmegaConf.load(conf_dir() / group / f"{name}.yaml")
        keys = [key for key, _, _ in flat(plain(loaded))] if isinstance(loaded, DictConfig) else []
        close = difflib.get_close_matches(rest, keys, n=1, cutoff=0.8)
        if close:
            return f" {group}={name} has {group}.{close[0]}."
    return ""


def check_type(key: str, value: Any, default: Any) -> None:
    if (isinstance(default, str) and default.startswith("${")) or default is None:
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


def check_command_line(lines: list[str]) -> None:
    """Raises UserError for a group, key or value that does not exist, naming the nearest that does."""
    from kd.check import check_values

    try:
        parsed = OverridesParser.create().parse_overrides(forced(lines))
        parsed = [o for o in parsed if not o.key_or_group.startswith("hydra")]
        for single in variants(parsed):
            groups = [o for o in single if is_group(o.key_or_group)]
            check_groups(groups)
            group_lines = [str(o.input_line) for o in groups]
            check_keys([o for o in single if o not in groups], group_lines)
            base = {name for name, _, _ in flat(plain(compose(group_lines)))}
            cfg = compose([str(o.input_line) for o in single])
            for name, _, opened in flat(plain(cfg)):
                if name not in base and not opened and not name.startswith(f"{OPEN}."):
                    raise UserError(f"There is no setting {name!r}.{nearest(name, base)}")
            check_values(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"The command line does not compose: {error}") from error


def resumed(args: Any) -> Path | None:
    """The run directory to go on with, if the command line names one; hydra is told to work there."""
    directory = resume.directory_of(args.overrides)
    if directory is not None:
        if args.multirun:
            raise UserError("resume= goes on with one run: leave -m out, and resume the runs of a sweep one by one.")
        sys.argv.append(f'hydra.run.dir="{directory}"')
    return directory


def check_plugins(overrides: list[str]) -> None:
    """Sweepers and launchers that are extras are there, and none looks for the worst model."""
    for override, module, extra in PLUGINS:
        if override in overrides and importlib.util.find_spec(f"hydra_plugins.{module}") is None:
            raise UserError(f"{override} needs a plugin: pip install -e '.[{extra}]'")
    if "hydra/sweeper=optuna" in overrides and not any("sweeper.direction=" in line for line in overrides):
        raise UserError(
            "hydra/sweeper=optuna minimizes unless told otherwise, and kd's score is the better the higher: take "
            "hydra/sweeper=search, or add hydra.sweeper.direction=maximize."
        )


def check_started_together(args: Any) -> None:
    """Processes that torchrun or srun started side by side must agree on the run directory."""
    count = started_together()
    if count > 1 and args.multirun:
        raise UserError(
            f"{count} processes were started together, each of which would run the whole sweep: leave -m out."
        )
    if count > 1 and not any(line.startswith(("hydra.run.dir=", "resume=")) for line in args.overrides):
        raise UserError(
            f"{count} processes were started together, and each would name a run directory by its own clock: add "
            "hydra.run.dir=runs/NAME."
        )


def main() -> None:
    """Runs the command line. Exit code 2: not understood; 1: a run failed; 143: stopped by SIGTERM."""
    sys.argv[1:] = forced(sys.argv[1:])
    args = get_args_parser().parse_args()
    if not (args.help or args.hydra_help or args.info or args.shell_completion):
        try:
            check_command_line(list(args.overrides))
            check_plugins(args.overrides)
            check_started_together(args)
            directory = resumed(args)
        except UserError as error:
            if "debug=true" in args.overrides:
                traceback.print_exc()
            print(error, file=sys.stderr)
            sys.exit(2)
        if directory is not None and (directory / "report.json").is_file():
            print(f"{directory} is finished, there is nothing to go on with: see its report.md.")
            return
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # hydra lets errors through, instead of printing them
    try:
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(run_one)()
    except Exception as error:
        if not FAILURES:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # such as a search none of whose trials ended well
    sys.exit(end_of_sweep())


if __name__ == "__main__":  # how further ranks of `kd train` start
    main()
