"""Masked language modelling, against numpy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import architecture
from lightning.pytorch.callbacks import Callback
from test_lit_module import settings
from torch import Tensor
from words import byte_pairs, raw, text_data, word_pieces

from kd.build import make_task
from kd.check import check_values
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.datamodule import TextDataModule
from kd.errors import UserError
from kd.fit import fit
from kd.losses import HardLabelLoss
from kd.models import random_model
from kd.tasks import MaskedLM
from kd.tasks.base import RESAMPLES
from kd.units import UNLABELLED

ENTRIES = 50


def drawn(places: int = 80, seed: int = 0, size: float = 2.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = (ENTRIES * torch.rand(places, generator=generator) ** 2).long()  # some tokens are commoner
    logits = torch.randn(places, ENTRIES, generator=generator)
    logits[torch.arange(places), labels] += size
    return logits, labels


def losses(logits: Tensor, labels: Tensor) -> np.ndarray[Any, Any]:
    x = logits.double().numpy()
    top = x.max(-1, keepdims=True)
    whole = np.log(np.exp(x - top).sum(-1)) + top[:, 0]
    return np.asarray(whole - x[np.arange(len(x)), labels.numpy()])


def test_a_digest_is_the_loss_and_the_guess_of_each_token() -> None:
    logits, labels = drawn()
    digest = MaskedLM().digest(logits, labels)
    assert digest.shape == (80, 2)
    np.testing.assert_allclose(digest[:, 0], losses(logits, labels), rtol=1e-5, atol=1e-6)
    assert digest[:, 1].tolist() == logits.numpy().argmax(-1).tolist()
    half = MaskedLM().digest(logits.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert half[:, 1].tolist() == logits.bfloat16().float().numpy().argmax(-1).tolist()
    large = torch.zeros(1, 250_000)
    large[0, 249_999] = 5.0  # a number above 2**16 is still exact
    assert MaskedLM().digest(large, torch.tensor([3]))[0, 1].item() == 249_999


def test_perplexity_and_accuracy_are_those_of_all_tokens() -> None:
    logits, labels = drawn()
    task, metrics = MaskedLM(), MaskedLM().metrics()
    for part in (slice(0, 7), slice(7, 60), slice(60, None)):
        metrics.update(task.digest(logits[part], labels[part]), labels[part])
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["perplexity"] == pytest.approx(np.exp(losses(logits, labels).mean()), rel=1e-5)
    assert found["accuracy"] == pytest.approx((logits.numpy().argmax(-1) == labels.numpy()).mean())
    uniform = MaskedLM().metrics()
    uniform.update(task.digest(torch.zeros_like(logits), labels), labels)
    assert float(uniform.compute()["perplexity"]) == pytest.approx(ENTRIES, rel=1e-5)


def test_chance_is_what_token_frequencies_alone_give() -> None:
    """No constant distribution has a lower perplexity than the labels' own frequencies."""
    _, labels = drawn(400)
    counts = np.bincount(labels.numpy(), minlength=ENTRIES)
    shares = counts[counts > 0] / 400
    chance, _ = MaskedLM().chance(labels)
    assert chance == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
    constant = torch.tensor(counts).double().log().expand(400, -1)
    assert np.exp(losses(constant, labels).mean()) == pytest.approx(chance, rel=1e-6)
    other = constant + 0.3 * torch.randn(ENTRIES, generator=torch.Generator().manual_seed(0)).double()
    assert np.exp(losses(other, labels).mean()) > chance


def test_the_interval_is_the_bootstrap_over_tokens_and_a_gate() -> None:
    task = MaskedLM()
    for size, beats in ((6.0, True), (-2.0, False)):
        logits, labels = drawn(300, size=size)
        digest, own = task.digest(logits, labels), losses(logits, labels)
        score = float(np.exp(own.mean()))
        low, high = task.interval(score, digest, labels, {})
        generator = torch.Generator().manual_seed(0)
        means = [own[torch.randint(300, (300,), generator=generator).numpy()].mean() for _ in range(RESAMPLES)]
        assert (low, high) == pytest.approx(tuple(np.exp(np.quantile(means, [0.025, 0.975]))), rel=1e-5)
        assert low < score < high
        assert task.beats_chance(score, digest, labels, {}) is beats
    assert task.retention(10.0, 8.0) == 0.8  # a higher perplexity is worse


