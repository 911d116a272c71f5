"""The README.md of an export: how it is used with its runtime alone, without kd, torch or transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kd.artefact import Artefact
from kd.tasks import (
    Classification,
    Decision,
    FeatureExtraction,
    MaskedLM,
    Multilabel,
    Ordinal,
    Regression,
    Task,
    TokenClassification,
)

RUN = {
    "onnxruntime": (
        "import onnxruntime",
        "options = onnxruntime.SessionOptions()  # int4 weights with float32 arithmetic, as they were checked\n"
        'options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")\n'
        'session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])',
        'logits = session.run(["logits"], inputs)[0]',
    ),
    "openvino": (
        "import openvino",
        'model = openvino.compile_model("model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})',
        "logits = model(inputs)[0]",
    ),
    "aoti": (
        "import torch",
        'model = torch._inductor.aoti_load_package("model.pt2")  # runs the library in it',
        "logits = model(**{name: torch.from_numpy(ids) for name, ids in inputs.items()}).detach().numpy()",
    ),
    "executorch": (
        "import torch\nfrom executorch.runtime import Runtime",
        'method = Runtime.get().load_program("model.pte").load_method("forward")',
        "logits = method.execute([torch.from_numpy(ids) for ids in inputs.values()])[0].numpy()",
    ),
}
SIGMOID = "1 / (1 + np.exp(-logits[0]))"
ENCODED = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def answer(task: Task, tokenizer: Any) -> list[str]:
    """Python that prints what ``kd predict`` calls the label; ``logits``, ``about`` and ``encoded`` are there."""
    names = 'names = about["task"]["label_names"]'
    if isinstance(task, Classification):
        return [names, "print(names[int(logits[0].argmax())])"]
    if isinstance(task, Multilabel):
        return [
            names,
            f"probabilities = {SIGMOID}",
            'above = about["decision"]["threshold"]',
            'print(", ".join(name for name, p in zip(names, probabilities) if p > above) or "(none)")',
        ]
    if isinstance(task, Ordinal):
        return [names, f"passed = np.cumprod({SIGMOID})", "print(names[int((passed > 0.5).sum())])"]
    if isinstance(task, Regression):
        return ['print(f"{logits[0, 0]:.4g}")']
    if isinstance(task, TokenClassification):
        return [
            names,
            "start = 0  # a word's tag stands at its first token",
            "for word in text.split():",
            "    start = text.index(word, start)",
            "    places = [encoded.char_to_token(start + i) for i in range(len(word))]",
            "    place = next((p for p in places if p is not None), None)",
            '    print(word, "O" if place is None else names[int(logits[0, place].argmax())])',
            "    start += len(word)",
        ]
    if isinstance(task, MaskedLM):
        return [
            f"mask = tokenizer.token_to_id({tokenizer.mask_token!r})",
            "for place in [i for i, token in enumerate(encoded.ids) if token == mask]:",
            "    print(tokenizer.decode([int(logits[0, place].argmax())]).strip())",
        ]
    assert isinstance(task, FeatureExtraction)
    return ["print(logits[0])  # the text's vector"]


def snippet(runtime: str, inputs: list[str], artefact: Artefact, task: Task) -> str:
    imported, opened, called = RUN[runtime]
    pair = len(artefact.text_columns) == 2
    example = f"a {artefact.tokenizer.mask_token} text" if isinstance(task, MaskedLM) else "a text"
    lines = [
        "import json", "", "import numpy as np", imported, "from tokenizers import Tokenizer", "",
        'about = json.load(open("kd.json", encoding="utf-8"))',
        'tokenizer = Tokenizer.from_file("tokenizer.json")',
        "tokenizer.no_padding()",
        'tokenizer.enable_truncation(about["max_length"])',
        opened, "",
        f'text = "{example}"', *(['second = "another"'] if pair else []),
        f"encoded = tokenizer.encode(text{', second' if pair else ''})",
        "inputs = {",
        *(f'    "{name}": np.array([encoded.{ENCODED[name]}], dtype=np.int64),' for name in inputs),
        "}", called, *answer(task, artefact.tokenizer),
    ]  # fmt: skip
    return "\n".join(lines)


def card(about: Mapping[str, Any], artefact: Artefact, task: Task, decision: Decision) -> str:
    runtime, figures = about["target"]["runtime"], about["figures"]
    package = about["runtime"].split()[0]
    note = task.note(decision)
    verdict = "It passed its gate" if about["passed"] else f"It FAILED its gate ({'; '.join(about['reasons'])})"
    return (
        f"# {about['name']}\n\n{about['source']['directory']} for {about['runtime']}, "
        f"{about['weights_bytes'] / 1e6:.2f} MB. It reads {', '.join(about['inputs'])}: int64, `[batch, length]`, of "
        f"any size up to {about['max_length']} tokens.\n\n"
        f"With `pip install {package} tokenizers numpy`, in this directory:\n\n"
        f"```python\n{snippet(runtime, list(about['inputs']), artefact, task)}\n```\n\n"
        f"{note + chr(10) * 2 if note else ''}"
        f"{verdict}: over {figures['rows']} validation rows in batches of 1 to 64, held against the model it was made "
        f"from, logits differ by {figures['mean_difference']:.2g} (at most {figures['max_difference']:.2g}), answers "
        f"agree to {100 * figures['agreement']:.2f} %, {task.select} {figures['score']:.4f} "
        f"({figures['score_difference']:+.2f} {'points' if task.higher_is_better else '%'}).\n\n"
        "The licences of the data and of the teacher's weights apply.\n"
    )
