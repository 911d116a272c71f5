"""One job, of a plain command or of a sweep: what it says when it fails, and what it leaves to the next one.

torch is imported only once a job's settings were checked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from kd import resume
from kd.errors import Preempted, UserError
from kd.noise import silence
from kd.store import CLAIMED, rank

FAILED = "error.txt"  # in the directory of a sweep's job that failed, also of one in another process
SIGTERM_CODE = 143  # 128 + 15, what a shell calls the end by SIGTERM
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What Lightning sets for the ranks of a job and would find set by the job before.
RANKS = (
    "MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED", "PL_SEED_WORKERS",
    "OMP_NUM_THREADS",
)  # fmt: skip


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
        print(
            f"\nStopped by SIGTERM; the state after {stopped.step} steps is kept. To go on: "
            f"python train.py resume={output}", file=sys.stderr,
        )  # fmt: skip
        sys.exit(SIGTERM_CODE)
    except UserError as error:
        failed(cfg, error, str(error))
    except Exception as error:
        text = full_disk(error, output)
        if text is None and not in_sweep():
            raise
        failed(cfg, error, text)
    return None


def start(cfg: DictConfig) -> float | None:
    from kd.check import check_before_loading

    if cfg.resume is not None:
        lines = [line.lstrip("+~").partition("=")[0] for line in HydraConfig.get().overrides.task]
        cfg = resume.stored(Path(cfg.resume).expanduser().resolve(), cfg, [line for line in lines if line != "resume"])
    elif in_sweep() and "wandb" in (cfg.logger or ()) and cfg.logger.wandb.group is None:
        cfg.logger.wandb.group = Path(HydraConfig.get().sweep.dir).name
    check_before_loading(cfg)
    names = [cfg[key].name for key in ("teacher", "student", "method", "quant", "data")]
    print("kd: {} to {} by {}, quantization {}, on {}".format(*names), flush=True)  # torch takes its seconds
    silence()
    from kd.run import train

    with own_process_state(Path(cfg.paths.output)):
        return train(cfg)


@contextlib.contextmanager
def own_process_state(output: Path) -> Iterator[None]:
    """What a job on several devices changes in its process is undone when it ends, for the next job of a sweep.

    Further ranks are started with ``sys.argv`` and the run directory: here, those of this job. With the sweep's own
    command line each of them would run the whole sweep again.
    """
    import torch

    before = {name: os.environ.get(name) for name in RANKS}
    threads, arguments = torch.get_num_threads(), sys.argv
    if in_sweep():
        sys.argv = [arguments[0], *HydraConfig.get().overrides.task]
        hydra_node: Any = HydraConfig.get()
        with read_write(hydra_node), open_dict(hydra_node):
            hydra_node.run.dir = str(output.resolve())
    try:
        yield
    finally:
        sys.argv = arguments
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        torch.set_num_threads(threads)
        while CLAIMED:
            CLAIMED.pop().release()


def failed(cfg: DictConfig, error: Exception, text: str | None) -> None:
    """Says why a job failed and notes it where ``end_of_sweep`` or the exit code finds it."""
    if cfg.debug or text is None:
        traceback.print_exception(error)
    text = text or f"{type(error).__name__}: {error}"
    output = Path(cfg.paths.output)
    if not in_sweep():
        print(f"\n{text}", file=sys.stderr)
        with contextlib.suppress(OSError):
            output.rmdir()  # hydra made it; leave none behind that is empty
        sys.exit(1)
    print(f"\nRun {output.name} failed: {text}\n", file=sys.stderr)
    with contextlib.suppress(OSError):  # the disk may be full
        (output / FAILED).write_text(text + "\n", encoding="utf-8")


def full_disk(error: BaseException | None, output: Path) -> str | None:
    """The paragraph for a disk without room, whichever library met it; None for another error."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if getattr(seen, "errno", None) in FULL or any(part in text for part in ("StorageFull", "No space left")):
            where = getattr(seen, "filename", None) or f"below {output}, or in the cache"
            reason = os.strerror(seen.errno) if isinstance(seen, OSError) and seen.errno else "No space left on device"
            return (
                f"Writing failed: {reason} ({where}). Files that were complete before are whole. Make room, then go on "
                f"with: python train.py resume={output}"
            )
        seen = seen.__cause__ or seen.__context__
    return None


def end_of_sweep() -> int:
    """Says how the sweep went and how to compare its runs. Returns the exit code."""
    directory = Sweep.directory
    if directory is None:
        return 0
    failures = sorted(directory.glob(f"*/{FAILED}"))
    finished = len(list(directory.glob("*/report.json")))
    print(f"\nSweep: {finished} runs finished, {len(failures)} failed, in {directory}")
    for path in failures:
        print(f"  {path.parent.name}: {path.read_text(encoding='utf-8').strip().splitlines()[0]}")
    if finished:
        print(f"Compare them: kd compare {directory}")
    return 1 if failures else 0
