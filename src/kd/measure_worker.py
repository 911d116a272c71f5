"""``python -m kd.measure_worker DIRECTORY THREADS INPUT...``: one artefact, called when asked. See measure.py.

A request and its answer are a line of JSON each, on standard input and output. The imports are those of the
artefact's runtime alone, so that the peak memory of the process is what serving it takes: torch only for what kd.load
opens.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.export.directory import is_export
from kd.noise import silence

Inputs = dict[str, NDArray[np.int64]]
Call = Callable[[Inputs], float]

MOST_CALLS = 20  # of a turn
FIRST_WORD = 5  # smaller ids are padding and other special tokens
NAP = 0.005  # seconds
SLEEPS = 0.1  # of a core's time or less
PATIENCE = 1.0  # seconds in which threads are to go to sleep; runtimes spin for some milliseconds after a call


def open_model(directory: Path, threads: int) -> Call:
    """The seconds of one call of the artefact, in torch or in the runtime of an export."""
    if is_export(directory):
        return open_export(directory, threads)
    import torch

    from kd.artefact import load

    torch.set_num_threads(threads)
    model = load(directory).model

    @torch.no_grad()
    def call(inputs: Inputs) -> float:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        start = time.perf_counter()
        model(**tensors)
        return time.perf_counter() - start

    return call


def open_export(directory: Path, threads: int) -> Call:
    from kd.export.session import open_session

    session = open_session(directory, threads)

    def call(inputs: Inputs) -> float:
        read = {name: inputs[name] for name in session.inputs}
        start = time.perf_counter()
        session(read)
        return time.perf_counter() - start

    return call


def made_inputs(names: Sequence[str], lengths: Sequence[int], vocabulary: int) -> Inputs:
    """Random tokens ``[B, L]`` for B rows of the given lengths, the same in every process; L is the longest."""
    real = np.arange(max(lengths)) < np.array(lengths)[:, None]
    words = np.random.default_rng(0).integers(FIRST_WORD, vocabulary, real.shape)
    made = {"input_ids": words * real, "attention_mask": real.astype(np.int64), "token_type_ids": np.zeros_like(words)}
    return {name: made[name] for name in names}


def turn(call: Call, inputs: Inputs, untimed: int, seconds: float) -> dict[str, Any]:
    """Calls ``untimed`` times, then for ``seconds``, at least once; returns when the threads sleep."""
    for _ in range(untimed):
        call(inputs)
    found, end = [call(inputs)], time.perf_counter() + seconds
    while time.perf_counter() < end and len(found) < MOST_CALLS:
        found.append(call(inputs))
    return {"seconds": found, "asleep": fall_asleep()}


def fall_asleep() -> bool:
    """Waits until no thread of this process computes: the next turn, of another process, needs the cores."""
    end = time.perf_counter() + PATIENCE
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(NAP)
        if time.process_time() - used < SLEEPS * (time.perf_counter() - start):
            return True
    return False


def peak_memory() -> int:
    """Bytes. Linux counts in ru_maxrss also what the parent had when it started this process: hence VmHWM there."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(directory: Path, threads: int, names: Sequence[str]) -> None:
    """Answers until standard input ends. A turn: ``lengths``, ``vocabulary``, ``untimed``, ``seconds``."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print what they like
    silence()
    call = open_model(directory, threads)

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    answer(modules=sorted({name.partition(".")[0] for name in sys.modules}))
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["what"] == "memory":
            answer(bytes=peak_memory())
        else:
            inputs = made_inputs(names, asked["lengths"], asked["vocabulary"])
            answer(**turn(call, inputs, asked["untimed"], asked["seconds"]))


if __name__ == "__main__":
    try:
        serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
    except UserError as error:
        sys.exit(str(error))
