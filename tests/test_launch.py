"""The command line: every name composes, every slip is answered at once and without torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, no_answer

from kd.check import check_before_loading, check_values
from kd.choices import CHOICES, FRACTIONS, POSITIVE
from kd.command_line import check_command_line, compose, conf_dir, flat, options, plain
from kd.contradictions import contradictions
from kd.errors import UserError

README = (ROOT / "README.md").read_text(encoding="utf-8")
SLIPS = [
    ("teacher=bert_large_wmw", "Did you mean 'bert_large_wwm'?"),
    ("method=logti", "Did you mean 'logit'?"),
    ("quant=int8_qta", "Did you mean 'int8_qat'?"),
    ("experiment=dmo", "Did you mean 'demo'?"),
    ("logger=[csv,wandbb]", "Did you mean 'wandb'?"),
    ("trainer.max_epoch=3", "Did you mean 'trainer.max_epochs'?"),
    ("+trainer.max_epoch=3", "Did you mean 'trainer.max_epochs'?"),
    ("++trainer.max_epoch=3", "Did you mean 'trainer.max_epochs'?"),
    ("mehtod=pkd", "Did you mean 'method'?"),
    ("tempreature=3", "there is no setting 'tempreature'"),
    ("student.num_layer=3", "student=layers has student.num_layers"),
    ("trainer.max_epochs=three", "a whole number, its default is 3"),
    ("debug=maybe", "true or false"),
    ("trainer.precision=bf16", "Did you mean 'bf16-mixed'?"),
    ("student=layers student.keep=unifrom", "Did you mean 'uniform'?"),
    ("teacher.weights=pretraind", "Did you mean 'pretrained'?"),
    ("schedule.name=liner", "Did you mean 'linear'?"),
    ("data.limit=0", "must be a number above 0"),
    ("data.batch_size=aut", "Did you mean 'auto'?"),
    ("data.batch_size=0", "must be a number above 0"),
    ("data.batch_size=2.5", "is a whole number"),
    ("compile=onn", "Did you mean 'on'?"),
    ("profile=1", "true or false"),
    ("teacher.fine_tune.precision=bf16", "Did you mean 'bf16-mixed'?"),
    ("schedule.warmup=6", "from 0 to below 1"),
    ("method.patient.layers=skp", "Did you mean 'skip'?"),
    ("method=minilmv2 method.relations.layers=lsat", "Did you mean 'last'?"),
    ("method=minilmv2 method.relations.relation_heads=0", "must be a number above 0"),
    ("method=hard,logti", "Did you mean 'logit'?"),
    ("trainer={max_epoch: 3}", "set its keys singly: trainer.KEY=VALUE"),
    ("seed", "does not compose"),
    ("data.limit=1e4", "must be a whole number, such as 10000"),
    ("data.limit=true", "must be a number above 0"),
    ("teacher=null", "there is no teacher of that name"),
    ("seed=-1", "must be 0 or more"),
    ("trainer.max_steps=0", "or -1 for no bound"),
    ("optimizer.lr=null", "give a learning rate"),
    ("method=hard ~method.hard", "has no loss term left"),
    ("student.architecture=null", "a group of settings"),
    ("trainer.strategy=dpp", "Did you mean 'ddp'?"),
    ("trainer.gradient_clip_val=-1", "must be 0 or more"),
    ("student=layers student.keep=3", "such as [1,3,5]"),
    ("student=layers student.keep=null", "such as [1,3,5]"),
    ("method.patient.layers=[1,3]", "pairs [student layer, teacher layer]"),
    ("method=[hard,logit]", "-m method=FIRST,SECOND"),
    ("~method", "name one method"),
    ("quant=[int8,int4_qta]", "Did you mean 'int4_qat'?"),
    ("quant=int8 quant.group_size=64", "quant=int8 takes no group_size"),
    ("quant=[int8,int8]", "int8 is named twice"),
    ("quant=[int4,int4_qat] quant.group_size=64 quant.int4.group_size=128", "give each scheme its own"),
    ("quant.head=true", "quant=none quantizes nothing"),
    ("quant=int4 quant.group_size=big", "a whole number, its default is 32"),
    ("data.max_length=1", "take 3 tokens"),
    ("student=bert_medum", "Did you mean 'bert_medium'?"),
    ("student.architecture.num_attention_heads=0", "must be a number above 0"),
    ("student.architecture.model_type=albert", "Known: bert, roberta, electra, modernbert, distilbert"),
    ("student.overide.hidden_act=relu", "Did you mean 'student.overrides'?"),
    ("teacher.overrides.hidden_act=relu", "there is no setting 'teacher.overrides.hidden_act'"),
    ("experiment=wikipedia method=hard", "method=hard has no such term: add ~method.soft"),
    ("data.masked_lm.compare=al", "Did you mean 'all'?"),
    ("data=file", "Did you mean 'files'?"),
    ("data=files data.trian=a.csv", "data=files, data=hub have data.train"),
    ("data.train=a.csv", "data=files, data=hub have data.train"),
    ("data=files data.validation_share=1.5", "from 0 to below 1"),
    ("data=files data.validation_share=0", "must be a number above 0"),
    ("data=files data.task=regresion", "Did you mean 'regression'?"),
    ("data=hub data.split_seed=-1", "must be 0 or more"),
    ("data=files data.drop_empty=1", "true or false"),
]


@pytest.mark.parametrize(("line", "says"), SLIPS, ids=[line for line, _ in SLIPS])
def test_slips_are_answered_with_the_nearest_name(line: str, says: str) -> None:
    lines = [line] if line.startswith("trainer={") else line.split()
    with pytest.raises(UserError) as caught:
        check_command_line(lines)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "line",
    ["", "method.soft.temperature=2", "+optimizer.betas=[0.9,0.98]", "optimizer.lr=3e-5", "seed=0,1 method=hard,pkd",
     "student.overrides.hidden_act=relu", "student.overrides.hidden_dropout_prob=0.0,0.1 seed=0,1",
     "method.patient.layers=[[1,4],[2,8]]", "~method.patient", "experiment=demo seed=range(0,3)", "teacher.gate=false",
     "data=files data.train=a.csv data.text=[premise,hypothesis] data.label_names=[no,yes]",
     "data=hub data.id=stanfordnlp/imdb"],
)  # fmt: skip
def test_what_is_right_passes(line: str) -> None:
    check_command_line(line.split())


@pytest.mark.parametrize("line", ["trainer.max_epoch=3", "+trainer.max_epoch=3", "teacher=bert_bse"])
def test_a_slip_takes_a_second_and_no_torch(line: str) -> None:
    code = (
        "import sys, kd.launch\n"
        "try: kd.launch.main()\n"
        "finally: print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, line], capture_output=True, text=True, cwd=ROOT)
    assert time.perf_counter() - start < 10  # about 0.3 s; the bound only catches a heavy import on a busy machine
    assert (done.returncode, done.stdout.split()) == (2, ["False", "False"])
    assert "Did you mean" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("group", sorted(path.name for path in conf_dir().iterdir() if path.is_dir()))
def test_every_file_opens_with_a_line_that_says_what_it_is(group: str) -> None:
    for name in options(group):
        lines = (conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        said = [line for line in lines[:2] if line.startswith("# ") and not line.startswith("# @package")]
        assert any(len(line) > 12 for line in said), f"conf/{group}/{name}.yaml"
        assert len(lines) <= 30


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_without_contradiction(name: str) -> None:
    cfg = compose([f"experiment={name}"])
    check_values(cfg)
    assert contradictions(cfg) == []


@pytest.mark.parametrize("group", ["teacher", "method", "quant", "export", "data", "trainer", "experiment"])
def test_the_readme_names_all_there_is(group: str) -> None:
    (row,) = (line for line in README.splitlines() if line.startswith(f"| `{group}=`"))
    assert [name for name in options(group) if f"`{name}`" not in row] == []


def test_the_readme_names_the_students_that_are_no_teachers() -> None:
    (row,) = (line for line in README.splitlines() if line.startswith("| `student=`"))
    assert [name for name in set(options("student")) - set(options("teacher")) if f"`{name}`" not in row] == []


def test_choices_exist() -> None:
    """A renamed key would leave its check behind, and the check would pass silently."""
    everything = {
        key
        for lines in (
            ["student=layers", "data=files"],
            *([f"method={method}"] for method in options("method")),
            ["teacher=roberta_base", "student=electra_small"],
            ["teacher=electra_small", "student=roberta_base"],
        )
        for key, _, _ in flat(plain(compose(lines)))
    }
    not_in_these = {"data.source.validation_rows", "data.source.rows", "data.source.scored_rows"}
    assert set(CHOICES) | set(FRACTIONS) | (set(POSITIVE) - not_in_these) <= everything


def test_defaults_are_the_documented_ones() -> None:
    cfg = compose([])
    names = {group: cfg[group].name for group in ("data", "teacher", "student", "method", "quant")}
    assert names == {
        "data": "sst2", "teacher": "bert_large_wwm", "student": "bert_small", "method": "pkd", "quant": "none",
    }  # fmt: skip
    values = (cfg.trainer.max_epochs, cfg.data.batch_size, cfg.data.max_length, cfg.schedule.warmup, cfg.seed)
    assert values == (3, 32, 128, 0.06, 0)
    assert (cfg.method.soft.temperature, cfg.method.hard.weight, cfg.method.soft.weight) == (4, 0.5, 0.5)
    assert cfg.optimizer.lr == 1e-4  # bert_small is 512 wide
    assert compose(["student=bert_base"]).optimizer.lr == 5e-5
    assert compose(["student=layers", "teacher=bert_base"]).optimizer.lr == 5e-5
    assert compose(["student=layers", "teacher=minilm_l6"]).optimizer.lr == 1e-4
    assert list(cfg.logger) == ["csv", "wandb"]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["teacher=tiny_demo", "teacher.fine_tune.when=auto", "data=demo"], "cannot pass the gate"),
        (["data=demo", "data.max_length=100", "teacher=tiny_demo"], "set data.max_length=64 or less"),
        (
            ["student.weights=random", "teacher.weights=random", "teacher.gate=false"],
            "neither brings a tokenizer",
        ),
        (
            ["student=tiny_demo", "quant=int4", "quant.group_size=64"],
            "quant.group_size=64 does not divide hidden_size=96",
        ),
        (["data=files", "data.train=demo.csv", "teacher=tiny_demo", "student=tiny_demo"], "data=files-demo has none"),
        (["trainer=cpu", "trainer.precision=16-mixed"], "needs a GPU"),
        (["trainer=cpu", "teacher.fine_tune.precision=16-mixed"], "teacher.fine_tune.precision=16-mixed needs a GPU"),
        (["trainer=ddp", "data.batch_size=auto"], "this run has several"),
        (
            ["student=layers", "teacher=minilm_l6", "student.architecture.hidden_size=128"],
            "as wide as its teacher (384)",
        ),
    ],
)
def test_contradictions_come_with_the_fix(lines: list[str], says: str) -> None:
    assert any(says in found for found in contradictions(compose(lines)))


def test_layers_deeper_than_the_teacher_are_refused_before_anything_is_looked_for() -> None:
    cfg = compose(["student=layers", "teacher=minilm_l6", "student.num_layers=8"])
    with pytest.raises(UserError, match="the teacher has 6 layers"):
        check_before_loading(cfg)


def test_a_directory_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_hidden_layers": 3}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="num_hidden_layers=3; teacher=bert_tiny has num_hidden_layers=2"):
        check_values(compose(["teacher=bert_tiny", f"teacher.weights={tmp_path}"]))


def test_the_flagship_without_weights_or_network_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("socket.create_connection", no_answer)
    cfg = compose([f"paths.store={tmp_path}"])
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        check_before_loading(cfg)
    assert time.perf_counter() - start < 5
    text = str(caught.value)
    for part in (
        "bert_large_wwm", "bert_small", "sst2", str(tmp_path / "models" / "bert_large_wwm"),
        "kd models download bert_large_wwm", "kd models download bert_small", "kd data download sst2",
    ):  # fmt: skip
        assert part in text
