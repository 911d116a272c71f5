"""What there is to export to: the files of conf/export/, and what they need. No runtime is imported."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kd.errors import UserError, nearest


@dataclass(frozen=True)
class Runtime:
    """What a runtime is called, the module that runs its files, those that it takes to write them, and the extra.

    ``compiles``: writing takes a C++ compiler too.
    """

    title: str
    module: str
    modules: tuple[str, ...]
    extra: str
    schemes: tuple[str, ...]
    compiles: bool = False


RUNTIMES = {
    "onnxruntime": Runtime(
        "ONNX Runtime",
        "onnxruntime",
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx",
        ("float32", "int8_dynamic", "int8_static", "int4"),
    ),
    "openvino": Runtime("OpenVINO", "openvino", ("openvino", "nncf"), "openvino", ("float32", "int8_static", "int4")),
    "aoti": Runtime("AOTInductor", "torch", ("torch",), "", ("float32",), compiles=True),
    "executorch": Runtime("ExecuTorch", "executorch", ("executorch",), "executorch", ("float32",)),
}
CALIBRATED = ("int8_dynamic", "int8_static", "int4")
GROUPED = ("int4",)
LOOSEST = {"agreement": 0.99, "score": 0.5}  # an export that is further from its model than this is another model


@dataclass(frozen=True)
class Limits:
    """What an export must reach against the model it was made from, on validation rows; null: not asked.

    Args:
        mean_difference: of logits, absolute, at most.
        agreement: share of equal answers, at least.
        score: points (of the task's own score, times 100) that it may differ by, up or down; of a score where lower is
            better, percent.
    """

    mean_difference: float | None = None
    agreement: float = LOOSEST["agreement"]
    score: float = LOOSEST["score"]


CARRIED = Limits(mean_difference=2e-3, agreement=0.995, score=0.2)


@dataclass(frozen=True)
class Target:
    """A file of conf/export/; ``name`` is the file's.

    Args:
        runtime: one of RUNTIMES.
        scheme: what happens to the weights of a float model. A quantized one is exported as it is, on its own grid,
            to targets with ``scheme: float32`` alone.
        of: the run's artefacts to export, as their directories are called.
        opset: of ONNX files.
        calibration_rows: training rows, to see what layers read; for all schemes but float32.
        group_size: weights with one scale, for int4.
        limits: of the gate.
        carried_limits: of the gate where a quantized model was exported on its own grid.
    """

    name: str
    runtime: str
    scheme: str = "float32"
    of: Sequence[str] = ("student",)
    opset: int = 18
    calibration_rows: int | None = None
    group_size: int | None = None
    limits: Limits = field(default_factory=Limits)
    carried_limits: Limits = CARRIED

    def __post_init__(self) -> None:
        for key in ("limits", "carried_limits"):
            found = getattr(self, key)
            if not isinstance(found, Limits):
                object.__setattr__(self, key, limits(f"export.{self.name}.{key}", found or {}))
        where = f"export.{self.name}"
        if self.runtime not in RUNTIMES:
            raise UserError(f"{where}.runtime={self.runtime}: known are {', '.join(RUNTIMES)}.")
        if self.scheme not in RUNTIMES[self.runtime].schemes:
            raise UserError(
                f"{where}.scheme={self.scheme}: {RUNTIMES[self.runtime].title} takes "
                f"{', '.join(RUNTIMES[self.runtime].schemes)}."
            )
        if self.opset < 17:
            raise UserError(f"{where}.opset={self.opset}: 17 is the oldest, the first with LayerNormalization.")
        for key, schemes in (("calibration_rows", CALIBRATED), ("group_size", GROUPED)):
            if (getattr(self, key) is not None) != (self.scheme in schemes):
                wants = "needs" if self.scheme in schemes else "takes no"
                raise UserError(f"{where}.scheme={self.scheme} {wants} {key}.")

    @property
    def title(self) -> str:
        return RUNTIMES[self.runtime].title


def limits(where: str, stored: dict[str, Any]) -> Limits:
    """Raises UserError for a key that there is not and for limits so loose that they would pass another model."""
    known = [each.name for each in fields(Limits)]
    for key in stored:
        if key not in known:
            raise UserError(f"{where}.{key}: there is no such limit.{nearest(key, known)} Known: {', '.join(known)}.")
    found = Limits(**stored)
    if found.agreement < LOOSEST["agreement"] or found.score > LOOSEST["score"]:
        raise UserError(
            f"{where}: agreement={found.agreement:g} and score={found.score:g} are looser than the loosest, "
            f"{LOOSEST['agreement']:g} and {LOOSEST['score']:g}."
        )
    return found


def target(name: str, stored: dict[str, Any]) -> Target:
    """The target of a file's content. Raises UserError for a key that there is not."""
    known = [each.name for each in fields(Target) if each.name != "name"]
    for key in stored:
        if key not in known:
            raise UserError(
                f"export.{name}.{key}: there is no such key.{nearest(key, known)} Known: {', '.join(known)}."
            )
    return Target(name=name, **stored)


def named_targets(cfg: Any) -> list[Target]:
    """Those that a run's configuration names. Raises UserError for what a target does not take."""
    from kd.architecture import container

    return [target(str(name), node) for name, node in container(cfg.export).items() if isinstance(node, dict)]


def names() -> list[str]:
    """The files of conf/export/."""
    return sorted(path.stem for path in directory().glob("*.yaml"))


def stored_target(name: str) -> Target:
    """The target of that name, as its file says. Raises UserError with the nearest name if there is none."""
    if name not in names():
        raise UserError(f"There is no export target {name!r}.{nearest(name, names())} Known: {', '.join(names())}.")
    import yaml

    return target(name, yaml.safe_load((directory() / f"{name}.yaml").read_text(encoding="utf-8")))


def directory() -> Path:
    from kd.command_line import conf_dir

    return conf_dir() / "export"


def missing(target: Target) -> str | None:
    """What this target lacks here and what brings it; None if it is all there. Imports nothing of it."""
    runtime = RUNTIMES[target.runtime]
    absent = [name for name in runtime.modules if importlib.util.find_spec(name) is None]
    if runtime.compiles and shutil.which(compiler()) is None:
        return f"export={target.name} compiles C++, and there is no {compiler()} here: apt-get install g++, or set CXX."
    if not absent:
        return None
    return f"export={target.name} needs {', '.join(absent)}: pip install 'kd[{runtime.extra}]'"


def compiler() -> str:
    """What torch compiles C++ with, unless told otherwise."""
    return os.environ.get("CXX", "g++")
