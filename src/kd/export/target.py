"""What there is to export to: the files of conf/export/, and what they need. No runtime is imported."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kd.errors import UserError, nearest
from kd.export.limits import CARRIED, Limits, is_number, is_whole, limits, said

CARRIED_SCHEMES = (  # of conf/quant: those whose grid ONNX has
    "int8_static", "int8_dynamic", "int8_dynamic_trained", "int8_weight_only", "int4_weight_only",
    "int8_dynamic_int4_weight",
)  # fmt: skip


@dataclass(frozen=True)
class Runtime:
    """What a runtime is called, the module that runs its files, those that it takes to write them, and the extra.

    Args:
        schemes: what may happen to a float model's weights on the way.
        carried: schemes of quantized models that go there on their own grid; None for all.
        groups: how many int4 weights may have one scale.
        compiles: writing takes a C++ compiler too.
    """

    title: str
    module: str
    modules: tuple[str, ...]
    extra: str
    schemes: tuple[str, ...]
    carried: tuple[str, ...] | None = ()
    groups: tuple[int, ...] = ()
    compiles: bool = False


RUNTIMES = {
    "onnxruntime": Runtime(
        "ONNX Runtime",
        "onnxruntime",
        ("onnx", "onnxscript", "onnxruntime"),
        "onnx",
        ("float32", "int8_dynamic", "int8_static", "int4"),
        CARRIED_SCHEMES,
        (16, 32, 64, 128, 256),
    ),
    "openvino": Runtime(
        "OpenVINO",
        "openvino",
        ("onnx", "onnxscript", "openvino", "nncf"),
        "openvino",
        ("float32", "int8_static", "int4"),
        CARRIED_SCHEMES,
        (32, 64, 128),
    ),
    "aoti": Runtime("AOTInductor", "torch", ("torch",), "", ("float32",), None, compiles=True),
    "executorch": Runtime("ExecuTorch", "executorch", ("executorch",), "executorch", ("float32",)),
}
CALIBRATED = ("int8_dynamic", "int8_static", "int4")
GROUPED = ("int4",)
OPSETS = range(17, 24)  # 17: the first with LayerNormalization; 23: the newest that torch and ONNX Runtime agree on


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
        int8_share: of the linear layers' weights, at most, that get eight bits in int4: layers that suffer most.
        limits: of the gate.
        carried_limits: of the gate where a quantized model was exported on its own grid; CARRIED if None.

    Raises UserError for a value that is none, and for a key that this runtime or scheme does not read.
    """

    name: str
    runtime: str
    scheme: str = "float32"
    of: Sequence[str] = ("student",)
    opset: int | None = None
    calibration_rows: int | None = None
    group_size: int | None = None
    int8_share: float | None = None
    limits: Limits = field(default_factory=Limits)
    carried_limits: Limits | None = None

    def __post_init__(self) -> None:
        where = f"export.{self.name}"
        if not isinstance(self.runtime, str) or self.runtime not in RUNTIMES:
            raise UserError(f"{where}.runtime={self.runtime}: known are {', '.join(RUNTIMES)}.")
        if self.scheme not in RUNTIMES[self.runtime].schemes:
            raise UserError(
                f"{where}.scheme={self.scheme}: {self.title} takes {', '.join(RUNTIMES[self.runtime].schemes)}."
            )
        object.__setattr__(self, "of", (self.of,) if isinstance(self.of, str) else self.of)
        if not (isinstance(self.of, list | tuple) and self.of and all(isinstance(one, str) for one in self.of)):
            raise UserError(f"{where}.of={said(self.of)}: give the run's artefacts to export, such as [student].")
        self.check_numbers(where)
        for key in ("limits", "carried_limits"):
            found = getattr(self, key)
            if not isinstance(found, Limits | None) or (found is None and key == "limits"):
                object.__setattr__(self, key, limits(f"{where}.{key}", found))
        if self.carried_limits is not None and not self.carries:
            raise UserError(f"{where} takes no carried_limits: no quantized model goes there.")
        if self.carries and self.carried_limits is None:
            object.__setattr__(self, "carried_limits", CARRIED)

    def check_numbers(self, where: str) -> None:
        """Each is there where the target reads it and nowhere else, and is one that the runtime takes."""
        for key, read, by in (
            ("opset", self.runtime == "onnxruntime", f"runtime={self.runtime}"),
            ("calibration_rows", self.scheme in CALIBRATED, f"scheme={self.scheme}"),
            ("group_size", self.scheme in GROUPED, f"scheme={self.scheme}"),
            ("int8_share", self.scheme in GROUPED, f"scheme={self.scheme}"),
        ):
            if (getattr(self, key) is not None) != read:
                raise UserError(f"{where}.{by} {'needs' if read else 'takes no'} {key}.")
        if self.opset is not None and not (is_whole(self.opset) and self.opset in OPSETS):
            raise UserError(f"{where}.opset={self.opset}: it is a whole number, {OPSETS[0]} to {OPSETS[-1]}.")
        if self.calibration_rows is not None and not (is_whole(self.calibration_rows) and self.calibration_rows > 0):
            raise UserError(f"{where}.calibration_rows={self.calibration_rows}: it is a whole number, at least 1.")
        groups = RUNTIMES[self.runtime].groups
        if self.group_size is not None and not (is_whole(self.group_size) and self.group_size in groups):
            raise UserError(f"{where}.group_size={self.group_size}: {self.title} takes {', '.join(map(str, groups))}.")
        if self.int8_share is not None and not (is_number(self.int8_share) and 0 <= self.int8_share < 1):
            raise UserError(f"{where}.int8_share={self.int8_share}: it is a number from 0, for no layer, to below 1.")

    @property
    def carries(self) -> bool:
        """Whether any quantized model goes there, on its own grid."""
        return self.scheme == "float32" and RUNTIMES[self.runtime].carried != ()

    def gate_limits(self, quantized: bool) -> Limits:
        """Of a float model, or of a quantized one."""
        found = self.carried_limits if quantized else self.limits
        assert found is not None, "no quantized model goes there"
        return found

    def refusal(self, scheme: str) -> str | None:
        """Why a model quantized by this scheme of conf/quant does not go there, and what does; None if it goes."""
        if self.scheme != "float32":
            return (
                f"it is quantized already, and {self.name} quantizes a float model. Take student, or a target that "
                "keeps the numbers it is given: onnx or openvino."
            )
        carried = RUNTIMES[self.runtime].carried
        if carried is None or scheme in carried:
            return None
        can = f"models quantized by {', '.join(carried)}" if carried else "no quantized model"
        return f"{self.title} cannot compute with {scheme}: it takes float models and {can}. Take student."

    def fix(self, widths: Iterable[int]) -> str:
        """What to do where ``group_size`` does not divide all of a model's ``widths``, in words."""
        widths = set(widths)
        fitting = [group for group in RUNTIMES[self.runtime].groups if all(width % group == 0 for width in widths)]
        if not fitting:
            return f"No group that {self.title} takes divides all of its widths: export it to int8."
        return f"Set it to {' or '.join(map(str, fitting))}."

    @property
    def title(self) -> str:
        return RUNTIMES[self.runtime].title


def target(name: str, stored: Any) -> Target:
    """The target of a file's content. Raises UserError for a key that there is not."""
    known = [each.name for each in fields(Target) if each.name != "name"]
    if not isinstance(stored, dict) or "runtime" not in stored:
        raise UserError(f"export.{name} needs a runtime: one of {', '.join(RUNTIMES)}.")
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
    from omegaconf import OmegaConf

    return target(name, OmegaConf.to_container(OmegaConf.load(directory() / f"{name}.yaml")))


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
