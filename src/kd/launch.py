"""From the command line to ``run.train``: checks it, then hands it to hydra.

Only hydra is imported here, so that a misspelled name is answered before torch is loaded.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser

from kd import resume
from kd.command_line import check_command_line, compose, conf_dir, forced, options
from kd.errors import UserError
from kd.job import FAILURES, end_of_sweep, own_paths, run_one, started_together
from kd.library import added

PLUGINS = (  # override, its module, the extra that brings it
    ("hydra/sweeper=search", "hydra_optuna_sweeper", "optuna"),
    ("hydra/sweeper=optuna", "hydra_optuna_sweeper", "optuna"),
    ("hydra/launcher=joblib", "hydra_joblib_launcher", "joblib"),
    ("hydra/launcher=submitit_slurm", "hydra_submitit_launcher", "submitit"),
    ("hydra/launcher=submitit_local", "hydra_submitit_launcher", "submitit"),
)


def resumed(args: Any) -> Path | None:
    """The run directory to go on with, if the command line names one; hydra is told to work there."""
    if args.multirun and any(line.lstrip("+").startswith("resume=") for line in args.overrides):
        raise UserError("resume= goes on with one run: leave -m out, and resume the runs of a sweep one by one.")
    directory = resume.directory_of(args.overrides)
    if directory is not None:
        lines = [str(line) for line in args.overrides if not line.lstrip("+").startswith("hydra")]
        resume.stored(directory, own_paths(compose([*lines, f'paths.output="{directory}"'])), resume.keys(lines))
        sys.argv.append(f'hydra.run.dir="{directory}"')
    return directory


def is_there(plugin: str) -> bool:
    try:
        return importlib.util.find_spec(f"hydra_plugins.{plugin}") is not None
    except ModuleNotFoundError:  # no plugin at all
        return False


def check_plugins(overrides: list[str]) -> None:
    """Sweepers and launchers that are extras are there, and none looks for the worst model."""
    for override, module, extra in PLUGINS:
        if override in overrides and not is_there(module):
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


def help_text() -> str:
    names = "\n".join(
        f"  {group}: {', '.join(options(group))}"
        for group in ("teacher", "student", "method", "quant", "export", "data", "trainer", "logger", "experiment")
    )
    return f"""kd trains a small model from a large one, quantizes it and measures both.

  python train.py teacher=NAME student=NAME method=NAME quant=NAME data=NAME [KEY=VALUE ...]
  python train.py experiment=demo                    a recipe that needs no download
  python train.py data=files data.train=FILE ...     your own text
  python train.py -m method=hard,pkd seed=0,1 ...    a job for every combination; kd compare DIR tabulates them
  python train.py resume=RUN_DIR                     go on with a run that was stopped
  python train.py ... --cfg job                      print every setting, with the files named, and do nothing

What can be named:
{names}

Every setting with its default and a comment: {conf_dir() / "config.yaml"}
"""


def main() -> None:
    """Runs the command line. Exit code 2: not understood; 1: a run failed; 143: stopped by SIGTERM."""
    sys.argv[1:] = forced(sys.argv[1:])
    args = get_args_parser().parse_args()
    if args.help:
        print(help_text())
        return
    if not (args.hydra_help or args.info or args.shell_completion):
        try:
            check_command_line(list(args.overrides), args.multirun)
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
    added.register()
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
