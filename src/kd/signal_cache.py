"""Whether the teacher's signals are computed once and kept, and where: by content, shared by all runs."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from kd.datamodule import TextDataModule
from kd.encoding import tokenizer_key
from kd.errors import UserError
from kd.kept_signals import KeptSignals, defect, file_of, stored_as
from kd.signal_pass import SignalPass, TooLargeError
from kd.store import content_key, locked, rank, write_text
from kd.tasks import Task
from kd.units import RowUnits

FORMAT = 2  # of the files and of how they are computed; part of their key
SHARE_OF_DISK = 0.5  # of the free room, that cache=auto takes at most
LEFT_FREE = 2**28  # bytes
TOO_LARGE = "too-large.txt"  # names a signal with values that the stored type cannot hold


@dataclass(frozen=True)
class CacheSettings:
    """When signals are kept and how they are computed.

    Args:
        when: ``on``, ``off``, or ``auto``: where every row is read once or more, its inputs never change, and the disk
            has room.
        dtype: that they are stored in, one of kept_signals.STORED.
        precision: that they are computed in, as Lightning calls it.
        passes: over the training rows, that the run will make.
    """

    when: str
    dtype: str
    precision: str
    device: torch.device
    passes: float


class SignalCache:
    """The kept signals of one teacher about one training split; ``weights`` is a hash of the teacher's."""

    def __init__(
        self, model: Any, weights: str, data: TextDataModule, task: Task, settings: CacheSettings, name: str,
        cache: Path,
    ) -> None:  # fmt: skip
        self.model, self.rows, self.settings = model, data.splits["train"], settings
        units = self.rows.units
        roles = ("teacher",) if isinstance(units, RowUnits) else tuple(data.tokenizers)  # words that all of them read
        key = content_key(
            format=FORMAT, weights=weights, data=data.key, task=task.stored() | task.settings(),
            tokenizers={role: tokenizer_key(data.tokenizers[role]) for role in roles},
            dtype=settings.dtype, precision=settings.precision, device=settings.device.type,
            torch=torch.__version__, transformers=transformers.__version__,
        )  # fmt: skip
        self.directory = cache / "signals" / f"{name}-{data.data.name}-{key}"

    def kept(self, wanted: Sequence[str]) -> KeptSignals | None:
        """What a training reads in place of a teacher, computed now if need be; None if it computes them in its steps.

        Says which and why. Raises UserError where ``when=on`` cannot be.
        """
        signals = stored_as(wanted)
        reason = self.refusal()
        if reason is None:
            with locked(self.directory, f"Teacher signals: waiting for another run that computes {self.directory}"):
                self.raise_known(signals)
                missing = self.missing(signals)
                work = self.directory.with_name(f".{self.directory.name}.{content_key(signals=missing)}.work")
                made = SignalPass(
                    self.model, missing, self.rows, self.directory, self.settings.dtype, self.settings.precision,
                    self.settings.device,
                ) if missing else None  # fmt: skip
                reason = self.no_room(made.bytes, work) if made else None
                if made and reason is None:
                    print(f"Teacher signals: {', '.join(missing)} of {len(self.rows)} rows, {size(made.bytes)}, "
                          f"are computed once and kept in {self.directory}")  # fmt: skip
                    reason = self.compute(made, work)
        if reason is not None:
            print(f"Teacher signals: computed in every step: {reason}.")
            return None
        if not missing:
            print(f"Teacher signals: computed earlier, from {self.directory}")
        lengths, logits = self.rows.lengths_of("teacher"), self.rows.units.counts["logits"]
        return KeptSignals(self.directory, signals, lengths, logits, self.settings.dtype)

    def compute(self, made: SignalPass, work: Path) -> str | None:
        """Runs the pass and leaves nothing behind that takes room and that no run will go on with.

        Returns what stopped it where the disk was filled since it was asked, and a run with ``when=auto`` does without.
        Raises TooLargeError, which the next run is told of before it computes anything.
        """
        try:
            made.run(work)
        except OSError as error:
            if error.errno != errno.ENOSPC or self.settings.when != "auto":
                raise
            shutil.rmtree(work, ignore_errors=True)
            return f"the disk of {self.directory.parent} was filled while they were written"
        except TooLargeError as error:
            shutil.rmtree(work)
            self.directory.mkdir(parents=True, exist_ok=True)
            write_text(self.directory / TOO_LARGE, str(error))
            raise
        names = {file_of(work, signal).name for signal in made.recorder.signals}
        for other in work.parent.glob(f".{self.directory.name}.*.work"):  # begun for these signals and further ones
            if names & {path.name for path in other.iterdir()}:
                shutil.rmtree(other)
        return None

    def raise_known(self, signals: Sequence[str]) -> None:
        path = self.directory / TOO_LARGE
        if path.is_file() and (signal := path.read_text(encoding="utf-8")) in signals:
            raise TooLargeError(signal)

    def refusal(self) -> str | None:
        """Why they are not kept, whatever their size."""
        settings = self.settings
        if settings.when == "off":
            return "cache=off"
        if self.rows.units.changing:
            return "the hidden words are others in every epoch"  # contradictions.py refuses cache=on
        if settings.when == "auto" and settings.passes < 1:
            return f"the run reads {100 * settings.passes:.0f} % of the training rows"
        return None

    def missing(self, signals: Sequence[str]) -> list[str]:
        """Those that are not there; a broken file is named and deleted."""
        found = []
        for signal in signals:
            wrong = defect(self.directory, signal, read=rank() == 0)
            if wrong:
                print(f"Teacher signals: {wrong}: it is computed anew.")
                file_of(self.directory, signal).unlink(missing_ok=True)
            if wrong is not None:
                found.append(signal)
        return found

    def no_room(self, wanted: int, work: Path) -> str | None:
        """Why so many bytes are not written, of which some may be there already. Raises UserError for when=on."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory.parent).free
        begun = sum(path.stat().st_blocks * 512 for path in work.glob("*")) if work.is_dir() else 0
        needed = max(0, wanted - begun)
        text = f"they take {size(needed)}, and the disk of {self.directory.parent} has {size(free)} left"
        if self.settings.when == "on" and needed > free - LEFT_FREE:
            raise UserError(
                f"cache=on: the teacher's signals do not fit: {text}. Make room, name another directory (KD_CACHE=DIR "
                "or paths.cache=DIR), take fewer rows (data.limit) or a method that compares less, or cache=off."
            )
        return text if self.settings.when == "auto" and needed > SHARE_OF_DISK * free - LEFT_FREE else None


def kept_signals(
    model: Any, weights: str, data: TextDataModule, task: Task, settings: CacheSettings, name: str, cache: Path,
    wanted: Sequence[str],
) -> KeptSignals | None:  # fmt: skip
    """As ``SignalCache.kept``; values too large for float16 are kept in bfloat16, which is said."""
    for dtype in ("float16", "bfloat16") if settings.dtype == "float16" else (settings.dtype,):
        try:
            own = replace(settings, dtype=dtype)
            return SignalCache(model, weights, data, task, own, name, cache).kept(wanted)
        except TooLargeError as error:
            signal = str(error)
            if dtype == "float16":
                print(f"Teacher signals: {signal} has values that float16 cannot hold: kept in bfloat16.")
    raise UserError(f"The teacher's signal {signal} has values that are no finite numbers.")


def size(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
