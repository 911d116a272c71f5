"""``train.py`` as it is, with a clock: ``python -m speed.kd_train OUT KEY=VALUE ...``.

Besides the end of each optimizer step it notes when each line was printed, by which the stages of a run are told
apart, and every tenth of a second the memory that is no mapped file.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
import threading
import time
from pathlib import Path

BORN = time.perf_counter()
ROOT = Path(__file__).parents[2]


class Stamped:
    """Standard output that remembers when each of its lines began."""

    def __init__(self) -> None:
        self.under = sys.stdout
        self.lines: list[tuple[float, str]] = []
        self.open = False  # a line was begun and not ended

    def write(self, text: str) -> int:
        now = time.perf_counter()
        for part in text.splitlines(keepends=True):
            if self.open:
                self.lines[-1] = (self.lines[-1][0], self.lines[-1][1] + part.rstrip("\n"))
            else:
                self.lines.append((now, part.rstrip("\n")))
            self.open = not part.endswith("\n")
        return self.under.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.under, name)


def anonymous_megabytes() -> float:
    """Memory of this process that is backed by no file; 0 where /proc does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "RssAnon" in line), 0.0)


class Memory(threading.Thread):
    """Looks ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_megabytes())
            time.sleep(0.1)


def main() -> None:
    out, sys.argv = Path(sys.argv[1]), [str(ROOT / "train.py"), *sys.argv[2:]]
    sys.stdout = stamped = Stamped()
    memory = Memory()
    memory.start()
    code: object = 0
    importlib.import_module("kd.noise").silence()
    importlib.import_module("kd.run")  # torch and all: within the time of the process, before any that is told apart
    from speed.clock import Clock, peak_megabytes

    clock = Clock()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    measured = {
        "born": BORN, "ticks": clock.ticks, "lines": stamped.lines, "end": time.perf_counter(),
        "megabytes": peak_megabytes(), "anonymous_megabytes": memory.peak,
    }  # fmt: skip
    out.write_text(json.dumps(measured))
    if code:
        raise SystemExit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
