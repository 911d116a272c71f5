"""The training that every program does: the same rows, models, losses, optimizer and schedule."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Work:
    """Read from kd's own configuration, so that a default that changes there changes for all.

    ``directory`` holds train.parquet, validation.parquet, teacher/ and student-SEED/.
    ``pairs`` are the layers [student, teacher] whose [CLS] states PKD compares; none for logit distillation.
    """

    directory: str
    method: str
    teacher: str
    student: str
    rows: int
    epochs: int
    batch: int
    max_length: int
    seed: int
    threads: int
    lr: float
    weight_decay: float
    warmup: float
    clip: float
    hard: float
    soft: float
    temperature: float
    patient: float
    pairs: tuple[tuple[int, int], ...]

    @property
    def steps(self) -> int:
        """Of the optimizer, in all epochs."""
        return -(-self.rows // self.batch) * self.epochs

    def path(self, name: str) -> str:
        return str(Path(self.directory) / name)

    @property
    def student_directory(self) -> str:
        return self.path(f"student-{self.seed}")

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2))


def load(path: Path) -> Work:
    fields = json.loads(path.read_text())
    return Work(**fields | {"pairs": tuple((one, other) for one, other in fields["pairs"])})
