"""AOTInductor: torch compiles the model to a shared library, which runs without its Python code.

The file is a zip with that library in it: a program for one kind of processor and one version of torch. Whoever opens
it runs it, so it is opened only after its checksum was compared, and a checksum says that nothing was changed since,
not who wrote it: open such a file only from someone whose programs you would run.
"""

from __future__ import annotations

import json
import platform
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from kd.errors import UserError
from kd.export.source import Source
from kd.export.target import Target

FILE = "model.pt2"
ABOUT = "wrapper_metadata.json"  # of the library, in the package
PLAIN = re.compile(r"\.(so|cpp|json)$|/(archive_format|archive_version|byteorder|version|serialization_id)$")


def write(source: Source, target: Target, directory: Path) -> list[str]:
    """Writes the model's file, for any batch size and for lengths from 2. Returns its name."""
    inputs, longest = source.inputs, source.artefact.max_length
    example = {name: torch.ones(2, min(7, longest), dtype=torch.long) for name in inputs}
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=longest)
    stored = {"inputs": " ".join(inputs), "torch": torch.__version__, "processor": processor()}
    with torch.no_grad():
        program = torch.export.export(
            source.module, (), kwargs=example, dynamic_shapes={name: {0: batch, 1: length} for name in inputs}
        )
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(directory / FILE), inductor_configs={"aot_inductor.metadata": stored}
        )
    return [FILE]


def processor() -> str:
    """Architecture and vector instructions, such as ``x86_64 AVX512``: what the library was compiled for."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def opened(path: Path) -> tuple[Any, list[str]]:
    """The compiled model and the names of its inputs; its checksum was compared before.

    Raises UserError for a package of another kind of processor or version of torch, and for one with more in it than a
    library and its description, such as something pickled.
    """
    stored = description(path)
    for what, here in (("torch", torch.__version__), ("processor", processor())):
        if stored.get(what) != here:
            raise UserError(
                f"{path} was compiled for {what} {stored.get(what)}, and here it is {here}: export it again on this "
                "machine, or take a target that goes anywhere, such as onnx."
            )
    return torch._inductor.aoti_load_package(str(path)), stored["inputs"].split()


def description(path: Path) -> dict[str, str]:
    """What ``write`` noted in the package. Nothing of it is run."""
    with zipfile.ZipFile(path) as package:
        names = package.namelist()
        for name in names:
            if not PLAIN.search(name):
                raise UserError(f"{path} has {name} in it, which no export writes: it is not opened.")
        about = [name for name in names if name.endswith(ABOUT)]
        if len(about) != 1:
            raise UserError(f"{path} is no package that kd wrote: it has {len(about)} descriptions of a model.")
        stored: dict[str, str] = json.loads(package.read(about[0]))
    return stored
