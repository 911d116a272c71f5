"""One pass of a teacher over the training rows, as fast as it goes, into the files that kept_signals reads."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from kd.batches import Draw, Numbers
from kd.datamodule import Rows
from kd.kept_signals import HEADS_FIRST, STORED, checksum, entries_of, file_of, of_tokens
from kd.signals import Recorder
from kd.store import rank, write_text

TOKENS = {"cpu": 2048, "cuda": 65536, "mps": 16384}  # of one forward pass
WORKERS = 16  # threads with a batch each; more threads than that share batches
AHEAD = 2  # batches for each of them that wait to be written
SAVED_SECONDS = 5.0  # what a kill may cost


class TooLargeError(Exception):
    """A value that the stored type cannot hold."""


class SignalPass:
    """Computes ``signals`` of all rows of a split. What was done before a kill is not done again.

    Args:
        model: the teacher, in eval mode.
        directory: where the files are to be.
        dtype: in which values are stored, a word of kept_signals.STORED.
        precision: of the training, as Lightning calls it. Where that is bf16-mixed, a copy of the teacher is bfloat16
            whole: casting its weights in every pass, and its states to float32 between, takes almost as long again.
    """

    def __init__(
        self, model: Any, signals: Sequence[str], rows: Rows, directory: Path, dtype: str, precision: str,
        device: torch.device,
    ) -> None:  # fmt: skip
        model = in_bfloat16(model) if precision == "bf16-mixed" else model
        self.recorder = Recorder(model.to(device), signals)
        self.threads = torch.get_num_threads() if device.type == "cpu" else 1
        self.rows, self.directory, self.dtype, self.device = rows, directory, dtype, device
        self.half = precision == "16-mixed"
        self.lengths, logits = rows.lengths_of("teacher"), rows.units.counts["logits"]
        self.counts = {signal: entries_of(signal, self.lengths, logits) for signal in self.recorder.signals}
        self.starts = {signal: np.cumsum([0, *count]) for signal, count in self.counts.items()}

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each file, found by asking the teacher about the shortest row that is asked about at all."""
        asked = np.where(self.rows.units.counts["logits"] > 0, self.lengths, self.lengths.max() + 1)
        found = self.entries([int(np.argmin(asked))], self.recorder)
        return {s: (int(self.counts[s].sum()), *entries.shape[1:]) for s, entries in found.items()}

    @property
    def bytes(self) -> int:
        size = np.dtype(STORED[self.dtype]).itemsize
        return sum(size * int(np.prod(shape)) for shape in self.shapes.values())

    @torch.no_grad()
    def entries(self, rows: Sequence[int], recorder: Recorder) -> dict[str, Tensor]:
        """Of some rows, the entries of one after those of the other, on the CPU, in the stored type.

        Raises TooLargeError where that cannot hold them.
        """
        batch = self.rows[Draw(rows, {})]["teacher"]
        inputs = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(self.device.type, dtype=torch.float16, enabled=self.half):
            found = recorder(**inputs)
        real, made = inputs["attention_mask"].bool(), {}
        for signal, tensor in found.items():
            if signal.partition("/")[0] in HEADS_FIRST:
                tensor = tensor.transpose(1, 2)
            entries = (tensor[real] if of_tokens(signal) else tensor).to(getattr(torch, self.dtype))
            if not bool(torch.isfinite(entries).all()):
                raise TooLargeError(signal)
            made[signal] = entries.cpu()
        return made

    def batches(self, done: Numbers) -> Iterator[list[int]]:
        """The rows that are not done, longest first, as many as TOKENS has room for; rows of no place are too few to
        matter.
        """
        order = np.argsort(-self.lengths, kind="stable")
        order, start = order[done[order] == 0], 0
        while start < len(order):
            size = max(1, TOKENS[self.device.type] // int(self.lengths[order[start]]))
            yield order[start : start + size].tolist()
            start += size

    def computed(self, batches: Iterator[list[int]]) -> Generator[tuple[list[int], dict[str, Tensor]], None, None]:
        """What the teacher makes of each batch, in their order.

        The threads of a CPU work on batches of their own: two of them on one are at most 1.2 times as fast as one.
        """
        workers = min(self.threads, WORKERS)
        if workers == 1:
            yield from ((rows, self.entries(rows, self.recorder)) for rows in batches)
            return
        free: SimpleQueue[Recorder] = SimpleQueue()
        for _ in range(workers):
            free.put(Recorder(with_the_same_weights(self.recorder.model), self.recorder.signals))

        def work(rows: list[int]) -> tuple[list[int], dict[str, Tensor]]:
            recorder = free.get()
            try:
                return rows, self.entries(rows, recorder)
            finally:
                free.put(recorder)

        pool = ThreadPoolExecutor(workers, "teacher", torch.set_num_threads, (self.threads // workers,))
        ahead: deque[Future[tuple[list[int], dict[str, Tensor]]]] = deque()
        try:
            for rows in batches:
                ahead.append(pool.submit(work, rows))
                if len(ahead) > AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(self.threads)  # what it says is the last that any thread set

    def run(self, work: Path) -> None:
        """Computes what is missing in ``work`` and moves the whole files to their directory."""
        work.mkdir(parents=True, exist_ok=True)
        files, done = self.opened(work)
        bar = tqdm(
            total=len(done), initial=int(done.sum()), desc="Teacher signals", unit="row", disable=rank() > 0,
            mininterval=1.0,
        )  # fmt: skip
        pending: list[list[int]] = []
        saved = time.monotonic()
        try:
            with contextlib.closing(self.computed(self.batches(done))) as batches:  # its threads end with an error, too
                for rows, made in batches:
                    self.write(files, rows, made)
                    pending.append(rows)
                    bar.update(len(rows))
                    if time.monotonic() - saved > SAVED_SECONDS:
                        self.save(files, done, pending)
                        saved = time.monotonic()
        finally:
            self.save(files, done, pending)
            bar.close()
        self.publish(work, list(files))

    def opened(self, work: Path) -> tuple[dict[str, Any], Any]:
        """The files, with room for everything, and which rows are done. A file that does not fit is begun anew."""
        path, shapes = work / "done.npy", self.shapes
        begun = path.is_file() and all(file_of(work, signal).is_file() for signal in shapes)
        if not begun:
            for signal, shape in shapes.items():
                open_memmap(file_of(work, signal), "w+", STORED[self.dtype], shape)
                try:
                    allocate(file_of(work, signal))  # a full disk is met here, not as a signal that kills
                except OSError:
                    shutil.rmtree(work)  # or what was taken keeps the disk full
                    raise
            open_memmap(path, "w+", np.uint8, (len(self.lengths),))
        return {signal: np.load(file_of(work, signal), mmap_mode="r+") for signal in shapes}, np.load(path, "r+")

    def write(self, files: dict[str, Any], rows: list[int], made: dict[str, Tensor]) -> None:
        for signal, entries in made.items():
            counts = self.counts[signal]
            values = (entries.view(torch.uint16) if self.dtype == "bfloat16" else entries).numpy()
            if len(files[signal]) == len(counts) and (counts == 1).all():
                files[signal][rows] = values
                continue
            starts, place = self.starts[signal], 0
            for row in rows:
                files[signal][starts[row] : starts[row + 1]] = values[place : place + counts[row]]
                place += counts[row]

    def save(self, files: dict[str, Any], done: Any, pending: list[list[int]]) -> None:
        """First what was computed, then that it was."""
        for file in files.values():
            file.flush()
        for rows in pending:
            done[rows] = 1
        done.flush()
        pending.clear()

    def publish(self, work: Path, signals: Sequence[str]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for signal in signals:
            path = file_of(work, signal)
            about = {"bytes": path.stat().st_size, "crc32": checksum(path)}
            path.replace(file_of(self.directory, signal))
            write_text(file_of(self.directory, signal).with_suffix(".json"), json.dumps(about))
        shutil.rmtree(work)


def with_the_same_weights(model: Any) -> Any:
    """A copy for another thread: a Recorder's hooks are on modules. Weights and buffers are shared."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def in_bfloat16(model: Any) -> Any:
    """A copy whose weights are bfloat16. Buffers stay: rounded angles of rotary positions are wrong by whole tokens."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    return model


def allocate(path: Path) -> None:
    """Takes the room on the disk for all of a file. Raises OSError where there is none."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            error.filename = str(path)
            raise
