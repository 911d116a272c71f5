"""One job, of a plain command or of a sweep: what it says when it fails, and what it leaves to the next one.

torch is imported only once a job's settings were checked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kd import resume
from kd.errors import OccupiedError, Preempted, UserError
from kd.noise import silence
from kd.store import CLAIMED, rank

FAILED = "error.txt"  # in the directory of a run that failed: why
STOPPED = {143: "SIGTERM", 130: "Ctrl-C"}  # 128 + the signal, what a shell calls such an end
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FIRST_RANK_SECONDS = 15.0  # for it to end its job well, which Lightning cuts off when another rank fails
FAILURES: dict[str, str] = {}  # of this process's jobs: the name of the run directory, and why


class Sweep(Callback):
    """Notes the directory of a sweep, in the process that leads it."""

    directory: ClassVar[Path | None] = None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        Sweep.directory = Path(config.hydra.sweep.dir)


def in_sweep() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def run_one(cfg: DictConfig) -> float | None:
    """One job; returns the score for a sweeper. An error of the user's becomes a paragraph, a defect a traceback.

    In a sweep neither stops the jobs that follow: ``end_of_sweep`` counts them.
    """
    if rank() > 0:  # one rank of a job speaks for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    output = Path(cfg.paths.output)
    try:
        return start(cfg)
    except Preempted as stopped:
        if rank() > 0:  # Lightning kills the first rank at once if another one ends with an error
            sys.exit(0)
        stop(
            output, 128 + stopped.signal_number, f"the state after {stopped.step} steps is kept" if stopped.step else ""
        )
    except KeyboardInterrupt:
        stop(output, 130, "")
    except UserError as error:
        failed(cfg, error, str(error))
    except Exception as error:
        text = full_disk(error, output)
        if text is None and not in_sweep():
            raise
        failed(cfg, error, text)
    finally:
        while CLAIMED:
            CLAIMED.pop().release()
    return None


def stop(output: Path, code: int, kept: str) -> NoReturn:
    """Ends the process, with all that is left of a sweep, and says how to go on."""
    begun = (output / "config.yaml").is_file()
    then = f" To go on: python train.py resume={output}" if begun else " Nothing was begun yet."
    print(f"\nStopped by {STOPPED[code]}{'; ' if kept else ''}{kept}.{then}", file=sys.stderr)
    remove_if_empty(output)
    if in_sweep():
        end_of_sweep()
    sys.exit(code)


def remove_if_empty(output: Path) -> None:
    """Hydra made it, and the day's directory around it; leave none behind."""
    with contextlib.suppress(OSError):
        output.rmdir()
        if output.parent.parent.name == "runs":
            output.parent.rmdir()


def start(cfg: DictConfig) -> float | None:
    from kd.check import check_before_loading

    cfg = own_paths(cfg)
    if cfg.resume is not None:
        lines = list(HydraConfig.get().overrides.task)
        cfg = resume.stored(Path(cfg.resume).expanduser().resolve(), cfg, resume.keys(lines))
    elif in_sweep() and "wandb" in (cfg.logger or ()) and cfg.logger.wandb.group is None:
        cfg.logger.wandb.group = "/".join(Path(HydraConfig.get().sweep.dir).resolve().parts[-2:])  # with the date
    check_before_loading(cfg)
    if in_sweep() and started_together() == 1 and (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1):
        return in_a_process(cfg)
    names = [cfg[key].name for key in ("teacher", "student", "method", "quant", "data")]
    what = "kd: {} to {} by {}, quantization {}, on {}".format(*names)
    job = f"Job {HydraConfig.get().job.num}, {swept()}. " if in_sweep() else ""
    print(f"{job}{what}", flush=True)  # torch takes its seconds
    silence()
    from kd.run import train

    score = train(cfg)
    if rank() == 0:
        (Path(cfg.paths.output) / FAILED).unlink(missing_ok=True)  # of an earlier try
    return score


WORDS = ("pretrained", "random", "teacher", "trim")  # no paths, whatever lies here


def own_paths(cfg: DictConfig) -> DictConfig:
    """The user's files and directories by their whole paths, so that a run can be resumed from anywhere."""
    places = ["teacher.weights", "student.weights", "student.vocabulary"]
    if cfg.data.name == "files":
        places += ["data.train", "data.validation", "data.test"]
    if cfg.data.name == "hub":
        places += ["data.id"]
    for key in places:
        value = OmegaConf.select(cfg, key)
        if isinstance(value, str) and value not in WORDS and Path(value).expanduser().exists():
            OmegaConf.update(cfg, key, str(Path(value).expanduser().resolve()))
    return cfg


