"""What is checked before a run, without importing torch: values, contradictions, missing files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from kd import columns, files, hub
from kd.architecture import (
    FAMILIES,
    POOLINGS,
    SHAPE,
    architecture,
    container,
    family,
    named_architecture,
    positions,
    shape_fields,
    stored_architecture,
)
from kd.errors import UserError, nearest
from kd.head_check import VECTORS, pooling_contradictions, vector_contradictions
from kd.labels import KINDS
from kd.loggers import wandb_mode
from kd.overrides import check_fields
from kd.store import Wanted, complete, require

CHOICES: dict[str, tuple[str, ...]] = {
    "teacher.pooling": POOLINGS,
    "student.pooling": POOLINGS,
    "data.truncation": ("cut", "error"),
    "data.task": tuple(KINDS),
    "data.masked_lm.compare": ("masked", "all"),
    "teacher.fine_tune.when": ("auto", "always", "never"),
    "student.keep": ("uniform", "first", "last"),
    "method.patient.layers": ("skip", "last"),
    "method.hidden.layers": ("uniform",),
    "schedule.name": ("linear", "cosine", "constant"),
    "trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "trainer.accelerator": ("auto", "cpu", "gpu", "mps"),
    "trainer.strategy": ("auto", "ddp"),
    "teacher.architecture.model_type": tuple(FAMILIES),
    "student.architecture.model_type": tuple(FAMILIES),
    "logger.wandb.mode": ("auto", "online", "offline"),
}
MASKED = {"share": 0.15, "compare": "masked"}  # conf/config.yaml's
OR_A_LIST = ("student.keep", "method.patient.layers", "method.hidden.layers")
SIZES = (*SHAPE[1:], *(key for family in FAMILIES.values() for key in family.shape))
POSITIVE = (
    "data.limit", "data.batch_size", "data.max_length", "data.source.rows", "data.source.scored_rows",
    "data.masked_lm.share", "data.source.validation_rows", "data.validation_share", "teacher.max_length",
    "student.num_layers",
    "teacher.fine_tune.epochs", "teacher.fine_tune.batch_size", "teacher.fine_tune.lr", "optimizer.lr",
    "trainer.max_epochs", "trainer.accumulate_grad_batches", "trainer.log_every_n_steps", "trainer.devices",
    "trainer.num_nodes", "report.measure_seconds", "method.soft.temperature", "quant.group_size",
    *(f"{role}.architecture.{key}" for role in ("teacher", "student") for key in SIZES),
)  # fmt: skip
FRACTIONS = (
    "data.masked_lm.share", "data.validation_share", "teacher.fine_tune.lr", "optimizer.lr",
    "report.measure_seconds", "method.soft.temperature",
)  # fmt: skip


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
    check_fields(cfg)  # before the others: they compute with sizes
    for key, words in CHOICES.items():
        value = value_of(cfg, key)
        is_list = key in OR_A_LIST and isinstance(value, ListConfig)
        if value is not None and value not in words and not is_list:
            more = ", or a list" if key in OR_A_LIST else ""
            raise UserError(f"{key}={value}:{nearest(str(value), words)} Known: {', '.join(words)}{more}.")
    for key in POSITIVE:
        value = value_of(cfg, key)
        if value is None:
            continue
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
    for key, low, high in (
        ("schedule.warmup", 0, 1), ("data.masked_lm.share", 0, 1), ("data.validation_share", 0, 1),
        ("data.source.noise", 0, 0.5),
    ):  # fmt: skip
        value = value_of(cfg, key)
        if value is not None and not low <= value < high:
            raise UserError(f"{key}={value}: must be from {low} to below {high}.")
    check_weights(cfg)


def check_lists(cfg: DictConfig) -> None:
    """Layers are given as a list of whole numbers, pairs of layers as a list of lists of two."""
    if "keep" in cfg.student:
        keep = cfg.student.keep
        is_list = isinstance(keep, ListConfig) and all(isinstance(layer, int) for layer in keep)
        if not is_list and not isinstance(keep, str):
            raise UserError(f"student.keep={keep}: give uniform, first, last, or a list such as [1,3,5].")
    for name, term in cfg.method.items():
        layers = term.get("layers", "") if isinstance(term, DictConfig) else ""
        pairs = isinstance(layers, ListConfig) and all(
            isinstance(pair, ListConfig) and len(pair) == 2 and all(isinstance(i, int) for i in pair) for pair in layers
        )
        if not pairs and not isinstance(layers, str):
            raise UserError(
                f"method.{name}.layers={layers}: give a word, or pairs [student layer, teacher layer] counted from 1, "
                "such as [[1,2],[2,4]]."
            )


def check_weights(cfg: DictConfig) -> None:
    for role in ("teacher", "student"):
        check_weights_word(role, cfg)


def check_weights_word(role: str, cfg: DictConfig) -> None:
    node = cfg[role]
    words = ("teacher",) if node.name == "layers" else ("pretrained", "random")
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
    if stored["model_type"] == "kd-quantized":
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


def contradictions(cfg: DictConfig) -> list[str]:
    """One line for each pair of settings that cannot both hold, with the fix."""
    found = []
    teacher, data = cfg.teacher, cfg.data
    vectors = data.task == VECTORS  # of which random weights give some, too
    if teacher.weights == "random" and teacher.fine_tune.when != "always" and teacher.gate and not vectors:
        found.append(
            "teacher.weights=random is not fine-tuned, so it cannot pass the gate: add teacher.gate=false to go on "
            "all the same, or teacher.fine_tune.when=always to train it."
        )
    if cfg.student.name == "layers" and cfg.student.architecture.hidden_size != teacher.architecture.hidden_size:
        found.append(
            f"student.architecture.hidden_size={cfg.student.architecture.hidden_size}: student=layers is as wide as "
            f"its teacher ({teacher.architecture.hidden_size}); leave it out, or name another student."
        )
    found += pooling_contradictions(cfg) + vector_contradictions(cfg)
    if data.task != "masked_lm" and dict(data.masked_lm) != MASKED:
        found.append(
            f"data.masked_lm is read with data.task=masked_lm, not with data.task={data.task or 'null'}: leave it out."
        )
    own = [role for role in ("teacher", "student") if cfg[role].weights not in ("random", "teacher")]
    if not own and data.name != "demo":
        found.append(
            f"Teacher and student both start from random weights, so neither brings a tokenizer, and data={data.name} "
            "has none: take one of them pretrained, or data=demo."
        )
    for part in (length_contradictions, shape_contradictions, vocabulary_contradictions, quantization_contradictions):
        found += part(cfg)
    if cfg.trainer.precision == "16-mixed" and cfg.trainer.accelerator == "cpu":
        found.append("trainer.precision=16-mixed needs a GPU: set trainer.precision=bf16-mixed or 32-true.")
    return found


def shape_contradictions(cfg: DictConfig) -> list[str]:
    found = []
    for role in ("teacher",) if cfg.student.name == "layers" else ("teacher", "student"):
        shape = architecture(cfg, role)
        if shape["hidden_size"] % shape["num_attention_heads"]:
            found.append(
                f"The {role}'s num_attention_heads={shape['num_attention_heads']} does not divide its hidden_size="
                f"{shape['hidden_size']}: change one of them."
            )
    return found


def length_contradictions(cfg: DictConfig) -> list[str]:
    """More tokens than a model has positions; of student=layers, which has its teacher's, said once."""
    own, found = cfg.teacher.max_length is not None, []
    for role, key in (("teacher", "teacher" if own else "data"), ("student", "data")):
        length, there = cfg[key].max_length, positions(architecture(cfg, role))
        if length > there and (own or role == "teacher" or cfg.student.name != "layers"):
            found.append(
                f"{key}.max_length={length} is more than the {there} positions of {role}={cfg[role].name}: "
                f"set {key}.max_length={there} or less."
            )
    return found


def vocabulary_contradictions(cfg: DictConfig) -> list[str]:
    """A model that starts random reads with the other's tokenizer; data=demo brings one that fits all."""
    if cfg.student.name == "layers" or cfg.data.name == "demo":
        return []
    sizes = {role: architecture(cfg, role)["vocab_size"] for role in ("teacher", "student")}
    where = {"teacher": "teacher.architecture", "student": "student.overrides"}
    return [
        f"{role}.weights=random: it reads with the tokenizer of the {other}, which has {sizes[other]} entries, and has "
        f"embeddings for {sizes[role]} only: set {where[role]}.vocab_size={sizes[other]}."
        for role, other in (("teacher", "student"), ("student", "teacher"))
        if cfg[role].weights == "random" and cfg[other].weights != "random" and sizes[role] < sizes[other]
    ]


def quantization_contradictions(cfg: DictConfig) -> list[str]:
    group, shape = cfg.quant.get("group_size"), architecture(cfg, "student")
    own = family(shape["model_type"])
    return [
        f"quant.group_size={group} does not divide {key}={shape[key]}, the width of the student's "
        f"{own.linear[key]}: set it to a divisor."
        for key in own.linear
        if group and shape[key] % group
    ]


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
