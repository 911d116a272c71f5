"""metrics.csv and Weights & Biases, online if a key is configured."""

from __future__ import annotations

import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kd.errors import UserError


def has_wandb_key() -> bool:
    """Whether a key is configured, found without a connection."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].strip("/")
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def wandb_offline(mode: str) -> bool:
    """What ``logger.wandb.mode`` means here; WANDB_MODE of the environment decides where it says auto."""
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "online" if has_wandb_key() else "offline")
    if mode == "online" and not has_wandb_key():
        raise UserError(
            "logger.wandb.mode=online, but no W&B key is configured: run `wandb login`, set WANDB_API_KEY, or take "
            "logger.wandb.mode=offline."
        )
    return mode != "online"


def csv_logger(directory: Path) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(save_dir=directory, name="", version="", flush_logs_every_n_steps=100)


def wandb_logger(
    directory: Path, stage: str, config: dict[str, Any], tags: Sequence[str], settings: dict[str, Any]
) -> Any:
    """A W&B run of its own for one stage (``job_type``), with the resolved configuration."""
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    run = wandb.init(
        name=f"{stage}-{directory.name}", dir=directory, project=settings["project"], entity=settings["entity"],
        group=settings["group"], job_type=stage, tags=list(tags), config=config,
        mode="offline" if wandb_offline(settings["mode"]) else "online",
        settings=wandb.Settings(silent=True, console="off"),
    )  # fmt: skip
    return WandbLogger(experiment=run)
