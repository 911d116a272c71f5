"""TensorFlow's checkpoints of version 2 without TensorFlow: ``X.index`` and ``X.data-00000-of-0000N``.

The index is a sorted string table as LevelDB writes it: blocks of entries whose keys leave out what they share with the
key before, and a footer that leads to the block of blocks. A value is a BundleEntryProto, that of the empty key a
BundleHeaderProto. The data files are the tensors' bytes. Everything has a masked CRC-32C, and all of them are checked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kd.errors import UserError
from kd.library.crc32c import crc32c, masked

FOOTER = 48  # bytes: two handles, padding, and the magic number
MAGIC = 0xDB4775248B80FB57
TRAILER = 5  # bytes behind each block: how it is compressed, and its sum
DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", 6: "i1", 9: "<i8", 10: "?", 19: "<f2"}  # by tensorflow's numbers
BFLOAT16 = 14
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and what it is."""

    dtype: int
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int
    sliced: bool  # kept in parts under other names


class TensorBundle:
    """The tensors of a checkpoint by name; ``prefix`` is its path without ``.index``.

    Raises UserError if the index is none or is broken; a tensor's own sum is checked when it is read.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.index = prefix.with_name(f"{prefix.name}.index")
        if not self.index.is_file():
            raise UserError(f"{self.index} is missing: a TensorFlow checkpoint has it beside its data files.")
        try:
            entries = dict(table(self.index.read_bytes()))
            header = message(entries.pop(b"", b""))
            self.shards = int(header.get(1, [1])[0])
            if header.get(2, [0])[0]:
                raise ValueError("its numbers are big-endian")
            self.entries = {name.decode(): entry(value) for name, value in sorted(entries.items())}
        except (ValueError, IndexError) as error:
            raise UserError(
                f"{self.index} cannot be read as a TensorFlow checkpoint: {error}. Copy it again."
            ) from error
        self.data: dict[int, NDArray[np.uint8]] = {}

    def shard(self, number: int) -> NDArray[np.uint8]:
        """The bytes of one of the data files, mapped."""
        if number not in self.data:
            path = self.shard_path(number)
            if not path.is_file():
                raise UserError(f"{path} is missing: the checkpoint has {self.shards} data files. Copy all of them.")
            self.data[number] = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        return self.data[number]

    def shard_path(self, number: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{number:05d}-of-{self.shards:05d}")

    def check_shards(self) -> None:
        """Raises UserError if a data file is missing, or shorter than its tensors."""
        for number in range(self.shards):
            ends = [one.offset + one.size for one in self.entries.values() if one.shard == number]
            size = len(self.shard(number))
            if size < max(ends, default=0):
                raise UserError(
                    f"{self.shard_path(number)} is cut off: it has {size:,} bytes, its tensors take {max(ends):,}. "
                    "Copy it again."
                )

    def read(self, name: str) -> NDArray[Any]:
        """A tensor as an array; bfloat16 becomes float32. Raises UserError if its sum is wrong."""
        one = self.entries[name]
        where = f"{self.shard_path(one.shard)}, tensor {name}"
        if one.sliced or one.dtype not in (*DTYPES, BFLOAT16):
            what = "kept in slices" if one.sliced else f"of the type {one.dtype}"
            raise UserError(f"{where}: it is {what}, which kd does not read.")
        raw = self.shard(one.shard)[one.offset : one.offset + one.size]
        dtype = np.dtype("<u2" if one.dtype == BFLOAT16 else DTYPES[one.dtype])
        if len(raw) != one.size or one.size != dtype.itemsize * int(np.prod(one.shape, dtype=np.int64)):
            raise UserError(f"{where}: {len(raw):,} bytes are there, its shape {list(one.shape)} takes another number.")
        if masked(crc32c(raw)) != one.crc:
            raise UserError(f"{where}: its checksum (CRC-32C) is wrong, so the file was damaged. Copy it again.")
        values = raw.view(dtype).reshape(one.shape)
        if one.dtype == BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values


def table(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a sorted string table."""
    if len(content) < FOOTER or int.from_bytes(content[-8:], "little") != MAGIC:
        raise ValueError("its last bytes are not those of such a file")
    place = len(content) - FOOTER
    for _ in range(2):  # over the handle of the block about the blocks
        _, place = varint(content, place)
    offset, place = varint(content, place)
    size, _ = varint(content, place)
    for _, handle in block(content, offset, size):
        start, place = varint(handle, 0)
        yield from block(content, start, varint(handle, place)[0])


def block(content: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    whole = content[offset : offset + size + TRAILER]
    if len(whole) < size + TRAILER or size < 4:
        raise ValueError("a block is cut off")
    if masked(crc32c(whole[: size + 1])) != int.from_bytes(whole[size + 1 :], "little"):
        raise ValueError("the checksum of a block is wrong")
    if whole[size]:
        raise ValueError("it is compressed")
    restarts = int.from_bytes(whole[size - 4 : size], "little")
    end, place, key = size - 4 - 4 * restarts, 0, b""
    while place < end:
        shared, place = varint(whole, place)
        own, place = varint(whole, place)
        length, place = varint(whole, place)
        key = key[:shared] + whole[place : place + own]
        place += own + length
        yield key, whole[place - length : place]


def varint(content: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, low ones first, and the place behind it."""
    value, shift = 0, 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number is too long")


def message(content: bytes) -> dict[int, list[Any]]:
    """The fields of a protocol buffer by number, each as often as it is there."""
    found: dict[int, list[Any]] = {}
    place = 0
    while place < len(content):
        key, place = varint(content, place)
        kind = key & 7
        value: Any
        if kind == VARINT:
            value, place = varint(content, place)
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(kind)
            if kind == BYTES:
                size, place = varint(content, place)
            if size is None or place + size > len(content):
                raise ValueError("an entry is broken")
            raw, place = content[place : place + size], place + size
            value = raw if kind == BYTES else int.from_bytes(raw, "little")
        found.setdefault(key >> 3, []).append(value)
    return found


def entry(content: bytes) -> Entry:
    fields = message(content)

    def number(key: int) -> int:
        return int(fields.get(key, [0])[0])

    sizes = message(fields[2][0]).get(2, []) if 2 in fields else []
    shape = tuple(int(message(size).get(1, [0])[0]) for size in sizes)
    return Entry(number(1), shape, number(3), number(4), number(5), number(6), sliced=7 in fields)
