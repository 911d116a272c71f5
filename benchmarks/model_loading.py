"""Time and memory of loading a model by name: python benchmarks/model_loading.py bert_large_wwm [--store DIR]

Loads what the store has, or makes random weights of the real size first, in the store that is named. The model is
loaded in a process of its own; its peak memory counts from where Python, torch and transformers are imported. Weights
are mapped, so that most of them come into memory when they are used.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from kd.library.catalogue import Model, model_named  # noqa: E402
from kd.noise import silence  # noqa: E402
from kd.store import weights_file  # noqa: E402

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *".,!?'-", *"abcdefghijklmnopqrstuvwxyz0123456789"]


def make(model: Model, directory: Path) -> None:
    """Random weights of a BERT, with a tokenizer of as many words as it has embeddings."""
    from transformers import AutoConfig, AutoModel

    from kd.architecture import as_transformers

    AutoModel.from_config(AutoConfig.for_model(**as_transformers(model.architecture))).save_pretrained(directory)
    pieces = [*WORDS, *(f"##{piece}" for piece in WORDS[11:])]
    words = [*pieces, *(f"word{i}" for i in range(model.architecture["vocab_size"] - len(pieces)))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    kind = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (directory / "tokenizer_config.json").write_text(json.dumps(kind))


def load(directory: Path) -> None:
    """Prints what loading cost, and what it cost until all weights were used once."""
    import torch
    from transformers import BertForSequenceClassification  # noqa: F401  # not to be counted

    from kd import demo
    from kd.memory import measured
    from kd.models import load_model
    from kd.noise import silence_transformers
    from kd.tasks import Classification

    silence_transformers()
    with measured() as used:
        loaded = load_model(directory, Classification(demo.LABELS))
        peak = loaded.cost.peak_bytes
        with torch.no_grad():
            loaded.model(input_ids=torch.arange(8)[None])
            _ = [weight.sum() for weight in loaded.model.parameters()]
    print(json.dumps({"seconds": loaded.cost.seconds, "loaded": peak, "used": used.peak_bytes}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--store", type=Path, help="default: one that is deleted afterwards")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    silence()
    if arguments.load:
        return load(arguments.load)
    with tempfile.TemporaryDirectory() as temporary:
        store = arguments.store or Path(temporary)
        model = model_named(arguments.name, store)
        directory = model.wanted(store).directory
        weights = weights_file(directory)
        if weights is None:
            make(model, directory)
            weights = weights_file(directory)
        assert weights is not None
        size = weights.stat().st_size
        for _ in range(arguments.times):
            line = [sys.executable, __file__, arguments.name, "--load", str(directory)]
            cost = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            print(
                f"{arguments.name}: {size / 1e6:,.0f} MB loaded in {cost['seconds']:.2f} s; peak of memory up by "
                f"{cost['loaded'] / size:.2f} x the file, by {cost['used'] / size:.2f} x once all weights were used"
            )
    return None


if __name__ == "__main__":
    main()
