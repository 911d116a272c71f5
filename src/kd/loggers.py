"""metrics.csv and Weights & Biases, online if a key is configured."""

from __future__ import annotations

import csv
import json
import netrc
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from kd.errors import UserError
from kd.store import rank, write_text

Mode = Literal["online", "offline", "disabled"]


def has_wandb_key() -> bool:
    """Whether a key is configured, found without a connection."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_mode(mode: str) -> Mode:
    """``online``, ``offline`` or ``disabled``: what ``logger.wandb.mode`` means here.

    ``auto`` is what WANDB_MODE says, else online with a key and offline without.
    """
    said = f"logger.wandb.mode={mode}"
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_wandb_key() else "offline")
        said = f"WANDB_MODE={mode}"
    if mode == "online" and not has_wandb_key():
        raise UserError(
            f"{said}, but no W&B key is configured: run `wandb login`, set WANDB_API_KEY, or take "
            "logger.wandb.mode=offline."
        )
    for known in ("online", "offline", "disabled"):
        if mode == known:
            return known
    raise UserError(f"{said}: known are online, offline, disabled.")


def csv_logger(directory: Path, done: int) -> Any:
    """``metrics.csv``; what an earlier process wrote there of its first ``done`` steps stays."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(save_dir=directory, name="", version="", flush_logs_every_n_steps=100)
    if rank() > 0:
        return logger
    path, kept = directory / "metrics.csv", directory / ".metrics.csv.kept"
    if done and path.is_file() and not kept.is_file():
        path.rename(kept)  # or making the logger's file would remove it
    if done and kept.is_file():
        with kept.open(encoding="utf-8", newline="") as file:
            rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if is_before(row, done)]
        logger.experiment.metrics = rows
        logger.experiment.save()
    kept.unlink(missing_ok=True)
    return logger


def is_before(row: dict[str, str | None], step: int) -> bool:
    """Whether a row is of an earlier step, and whole: the last one may have been cut off."""
    return (row.get("step") or "").isdigit() and None not in row.values() and int(row["step"] or 0) < step


def run_id(directory: Path, stage: str) -> str:
    """The W&B id of a stage: the same one when the run goes on later."""
    path = directory / "wandb-ids.json"
    ids: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stage not in ids:
        ids[stage] = secrets.token_hex(4)
        write_text(path, json.dumps(ids))
    return ids[stage]


def wandb_logger(
    directory: Path, stage: str, config: dict[str, Any], tags: Sequence[str], settings: dict[str, Any]
) -> Any:
    """A W&B run of its own for one stage (``job_type``), with the resolved configuration."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    mode = wandb_mode(settings["mode"])
    run = wandb.init(
        id=run_id(directory, stage), resume="allow" if mode == "online" else None,
        name=f"{stage}-{directory.name}", dir=directory, project=settings["project"], entity=settings["entity"],
        group=settings["group"], job_type=stage, tags=list(tags), config=config, mode=mode,
        settings=wandb.Settings(silent=True, console="off"),
    )  # fmt: skip
    if run.settings.mode == "online":
        print(f"W&B ({stage}): {run.url}")
    return WandbLogger(experiment=run)


class Logs:
    """The loggers of a run. A stage is a W&B run of its own; ``close`` finishes it whatever happened.

    Args:
        output: the run directory.
        config: the resolved configuration; its ``logger`` block says which loggers there are.
        tags: of the W&B runs.
    """

    def __init__(self, output: Path, config: dict[str, Any], tags: Sequence[str]) -> None:
        self.output = output
        self.config = config
        self.tags = list(dict.fromkeys(tags))
        self.chosen = config.get("logger") or {}
        self.wandb: Any = None

    def open(self, stage: str, done: int = 0) -> list[Any]:
        """The loggers for ``teacher`` or ``distil``; an open W&B run is finished first.

        ``done`` steps were logged before, where a training goes on.
        """
        self.close()
        made = []
        if "csv" in self.chosen:
            made.append(csv_logger(self.output if stage == "distil" else self.output / stage, done))
        wandb = self.chosen.get("wandb")
        if wandb and stage == "teacher" and "WANDB_SWEEP_ID" in os.environ:
            print("W&B: an agent's run holds the distillation alone; the teacher's metrics are in teacher/metrics.csv")
        elif wandb and wandb_mode(wandb["mode"]) != "disabled" and rank() == 0:
            self.wandb = wandb_logger(self.output, stage, self.config, self.tags, wandb)
            made.append(self.wandb)
        return made

    def close(self, exit_code: int = 0) -> None:
        if self.wandb is not None:
            import wandb

            wandb.finish(exit_code=exit_code)
        self.wandb = None

    def report(
        self, score: float, header: Sequence[str], rows: Sequence[Sequence[str]], models: dict[str, Any], student: Path
    ) -> None:
        """The report as a table and as summary values, ``score`` for W&B's sweeps; online the student, too."""
        if self.wandb is None:
            return
        import wandb

        run = self.wandb.experiment
        run.log({"report": wandb.Table(columns=list(header), data=[list(row) for row in rows])})
        run.summary["score"] = score
        for name, figures in models.items():
            run.summary.update({f"report/{name}/{key}": value for key, value in figures.items()})
        if wandb_mode(self.chosen["wandb"]["mode"]) == "offline":
            print(f"W&B: kept offline; to send it: wandb sync {self.output / 'wandb'}/offline-run-*")
            return
        made = wandb.Artifact(f"student-{run.id}", type="model")
        made.add_dir(str(student))
        run.log_artifact(made)
