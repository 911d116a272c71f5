"""What a file of conf/export/ may say, and what kd export --set changes of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from kd import export
from kd.command_line import compose
from kd.contradictions import contradictions
from kd.errors import UserError
from kd.export_command import chosen

ONNX = {"runtime": "onnxruntime", "opset": 18}
INT4 = {"scheme": "int4", "calibration_rows": 9, "group_size": 32, "int8_share": 0.5}


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"runtime": "onnxruntime"}, "runtime=onnxruntime needs opset"),
        ({"runtime": "openvino", "opset": 18}, "runtime=openvino takes no opset"),
        ({"runtime": ["onnxruntime"]}, "known are onnxruntime"),
        ({"opset": 18}, "needs a runtime"),
        (None, "needs a runtime"),
        (ONNX | {"opset": None}, "needs opset"),
        (ONNX | {"opset": "abc"}, "opset=abc: it is a whole number, 17 to 2"),
        (ONNX | {"opset": 18.0}, "opset=18.0: it is a whole number"),
        (ONNX | {"opset": 16}, "opset=16: it is a whole number"),
        (ONNX | {"opset": 24}, "opset=24: it is a whole number"),
        (ONNX | {"of": 3}, "of=3: give the run's artefacts"),
        (ONNX | {"of": []}, "give the run's artefacts"),
        (ONNX | INT4 | {"calibration_rows": "many"}, "calibration_rows=many: it is a whole number, at least 1"),
        (ONNX | INT4 | {"calibration_rows": 0}, "calibration_rows=0: it is a whole number, at least 1"),
        (ONNX | INT4 | {"calibration_rows": True}, "calibration_rows=True: it is a whole number"),
        (ONNX | INT4 | {"group_size": 48}, "group_size=48: ONNX Runtime takes 16, 32, 64, 128, 256"),
        (ONNX | INT4 | {"group_size": "32"}, "group_size=32: ONNX Runtime takes") ,
        (ONNX | INT4 | {"int8_share": 1}, "int8_share=1: it is a number from 0, for no layer, to below 1"),
        (ONNX | INT4 | {"int8_share": "half"}, "int8_share=half: it is a number"),
        (ONNX | INT4 | {"int8_share": None}, "scheme=int4 needs int8_share"),
        (ONNX | {"int8_share": 0.5}, "scheme=float32 takes no int8_share"),
        ({"runtime": "openvino"} | INT4 | {"group_size": 16}, "group_size=16: OpenVINO takes 32, 64, 128"),
        (ONNX | {"limits": 5}, "limits=5: give limits by name"),
        (ONNX | {"limits": None}, "limits=null: give limits by name"),
        (ONNX | {"limits": {"agreement": None}}, "limits.agreement=null: give a number."),
        (ONNX | {"limits": {"score": "low"}}, "limits.score=low: give a number."),
        (ONNX | {"limits": {"agreement": float("nan")}}, "limits.agreement=nan: give a number."),
        (ONNX | {"limits": {"mean_difference": "x"}}, "limits.mean_difference=x: give a number or null."),
        (ONNX | {"limits": {"agreement": 99}}, "agreement is a share"),
        ({"runtime": "executorch", "carried_limits": {"score": 0.1}}, "takes no carried_limits"),
        (ONNX | INT4 | {"carried_limits": {"score": 0.1}}, "takes no carried_limits"),
    ],
)  # fmt: skip
def test_values_that_are_none(stored: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        export.target("x", stored)


def test_a_text_is_the_list_of_one() -> None:
    assert list(export.target("x", ONNX | {"of": "student"}).of) == ["student"]
    assert export.target("x", ONNX | {"limits": {"mean_difference": None}}).limits.mean_difference is None


def test_set_changes_one_limit_and_keeps_the_others() -> None:
    for line in ("limits={agreement: 0.995}", "limits.agreement=0.995", "onnx.limits.agreement=0.995"):
        (found,) = chosen("onnx", [line])
        assert found.limits == export.Limits(1e-4, 0.995, 0.1)
    (found,) = chosen("onnx", ["limits.mean_difference=1e-3", "limits.score=0.2"])
    assert found.limits == export.Limits(1e-3, 0.999, 0.2)
    (found,) = chosen("onnx", ["carried_limits.score=0.1"])
    assert found.gate_limits(quantized=True) == export.Limits(2e-3, 0.995, 0.1)
    onnx, openvino = chosen("onnx,openvino", ["opset=20"])
    assert (onnx.opset, openvino.opset) == (20, None)


@pytest.mark.parametrize(
    ("to", "line", "said"),
    [
        ("onnx", "of=student-int8", "the model that kd export takes is --model"),
        ("onnx", "onnx.of=[student]", "the model that kd export takes is --model"),
        ("openvino", "opset=18", "none of openvino takes opset"),
        ("openvino", "openvino.opset=18", "runtime=openvino takes no opset"),
        ("aoti,executorch", "opset=18", "none of aoti, executorch takes opset"),
        ("executorch", "carried_limits.score=0.1", "none of executorch takes carried_limits"),
        ("onnx", "openvino.opset=18", "--to has onnx"),
        ("onnx", "limit.agreement=1", "--to has onnx. Did you mean 'limits'"),
        ("onnx", "opset.x=18", "with a key of runtime"),
        ("onnx", "opset", "with a key of runtime"),
        ("onnx", "opset=abc", "opset=abc: it is a whole number"),
        ("onnx", "opset={a: 1}", "it is a whole number"),
        ("onnx", "limits=5", "limits=5: give limits by name"),
        ("onnx", "limits={", "is no value as in a YAML file"),
        ("onnx", "limits.agrement=1", "Did you mean 'agreement'"),
        ("onnx_int8", "calibration_rows=many", "calibration_rows=many: it is a whole number"),
    ],
)
def test_set_refuses(to: str, line: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        chosen(to, [line])


DEMO = ["experiment=demo"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["quant=bf16", "export=onnx", "export.onnx.of=[student-bf16]"], "ONNX Runtime cannot compute with bf16"),
        (["quant=nf4", "export=onnx", "export.onnx.of=[student-nf4]"], "quantized by int8_static, int8_dynamic,"),
        (["quant=fp8", "export=openvino", "export.openvino.of=student-fp8"], "cannot compute with fp8_weight_only"),
        (["quant=int8", "export=executorch", "export.executorch.of=[student-int8]"], "float models and no quantized"),
        (["quant=int8", "export=onnx_int8", "export.onnx_int8.of=[student-int8]"], "it is quantized already"),
        (["export=onnx_int4", "export.onnx_int4.group_size=64"], "does not divide hidden_size=96.*Set it to 16 or 32"),
    ],
)
def test_what_a_run_could_not_export_is_refused_before_it(lines: list[str], said: str) -> None:
    found = " ".join(contradictions(compose([*DEMO, *lines])))
    assert re.search(said, found), found


def test_what_a_run_can_export() -> None:
    quantized = "export.onnx.of=[student,student-int8,student-int4]"
    lines = ["quant=[int8,int4]", "export=[onnx,onnx_int4]", quantized]
    assert contradictions(compose([*DEMO, *lines])) == []
