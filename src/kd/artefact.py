"""What a run leaves and a user loads: directories with weights as safetensors, config, tokenizer and model card.

kd.json beside them says how the text columns of the training data were called; nothing else needs it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd import heads, intact, quantized_file
from kd.architecture import positions, stored_architecture
from kd.errors import UserError
from kd.export.directory import is_export, read_about
from kd.noise import quiet_transformers
from kd.quantization import Summary
from kd.schemes import Settings
from kd.store import ABOUT, new_directory, said_about, write_text
from kd.tasks import Classification, Decision, Task, restored

BATCH = 32
Text = str | Sequence[str]  # a text, or a pair of texts


@dataclass
class Artefact:
    """A loaded model, float or quantized: ``model`` (a module), ``tokenizer``, ``task``.

    ``text_columns`` has one name, two for a model of pairs, none where it is not known.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    task: Task
    max_length: int
    text_columns: tuple[str, ...] = ()
    decision: Decision = field(default_factory=dict)

    @torch.no_grad()
    def logits(self, texts: Sequence[Text]) -> Tensor:
        """``[N, C]`` for N texts, or pairs ``(first, second)``; each batch padded to its longest."""
        first, second = self.sides(texts)
        found = []
        for start in range(0, len(texts), BATCH):
            encoded = self.tokenizer(
                first[start : start + BATCH], second and second[start : start + BATCH], truncation=True,
                max_length=self.max_length, padding=True, return_tensors="pt",
            )  # fmt: skip
            found.append(self.model(**encoded).logits.float())
        return torch.cat(found) if found else torch.empty(0, len(self.task.outputs))

    def sides(self, texts: Sequence[Text]) -> tuple[list[str], list[str] | None]:
        """The texts, and the second ones of pairs. Raises UserError for what the model was not trained on."""
        pairs = [text for text in texts if not isinstance(text, str)]
        if pairs and (len(pairs) < len(texts) or any(len(pair) != 2 for pair in pairs)):
            raise UserError("Give texts alone, or pairs (first, second) alone.")
        if self.text_columns and texts and len(self.text_columns) != (2 if pairs else 1):
            wanted = "pairs of texts" if len(self.text_columns) == 2 else "single texts"
            raise UserError(
                f"This model was trained on {wanted} ({', '.join(self.text_columns)}): give "
                f"{'pairs (first, second)' if len(self.text_columns) == 2 else 'one text a row'}."
            )
        if not pairs:
            return [str(text) for text in texts], None
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    def predict(self, texts: str | Sequence[Text]) -> list[dict[str, Any]]:
        """One dict a text or pair, as the task describes a prediction: ``label`` and ``probabilities`` by name."""
        return self.task.predict(self, [texts] if isinstance(texts, str) else texts, self.decision)


def save_float(
    directory: Path, model: Any, tokenizer: Any, max_length: int, text_columns: Sequence[str] = ("text",),
    task: Task | None = None,
) -> int:  # fmt: skip
    """A directory that stock transformers loads. Returns the bytes of the weights file."""
    with new_directory(directory) as unfinished:
        model.save_pretrained(unfinished)
        return finish(unfinished, tokenizer, max_length, text_columns, task)


def save_quantized(
    directory: Path, model: Any, tokenizer: Any, max_length: int, settings: Settings,
    summary: Summary, text_columns: Sequence[str] = ("text",), task: Task | None = None,
) -> int:  # fmt: skip
    """A directory that ``kd.load`` loads. Returns the bytes of the weights file."""
    with new_directory(directory) as unfinished:
        quantized_file.save(model, settings, summary, unfinished)
        return finish(unfinished, tokenizer, max_length, text_columns, task)


def finish(directory: Path, tokenizer: Any, max_length: int, text_columns: Sequence[str], task: Task | None) -> int:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(directory)
    about = {"text_columns": list(text_columns)} | ({"task": task.stored()} if task else {})
    weights = directory / "model.safetensors"
    weights.chmod(0o644)  # safetensors makes it readable for its owner alone
    write_text(directory / ABOUT, json.dumps(about | {"sha256": intact.sums(directory)}))
    return weights.stat().st_size


def note_decision(directory: Path, decision: Decision) -> None:
    """Keeps in the artefact what its task found on validation."""
    about = json.loads((directory / ABOUT).read_text(encoding="utf-8"))
    write_text(directory / ABOUT, json.dumps(about | {"decision": dict(decision)}))


def load(directory: str | Path) -> Artefact:
    """Opens ``student/``, ``student-<quant>/`` or ``export/<name>/`` of a run. Raises UserError if it is none."""
    with quiet_transformers():
        return opened(Path(directory).expanduser())


def opened(directory: Path) -> Artefact:
    exported = is_export(directory)
    for name in ("config.json",) if exported else ("config.json", "model.safetensors"):
        if not (directory / name).is_file():
            raise UserError(
                f"{directory} is no model that kd wrote: there is no {name}. Give a student directory of a run, "
                "such as runs/.../student."
            )
    from transformers import AutoTokenizer

    config, about = stored_architecture(directory), said_about(directory)
    settings = None
    if exported:  # whose session checks the files
        intact.refuse_pickles(directory, read_about(directory)["model_files"])
    else:
        intact.refuse_pickles(directory)
        settings = quantized_file.settings_of(directory)
        intact.check(directory, about, required=settings is not None and settings["format_version"] > 1)
    names = [name for _, name in sorted((int(i), name) for i, name in config.get("id2label", {}).items())]
    task = restored(about["task"]) if "task" in about else Classification(names or ["LABEL_0", "LABEL_1"])
    if exported:
        from kd.export.session_model import SessionModel

        model = SessionModel.load(directory)
    elif settings is not None:
        model = quantized_file.load(directory, heads.Auto(task))
    else:
        model, info = heads.Auto(task).from_pretrained(
            directory, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        if info["missing_keys"]:
            raise UserError(
                f"{directory} holds no trained classifier: {', '.join(sorted(info['missing_keys'])[:3])} missing. Its "
                "answers would be random."
            )
        model.eval()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    length = min(int(tokenizer.model_max_length), positions(model.config.to_dict()))
    return Artefact(model, tokenizer, task, length, tuple(about.get("text_columns", ())), about.get("decision", {}))
