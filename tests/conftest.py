"""Small models made in memory: no network, no store, no GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from kd.noise import silence

silence()

import torch  # noqa: E402

from kd import demo, models  # noqa: E402
from kd.datamodule import TextDataModule  # noqa: E402
from kd.sources import TextData  # noqa: E402
from kd.tasks import Classification  # noqa: E402

ROOT = Path(__file__).parents[1]
STORE = ROOT.parent / "shared" / "store"


# what small models of a family need besides; paddings of other ids, windows shorter than the inputs
OWN: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "electra": {},
    "modernbert": {"pad_token_id": 3, "local_attention": 4},
    "distilbert": {},
}


def architecture(layers: int = 2, width: int = 32, **more: Any) -> dict[str, Any]:
    more = OWN[more.get("model_type", "bert")] | more
    if more.get("model_type") == "electra":
        more = {"embedding_size": width // 2} | more
    return {
        "model_type": "bert", "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 2,
        "intermediate_size": 2 * width, "vocab_size": 512, "max_position_embeddings": 64, **more,
    }  # fmt: skip


def model(layers: int = 2, width: int = 32, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return models.random_model(architecture(layers, width, **more), Classification(demo.LABELS))


def no_answer(*_: Any, **__: Any) -> None:
    """A connection whose packets are dropped."""
    time.sleep(60)
    raise TimeoutError


@pytest.fixture
def task() -> Classification:
    return Classification(demo.LABELS)


@pytest.fixture(scope="session")
def text() -> TextData:
    return demo.generate(rows=200, scored_rows=300, seed=0, noise=0.0)


@pytest.fixture
def data(text: TextData, tmp_path: Path) -> TextDataModule:
    tokenizers = {"student": text.tokenizer, "teacher": text.tokenizer}
    return TextDataModule(text, tokenizers, tmp_path / "cache", batch_size=8, max_length=32, limit=64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or fills the user's cache, and none asks the hub."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "kd-cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("WANDB_MODE", "offline")
