"""What is checked before a run, without importing torch: values, contradictions, missing files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kd import columns, files, hub
from kd.architecture import (
    container,
    named_architecture,
    shape_fields,
    stored_architecture,
)
from kd.choices import CHOICES, FRACTIONS, OR_A_LIST, OR_A_WORD, POSITIVE
from kd.contradictions import contradictions
from kd.errors import UserError, nearest
from kd.loggers import wandb_mode
from kd.named_schemes import named_schemes
from kd.overrides import check_fields
from kd.schedules import schedules_of
from kd.store import Wanted, complete, require


def value_of(cfg: DictConfig, key: str) -> Any:
    """The value at a dotted key; None where there is none or where it is an interpolation still."""
    parent = OmegaConf.select(cfg, key.rpartition(".")[0])
    leaf = key.rpartition(".")[2]
    if not isinstance(parent, DictConfig) or leaf not in parent or OmegaConf.is_interpolation(parent, leaf):
        return None
    return parent[leaf]


def check_values(cfg: DictConfig) -> None:
    """Raises UserError for a value outside what its key can take, naming the nearest word."""
    check_lists(cfg)
    named_schemes(cfg)
    check_fields(cfg)  # before the others: they compute with sizes
    for key, words in CHOICES.items():
        value = value_of(cfg, key)
        if isinstance(value, bool) and "on" in words:  # as YAML reads a bare on or off in a recipe
            OmegaConf.update(cfg, key, value := "on" if value else "off")
        is_list = key in OR_A_LIST and isinstance(value, ListConfig)
        if value is not None and value not in words and not is_list:
            more = ", or a list" if key in OR_A_LIST else ""
            names = [str(word).lower() if isinstance(word, bool) else word for word in words]
            raise UserError(f"{key}={value}:{nearest(str(value), names)} Known: {', '.join(names)}{more}.")
    for key in POSITIVE:
        value = value_of(cfg, key)
        instead = OR_A_WORD.get(key, ())
        if value is None or value in instead:
            continue
        if isinstance(value, str) and instead:
            raise UserError(f"{key}={value}:{nearest(value, instead)} Known: a number above 0, {', '.join(instead)}.")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{key}={value}: must be a number above 0.")
        if key not in FRACTIONS and not isinstance(value, int):
            raise UserError(f"{key}={value}: must be a whole number, such as {round(value)}.")
    for key in (
        "seed", "teacher.fine_tune.seed", "data.num_workers", "data.split_seed", "trainer.gradient_clip_val",
        "checkpoint.every_seconds",
    ):  # fmt: skip
        if (OmegaConf.select(cfg, key) or 0) < 0:
            raise UserError(f"{key}={OmegaConf.select(cfg, key)}: must be 0 or more.")
    for key in ("trainer.max_steps", "teacher.fine_tune.max_steps"):
        if value_of(cfg, key) == 0 or value_of(cfg, key) < -1:
            raise UserError(f"{key}={value_of(cfg, key)}: give the number of steps, or -1 for no bound.")
    for key in ("data", "teacher"):
        if cfg[key].max_length is not None and cfg[key].max_length < 3:
            raise UserError(f"{key}.max_length={cfg[key].max_length}: [CLS], a word and [SEP] take 3 tokens.")
    if cfg.optimizer.get("lr") is None:
        raise UserError("optimizer.lr=null: give a learning rate.")
    if not any(isinstance(node, DictConfig) for node in cfg.method.values()):
        raise UserError(f"method={cfg.method.name} has no loss term left: there is nothing to train with.")
    if cfg.method.balance is not None and sum(isinstance(node, DictConfig) for node in cfg.method.values()) == 1:
        raise UserError(f"method.balance={cfg.method.balance}: method={cfg.method.name} has one term. Leave it out.")
    for key, low, high in (
        ("schedule.warmup", 0, 1), ("data.masked_lm.share", 0, 1), ("data.validation_share", 0, 1),
        ("data.source.noise", 0, 0.5),
    ):  # fmt: skip
        value = value_of(cfg, key)
        if value is not None and not low <= value < high:
            raise UserError(f"{key}={value}: must be from {low} to below {high}.")
    check_vocabulary(cfg)
    check_weights(cfg)


def check_lists(cfg: DictConfig) -> None:
    """Layers are given as a list of whole numbers, pairs of layers as a list of lists of two."""
    keep = cfg.student.get("keep")
    if keep is not None or cfg.student.name == "layers":
        is_list = isinstance(keep, ListConfig) and all(isinstance(layer, int) for layer in keep)
        if not is_list and not isinstance(keep, str):
            raise UserError(f"student.keep={keep}: give uniform, first, last, distilbert, or a list such as [1,3,5].")
    for name, term in cfg.method.items():
        if isinstance(term, DictConfig) and "_target_" not in term:
            raise UserError(
                f"method.{name} has settings ({', '.join(map(str, term))}), but method={cfg.method.name} has no such "
                f"term: add ~method.{name}, or take the method that they are for."
            )
        if isinstance(term, DictConfig):
            schedules_of(f"method.{name}", container(term))
        layers = term.get("layers", "") if isinstance(term, DictConfig) else ""
        pairs = isinstance(layers, ListConfig) and all(
            isinstance(pair, ListConfig) and len(pair) == 2 and all(isinstance(i, int) for i in pair) for pair in layers
        )
        if not pairs and not isinstance(layers, str):
            raise UserError(
                f"method.{name}.layers={layers}: give a word, or pairs [student layer, teacher layer] counted from 1, "
                "such as [[1,2],[2,4]]."
            )


def check_vocabulary(cfg: DictConfig) -> None:
    """``trim``, or a directory with a tokenizer."""
    wanted = cfg.student.get("vocabulary")
    if wanted is None or wanted == "trim":
        return
    directory = Path(str(wanted)).expanduser()
    if not directory.is_dir():
        raise UserError(
            f"student.vocabulary={wanted}: no such directory.{nearest(str(wanted), ('trim',))} Known: null, trim, or a "
            "directory with a tokenizer."
        )
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"student.vocabulary={wanted}: there is no tokenizer.json in it.")


def check_weights(cfg: DictConfig) -> None:
    for role in ("teacher", "student"):
        check_weights_word(role, cfg)


def check_weights_word(role: str, cfg: DictConfig) -> None:
    node = cfg[role]
    words: tuple[str, ...] = ("pretrained", "random")
    if role == "student":
        words = ("teacher",) if node.name == "layers" else (*words, "teacher")
    weights = str(node.weights)
    if weights in words:
        return
    if node.name == "layers":
        raise UserError(f"student.weights={weights}: student=layers is made from the teacher's weights.")
    directory = Path(weights).expanduser()
    if not directory.is_dir():
        raise UserError(
            f"{role}.weights={weights}: no such directory.{nearest(weights, words)} "
            f"Known: {', '.join(words)}, or a directory with config.json and model.safetensors."
        )
    if not complete("model", directory):
        raise UserError(f"{role}.weights={weights}: config.json or model.safetensors is missing there.")
    check_shape(role, cfg, directory)


def check_shape(role: str, cfg: DictConfig, directory: Path) -> None:
    """A directory holds the architecture that was named, or the name is wrong."""
    stored, named = stored_architecture(directory), named_architecture(cfg, role)
    if "quantization_config" in stored:
        raise UserError(
            f"{role}.weights={directory} is a quantized model, which cannot be trained: take the float one beside it, "
            f"{directory.parent / 'student'}."
        )
    keys = [key for key in shape_fields(named["model_type"]) if key in stored and key in named]
    differing = [key for key in keys if stored[key] != named[key]]
    if differing:
        theirs, ours = (", ".join(f"{key}={shape[key]}" for key in differing) for shape in (stored, named))
        fix = " ".join(f"{role}.architecture.{key}={stored[key]}" for key in differing)
        raise UserError(
            f"{role}.weights={directory}: its config.json has {theirs}; {role}={cfg[role].name} has {ours}. Name the "
            f"{role} that fits, or set {fix}."
        )


def wanted(cfg: DictConfig) -> list[Wanted]:
    """Everything that must be on the disk or on the hub."""
    store = Path(cfg.paths.store).expanduser()
    needs = [
        Wanted("model", cfg[role].name, cfg[role].hub_id, store)
        for role in ("teacher", "student")
        if cfg[role].weights == "pretrained"
    ]
    source = cfg.data.source
    if "hub_id" in source:
        needs.append(Wanted("dataset", source.name, source.hub_id, store, splits=bool(source.get("validation_share"))))
    return needs


def check_cache(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        raise UserError(
            f"paths.cache={cache} cannot be written ({error.strerror}): fine-tuned teachers and tokenised text are "
            "kept there. Name another directory: KD_CACHE=DIR in the environment, or paths.cache=DIR."
        ) from error


def check_own_data(cfg: DictConfig) -> None:
    """Raises UserError for files that are not there or not right, and for settings that are no columns or labels."""
    data = cfg.data
    if "label_names" in data and not (data.label_names is None or isinstance(data.label_names, ListConfig)):
        raise UserError(f"data.label_names={data.label_names}: give a list, such as [negative,positive].")
    if "files" in data.source:
        own = container(data)
        settings = files.Settings(
            *(own[key] for key in ("task", "label_names", "validation_share", "split_seed", "drop_empty"))
        )
        files.check(
            {split: own[split] for split in ("train", "validation", "test")}, own["text"], own["label"], settings
        )
    elif "text" in data.source:
        columns.as_set(data.text, data.label)


def check_before_loading(cfg: DictConfig) -> None:
    """Raises UserError with every contradiction, or with everything that is missing."""
    found = contradictions(cfg)
    if found:
        raise UserError("\n".join(found))
    if "wandb" in (cfg.get("logger") or ()):
        wandb_mode(cfg.logger.wandb.mode)
    check_own_data(cfg)
    check_cache(Path(cfg.paths.cache).expanduser())
    require(wanted(cfg))
    if "id" in cfg.data.source:  # last: without a network it puts the process offline
        hub.check(cfg.data.id)