def swept() -> str:
    """What sets this job of a sweep apart: the settings for which the command line has several values."""
    lines = [line for line in sys.argv[1:] if "=" in line and not line.startswith("-")]
    several = {o.key_or_group for o in OverridesParser.create().parse_overrides(lines) if o.is_sweep_override()}
    task = list(HydraConfig.get().overrides.task)
    found = [line for line in task if line.lstrip("+~").partition("=")[0] in several]
    return " ".join(found or task)  # a worker of joblib has another command line


def started_together() -> int:
    """How many processes torchrun or srun started for this job."""
    return max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))


def in_a_process(cfg: DictConfig) -> float | None:
    """A sweep's job on several devices, as a command of its own.

    Its ranks are started with the command line of the process that they belong to: with the sweep's, each of them
    would run the whole sweep again. And what goes wrong between ranks ends this job alone.
    """
    output = Path(cfg.paths.output).resolve()
    command = [sys.executable, "-m", "kd.launch", *HydraConfig.get().overrides.task, f'hydra.run.dir="{output}"']
    if "wandb" in (cfg.logger or ()):
        command.append(f'logger.wandb.group="{cfg.logger.wandb.group}"')
    with subprocess.Popen(command) as process:
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            code = process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
    if code in STOPPED:
        sys.exit(code)
    if code == 0:
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        score = float(report["models"]["student"]["validation"][report["select"]])
        return score if report["higher_is_better"] else -score
    reason = output / FAILED
    text = reason.read_text(encoding="utf-8").strip() if reason.is_file() else f"it ended with exit code {code}"
    note_failure(output, f"{swept()}: {text}")
    return None


def note_failure(output: Path, text: str) -> None:
    FAILURES[output.name] = text
    with contextlib.suppress(OSError):  # the disk may be full
        (output / FAILED).write_text(text + "\n", encoding="utf-8")


def failed(cfg: DictConfig, error: Exception, text: str | None) -> None:
    """Says why a job failed and notes it where ``end_of_sweep`` finds it, or ends with exit code 1."""
    if cfg.debug or text is None:
        traceback.print_exception(error)
    text = text or f"{type(error).__name__}: {error}"
    output = Path(cfg.paths.output)
    mine = not isinstance(error, OccupiedError) and rank() == 0
    if in_sweep():
        text = f"{swept()}: {text}"
        print(f"\nRun {output.name} failed. {text}\n", file=sys.stderr)
        FAILURES[output.name] = text
        if mine:
            note_failure(output, text)
        return
    if mine and (output / "config.yaml").is_file():
        note_failure(output, text)
    print(f"\n{text}", file=sys.stderr)
    remove_if_empty(output)
    if rank() > 0:
        time.sleep(FIRST_RANK_SECONDS)
    sys.exit(1)


def full_disk(error: BaseException | None, output: Path) -> str | None:
    """The paragraph for a disk without room, whichever library met it; None for another error."""
    seen: BaseException | None = error
    while seen is not None:
        number = getattr(seen, "errno", None) or re.search(r"os error (\d+)", str(seen))  # safetensors tells in words
        code = int(number[1]) if isinstance(number, re.Match) else number
        if code in FULL:
            where = getattr(seen, "filename", None) or f"a file below {output}"
            begun = (output / "config.yaml").is_file()
            then = f"go on with: python train.py resume={output}" if begun else "start again"
            return f"Writing {where} failed: {os.strerror(code)}. What was complete before is whole. Make room, {then}"
        seen = seen.__cause__ or seen.__context__
    return None


def end_of_sweep() -> int:
    """Says how the sweep went and how to compare its runs. Returns the exit code."""
    directory = Sweep.directory
    if directory is None:
        return 0
    failures = FAILURES | {  # those of other processes are known by what they wrote
        path.parent.name: path.read_text(encoding="utf-8").strip() for path in directory.rglob(FAILED)
    }
    finished = {path.parent for path in directory.rglob("report.json")}
    begun = {path.parent for path in directory.rglob("config.yaml")}
    failures |= {run.name: "it left no report" for run in begun - finished if run.name not in failures}
    print(f"\nSweep: {len(finished)} run{'s' * (len(finished) != 1)} finished, {len(failures)} failed, in {directory}")
    for name, text in sorted(failures.items()):
        print(f"  {name}: {text.splitlines()[0]}")
    search = directory / "optimization_results.yaml"  # of Optuna
    if search.is_file():
        print(f"Best, with what stands in {search}: {OmegaConf.to_yaml(OmegaConf.load(search)).strip()}")
    if finished:
        print(f"Compare them: kd compare {directory}")
    return 1 if failures else 0