def test_unlabelled_places_have_no_label_loss_but_are_compared() -> None:
    task, (logits, labels), teacher = MaskedLM(), drawn(), drawn(seed=1)[0]
    some = torch.where(torch.arange(80) % 3 == 0, labels, UNLABELLED)
    value, count = task.label_loss(logits, some)
    assert float(value) == pytest.approx(losses(logits, labels)[::3].sum(), rel=1e-5)
    assert int(count) == 27
    nothing, none = task.label_loss(logits, torch.full((80,), UNLABELLED))
    assert (float(nothing), int(none)) == (0.0, 0)
    soft, places = task.divergence(logits, teacher, 2.0)
    log_q, p = (logits / 2).log_softmax(-1), (teacher / 2).softmax(-1)
    assert float(soft) == pytest.approx(4 * float(F.kl_div(log_q, p, reduction="sum")))
    assert int(places) == 80
    assert float(task.divergence(logits, logits, 2.0)[0]) == pytest.approx(0.0, abs=1e-4)


def test_wrong_settings_are_answered() -> None:
    for share in ("0", "1.0", "-0.1"):
        with pytest.raises(UserError, match="data.masked_lm.share=.*must be"):
            check_values(compose(["data=wikipedia", f"data.masked_lm.share={share}"]))
    with pytest.raises(UserError, match="data.masked_lm.compare=some.* Known: masked, all"):
        check_values(compose(["data=wikipedia", "data.masked_lm.compare=some"]))
    assert "data.masked_lm is read with" in contradictions(compose(["data=sst2", "data.masked_lm.share=0.3"]))[0]
    made = make_task(compose(["data=wikipedia", "data.masked_lm.share=0.3"]).data, text_data(raw, []))
    assert made.settings() == {"share": 0.3}
    from kd import demo

    tokenizer = demo.tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="no mask token"):
        MaskedLM().units({}, {"student": tokenizer}, 0)


@pytest.mark.parametrize("make", [word_pieces, byte_pairs])
def test_masks_are_filled_by_the_likeliest_tokens(make: Any) -> None:
    tokenizer = make()
    torch.manual_seed(0)
    model = random_model(architecture(vocab_size=len(tokenizer)), MaskedLM(), tokenizer)
    reader: Any = SimpleNamespace(model=model, tokenizer=tokenizer, max_length=32)
    text = f"the {tokenizer.mask_token} walks and {tokenizer.mask_token}"
    (found,) = MaskedLM().predict(reader, [text], {})
    ids = tokenizer(text, return_tensors="pt")
    chances = model(**ids).logits[0].softmax(-1).detach()
    places = (ids["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    assert len(found["fills"]) == len(places) == 2
    for fill, place in zip(found["fills"], places, strict=True):
        assert max(fill.values()) == pytest.approx(float(chances[place].max()), rel=1e-5)
    first, second = (next(iter(fill)) for fill in found["fills"])
    assert found["label"] == f"the {first} walks and {second}"
    with pytest.raises(UserError, match="has none"):
        MaskedLM().predict(reader, ["no mask at all"], {})


def test_of_tokens_that_read_alike_the_likeliest_is_named() -> None:
    """A word with a blank before it and the same word without are two tokens of RoBERTa's kind."""
    tokenizer = byte_pairs()
    entries = tokenizer.get_vocab()
    word = next(name for name in entries if name.isalpha() and f"Ġ{name}" in entries)
    blank, bare = entries[f"Ġ{word}"], entries[word]
    logits = torch.zeros(1, 3, len(tokenizer))
    logits[0, :, blank], logits[0, :, bare] = 9.0, 8.0

    class Fixed(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(logits=logits)

    reader: Any = SimpleNamespace(model=Fixed(), tokenizer=tokenizer, max_length=32)
    (found,) = MaskedLM().predict(reader, [tokenizer.mask_token], {})
    assert found["fills"][0][word] == pytest.approx(float(logits[0, 0].softmax(-1)[blank]))


class Seen(Callback):
    """What validation found after each epoch."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.found.append(float(trainer.callback_metrics["val/perplexity"]))


def test_the_lowest_perplexity_picks_the_checkpoint(tmp_path: Path) -> None:
    data = text_data(raw, [])
    rows = TextDataModule(data, {"student": word_pieces()}, tmp_path, 16, 32, units=MaskedLM().units)
    loss, seen, task = HardLabelLoss(1.0), Seen(), MaskedLM()
    loss.setup(None, None, task)
    torch.manual_seed(0)
    student = random_model(architecture(vocab_size=512), task, word_pieces())
    how = settings(8, max_epochs=2)
    fitted = fit(student, task, {"hard": loss}, None, rows, how, tmp_path / "run", "key", "t", callbacks=[seen])
    assert fitted.best_score == pytest.approx(min(seen.found))
    assert min(seen.found) < max(seen.found)
