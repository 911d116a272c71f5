"""Settings that cannot both hold, each pair with the fix, without importing torch."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from kd.architecture import architecture, family, from_teacher, positions, student_keep
from kd.errors import nearest
from kd.export import Target, missing, named_targets
from kd.layer_map import kept_layers
from kd.machine import compiler
from kd.named_schemes import named_schemes

VECTORS = "feature_extraction"  # the task of that name
OF_TOKENS = ("token_classification", "masked_lm")
MASKED = {"share": 0.15, "compare": "masked"}  # conf/config.yaml's


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
    found += pooling_contradictions(cfg) + vector_contradictions(cfg) + frozen_contradictions(cfg)
    if data.task != "masked_lm" and dict(data.masked_lm) != MASKED:
        found.append(
            f"data.masked_lm is read with data.task=masked_lm, not with data.task={data.task or 'null'}: leave it out."
        )
    if cfg.cache == "off" and cfg.cache_dtype != "float16":
        found.append(f"cache_dtype={cfg.cache_dtype}: with cache=off nothing is kept. Leave one of them out.")
    if data.task == "masked_lm" and cfg.cache == "on":
        found.append(
            "cache=on: data.task=masked_lm hides other words in every epoch, so the teacher has to be asked every "
            "time. Leave it out."
        )
    own = [role for role in ("teacher", "student") if cfg[role].weights not in ("random", "teacher")]
    if not own and data.name != "demo":
        found.append(
            f"Teacher and student both start from random weights, so neither brings a tokenizer, and data={data.name} "
            "has none: take one of them pretrained, or data=demo."
        )
    found += teacher_contradictions(cfg)
    for part in (length_contradictions, shape_contradictions, vocabulary_contradictions, quantization_contradictions,
        export_contradictions,
    ):  # fmt: skip
        found += part(cfg)
    precisions = {key: OmegaConf.select(cfg, key) for key in ("trainer.precision", "teacher.fine_tune.precision")}
    half = [key for key, value in precisions.items() if value == "16-mixed"]
    if half and cfg.trainer.accelerator == "cpu":
        found.append(f"{half[0]}=16-mixed needs a GPU: set {half[0]}=bf16-mixed or 32-true.")
    if cfg.compile == "on" and compiler() is None:
        found.append("compile=on needs a C++ compiler, and there is none: install g++, or set compile=off.")
    if cfg.data.batch_size == "auto" and (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1):
        found.append(
            "data.batch_size=auto looks at one device, and this run has several, which must agree: give a number."
        )
    if cfg.data.batch_size == "auto" and cfg.data.tokens_per_batch is not None:
        found.append(
            f"data.batch_size=auto finds how many rows fit, and data.tokens_per_batch={cfg.data.tokens_per_batch} "
            "says how large batches are: leave one of them out."
        )
    return found


def frozen_contradictions(cfg: DictConfig) -> list[str]:
    """Word embeddings that would stay random, or that are a decoder, too."""
    why = None
    if not cfg.student.get("freeze_embeddings"):
        return []
    if cfg.student.weights == "random":
        why = "with student.weights=random they would stay random"
    elif cfg.data.task == "masked_lm":
        why = "with data.task=masked_lm they are the decoder, too"
    elif cfg.trainer.get("lazy_embeddings") is True:
        why = "with trainer.lazy_embeddings=true they would be updated"
    return (
        [f"student.freeze_embeddings=true keeps word embeddings as they start, and {why}: leave it out."] if why else []
    )


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


def teacher_contradictions(cfg: DictConfig) -> list[str]:
    """What a student of the teacher's weights can be: of its family, or a DistilBERT of a BERT, and nowhere larger."""
    if not from_teacher(cfg):
        keep = cfg.student.get("keep")
        own = f"student.weights={cfg.student.weights} takes none of them: add student.weights=teacher, or leave it out."
        what = f"student.keep={keep} says which of the teacher's layers a student is made of; {own}"
        return [what] if keep is not None else []
    if cfg.student.name == "layers":
        return []
    teacher, student = (architecture(cfg, role) for role in ("teacher", "student"))
    kinds = teacher["model_type"], student["model_type"]
    if kinds[0] != kinds[1] and kinds != ("bert", "distilbert"):
        return [
            f"student.weights=teacher: student={cfg.student.name} is a {kinds[1]} and teacher={cfg.teacher.name} a "
            f"{kinds[0]}. Weights go from a model to one of its own family, or from a bert to a distilbert: name such "
            "a student, take student=layers, or student.weights=pretrained."
        ]
    kept_layers(
        student_keep(cfg), student["num_hidden_layers"], teacher["num_hidden_layers"],
        "student.overrides.num_hidden_layers",
    )  # fmt: skip
    larger = [
        key for key in ("hidden_size", "intermediate_size", "max_position_embeddings") if student[key] > teacher[key]
    ]
    if larger:
        ours, theirs = (", ".join(f"{key}={shape[key]}" for key in larger) for shape in (student, teacher))
        fix = " ".join(f"student.overrides.{key}={teacher[key]}" for key in larger)
        return [
            f"student.weights=teacher: student={cfg.student.name} has {ours}, and its teacher only {theirs}. "
            f"Set {fix}, or less."
        ]
    return whole_heads(teacher, student)


