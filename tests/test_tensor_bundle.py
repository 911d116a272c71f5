"""TensorFlow checkpoints of forms that the fixture has not, written by a program of their own."""

from __future__ import annotations

import contextlib
from pathlib import Path

import bundle_writer
import numpy as np
import pytest

from kd.errors import UserError
from kd.library.tensor_bundle import TensorBundle

RANDOM = np.random.default_rng(0)
FIRST: bundle_writer.Arrays = {
    "layer_0/kernel": RANDOM.normal(size=(3, 5)).astype(np.float32),
    "step": np.array(7, np.int64),
}
SECOND: bundle_writer.Arrays = {
    "layer_0/kernel/adam_m": np.zeros((3, 5), np.float32),
    "layer_10/kernel": RANDOM.normal(size=(4,)).astype(np.float16),
    "layer_2/kernel": RANDOM.normal(size=(2, 2, 2)),
    "nothing": np.zeros((0, 4), np.float32),
}


def test_several_files_blocks_and_types(tmp_path: Path) -> None:
    bundle_writer.write(tmp_path / "x", [FIRST, SECOND])
    bundle = TensorBundle(tmp_path / "x")
    bundle.check_shards()
    assert bundle.entries.keys() == FIRST.keys() | SECOND.keys()
    for name, values in {**FIRST, **SECOND}.items():
        found = bundle.read(name)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    values = np.array([0x3F80, 0xC040, 0x3DCD], np.uint16)  # 1, -3 and the nearest to 0.1
    bundle_writer.write(tmp_path / "x", [{"w": values}], bfloat16=("w",))
    np.testing.assert_allclose(TensorBundle(tmp_path / "x").read("w"), [1.0, -3.0, 0.10009765625], rtol=0)


def test_one_of_two_files_is_missing(tmp_path: Path) -> None:
    bundle_writer.write(tmp_path / "x", [FIRST, SECOND])
    (tmp_path / "x.data-00001-of-00002").unlink()
    with pytest.raises(UserError, match=r"x.data-00001-of-00002 is missing: the checkpoint has 2 data files"):
        TensorBundle(tmp_path / "x").check_shards()


@pytest.mark.parametrize(
    ("form", "match"),
    [({"big_endian": True}, "its numbers are big-endian"), ({"compressed": True}, "it is compressed")],
)
def test_forms_that_are_not_read(tmp_path: Path, form: dict[str, bool], match: str) -> None:
    bundle_writer.write(tmp_path / "x", [FIRST], **form)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"x.index cannot be read as a TensorFlow checkpoint: {match}"):
        TensorBundle(tmp_path / "x")


def test_tensors_that_are_not_read(tmp_path: Path) -> None:
    text = {"words": np.frombuffer(b"abc", np.uint8)}
    bundle_writer.write(tmp_path / "x", [{**FIRST, **text}], sliced=("step",), numbers={"words": 7})
    bundle = TensorBundle(tmp_path / "x")
    with pytest.raises(UserError, match="tensor words: it is of the type 7, which kd does not read"):
        bundle.read("words")
    with pytest.raises(UserError, match="tensor step: it is kept in slices"):
        bundle.read("step")


def test_an_index_cut_anywhere_is_named_and_ends(tmp_path: Path) -> None:
    """No cut and no flipped bit makes it run on, or gives other tensors without a word."""
    bundle_writer.write(tmp_path / "x", [FIRST, SECOND])
    index = tmp_path / "x.index"
    whole = index.read_bytes()
    right = TensorBundle(tmp_path / "x").entries
    for place in range(len(whole)):
        for broken in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]):
            index.write_bytes(broken)
            with contextlib.suppress(UserError):
                assert TensorBundle(tmp_path / "x").entries == right  # a byte that is padding