def whole_heads(teacher: dict[str, Any], student: dict[str, Any]) -> list[str]:
    """Heads are kept or left out whole, so the student's have the width of the teacher's."""
    width, theirs = (each["hidden_size"] // each["num_attention_heads"] for each in (student, teacher))
    size, heads = student["hidden_size"], student["num_attention_heads"]
    if size == theirs * heads:
        return []
    whole = max(size // theirs, 1)
    sizes = (("hidden_size", whole * theirs, size), ("num_attention_heads", whole, heads))
    fix = [f"student.overrides.{key}={value}" for key, value, there in sizes if value != there]
    return [
        f"student.weights=teacher: heads are kept whole, so the student's are as wide as the teacher's, {theirs}; "
        f"hidden_size={size} and num_attention_heads={heads} would make them {width}. Set {' '.join(fix)}."
    ]


def length_contradictions(cfg: DictConfig) -> list[str]:
    """More tokens than a model has positions; of student=layers, which has its teacher's, said once. Batches that are
    too small for one text.
    """
    own, found = cfg.teacher.max_length is not None, []
    if (budget := cfg.data.tokens_per_batch) is not None and budget < cfg.data.max_length:
        found.append(
            f"data.tokens_per_batch={budget} has no room for a text of data.max_length={cfg.data.max_length} tokens: "
            f"set data.tokens_per_batch={cfg.data.max_length} or more, or a smaller data.max_length."
        )
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
    found = []
    if (other := cfg.student.get("vocabulary")) is not None:
        if cfg.data.task == "masked_lm":
            found.append(
                f"student.vocabulary={other}: data.task=masked_lm compares the chances of every piece of the teacher's "
                "vocabulary, so the student has the same. Leave it out."
            )
        if "vocab_size" in cfg.student.overrides:
            found.append(
                f"student.overrides.vocab_size={cfg.student.overrides.vocab_size}: the size is that of "
                f"student.vocabulary={other}. Leave it out."
            )
    if cfg.student.name == "layers" or cfg.data.name == "demo":
        return found
    sizes = {role: architecture(cfg, role)["vocab_size"] for role in ("teacher", "student")}
    where = {"teacher": "teacher.architecture", "student": "student.overrides"}
    return found + [
        f"{role}.weights=random: it reads with the tokenizer of the {other}, which has {sizes[other]} entries, and has "
        f"embeddings for {sizes[role]} only: set {where[role]}.vocab_size={sizes[other]}."
        for role, other in (("teacher", "student"), ("student", "teacher"))
        if cfg[role].weights == "random"
        and cfg[other].weights != "random"
        and sizes[role] < sizes[other]
        and (role == "teacher" or cfg.student.get("vocabulary") is None)
    ]


def quantization_contradictions(cfg: DictConfig) -> list[str]:
    """Groups that do not divide a layer, and settings without the scheme that they are for."""
    shape = architecture(cfg, "student")
    own = family(shape["model_type"])
    schemes = named_schemes(cfg)
    groups = {name: settings.get("group_size") for name, settings in schemes.items()}
    trained = [name for name, settings in schemes.items() if settings["qat"]]
    found = []
    if cfg.quant.sensitivity and not any("keep_float" in settings for settings in schemes.values()):
        found.append(
            f"quant.sensitivity=true: quant={cfg.quant.name} quantizes no single layers. Name a scheme that does, "
            "such as quant=int8."
        )
    if len(schemes) > 1 and trained and (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1):
        found.append(
            f"quant={cfg.quant.name}: {trained[0]} takes a training of its own beside the student's, and on several "
            f"devices a run has one. Make it a sweep: -m quant={','.join(schemes)}."
        )
    return found + [
        f"quant.group_size={group} does not divide {key}={shape[key]}, the width of the student's "
        f"{own.linear[key]}: set it to a divisor, or quant.{name}.group_size."
        for name, group in groups.items()
        for key in own.linear
        if group and shape[key] % group
    ]


def export_contradictions(cfg: DictConfig) -> list[str]:
    """Targets that are not installed here, and artefacts that the run does not make or that they do not take."""
    made = {"student": None} | {f"student-{name}": node["scheme"] for name, node in named_schemes(cfg).items()}
    found = []
    for target in named_targets(cfg):
        found += [lacks] if (lacks := missing(target)) else []
        found += group_contradictions(cfg, target) if "student" in target.of else []
        for source in target.of:
            if source not in made:
                found.append(
                    f"export.{target.name}.of={source}: the run makes no such model.{nearest(source, made)} It makes "
                    f"{', '.join(made)}."
                )
            elif (scheme := made[source]) is not None and (refused := target.refusal(scheme)):
                found.append(f"export.{target.name}.of={source}: {refused}")
    return found


def group_contradictions(cfg: DictConfig, target: Target) -> list[str]:
    """Groups of int4 weights that do not divide a layer of the student."""
    shape = architecture(cfg, "student")
    linear = family(shape["model_type"]).linear
    return [
        f"export.{target.name}.group_size={target.group_size} does not divide {key}={shape[key]}, the width of the "
        f"student's {linear[key]}. {target.fix(shape[key] for key in linear)}"
        for key in linear
        if target.group_size and shape[key] % target.group_size
    ]


def pooling_contradictions(cfg: DictConfig) -> list[str]:
    """A student of the teacher's weights has its head."""
    own, teachers = (cfg[role].get("pooling") for role in ("student", "teacher"))
    if cfg.data.task in OF_TOKENS and (own or teachers):
        return [
            f"data.task={cfg.data.task} has an answer for single tokens and none for a whole text, so nothing is "
            "pooled: leave teacher.pooling and student.pooling out."
        ]
    if not from_teacher(cfg) or own in (None, teachers):
        return []
    return [
        f"student.pooling={own}: a student of the teacher's weights has its head, and teacher.pooling="
        f"{'null' if teachers is None else teachers}. Set teacher.pooling={own} too, or leave it out."
    ]


def vector_contradictions(cfg: DictConfig) -> list[str]:
    """A teacher of vectors is taken as it is."""
    if cfg.data.task != VECTORS:
        return []
    found = []
    if cfg.teacher.fine_tune.when == "always":
        found.append(
            f"teacher.fine_tune.when=always: data.task={VECTORS} has no labels to fine-tune a teacher on. Set "
            "teacher.fine_tune.when=never."
        )
    if cfg.teacher.get("pooling") == "attention" and cfg.teacher.weights in ("pretrained", "random"):
        found.append(
            f"teacher.pooling=attention has weights to learn, and with data.task={VECTORS} a teacher learns nothing: "
            "set teacher.pooling=cls, mean or max."
        )
    return found
