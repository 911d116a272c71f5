"""Writes TensorFlow checkpoints of odd forms: a second program for the format that kd.library.tensor_bundle reads.

Written after LevelDB's table format and tensorflow's tensor_bundle.proto; sums are computed bit by bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

NUMBERS = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bool": 10, "float16": 19}


def bitwise(data: bytes) -> int:
    """CRC-32C by its definition."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> bytes:
    value = bitwise(data)
    return ((((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def varint(value: int) -> bytes:
    found = b""
    while value >= 0x80:
        found, value = found + bytes([value & 0x7F | 0x80]), value >> 7
    return found + bytes([value])


def number(key: int, value: int) -> bytes:
    return varint(key << 3) + varint(value) if value else b""


def text(key: int, value: bytes) -> bytes:
    return varint(key << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]], kind: int = 0) -> bytes:
    """Keys leave out what they share with the one before, and one restart point."""
    found, before = b"", b""
    for key, value in entries:
        shared = 0
        while key[shared : shared + 1] == before[shared : shared + 1] != b"":
            shared += 1
        found += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    found += (0).to_bytes(4, "little") + (1).to_bytes(4, "little") + bytes([kind])
    return found + masked(found)


def write(
    prefix: Path, shards: list[Arrays], *, big_endian: bool = False, compressed: bool = False,
    bfloat16: tuple[str, ...] = (), sliced: tuple[str, ...] = (), numbers: dict[str, int] | None = None,
) -> None:  # fmt: skip
    """``shards`` are the tensors of each data file; those in ``bfloat16`` are given as uint16."""
    header = number(1, len(shards)) + number(2, int(big_endian)) + text(3, number(1, 1))
    entries = {"": header}
    for shard, tensors in enumerate(shards):
        data = b""
        for name, values in tensors.items():
            raw = values.tobytes()
            kind = 14 if name in bfloat16 else (numbers or {}).get(name) or NUMBERS[str(values.dtype)]
            shape = b"".join(text(2, number(1, size)) for size in values.shape)
            entries[name] = number(1, kind) + text(2, shape) + number(3, shard) + number(4, len(data))
            entries[name] += number(5, len(raw)) + varint(6 << 3 | 5) + masked(raw)
            entries[name] += text(7, b"") if name in sliced else b""
            data += raw
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{len(shards):05d}").write_bytes(data)
    stored = sorted((name.encode(), value) for name, value in entries.items())
    halves = [half for half in (stored[: len(stored) // 2], stored[len(stored) // 2 :]) if half]
    content, handles = b"", []
    for half in halves:  # several blocks, as a large checkpoint has them
        one = block(half, int(compressed))
        handles.append((half[-1][0], varint(len(content)) + varint(len(one) - 5)))
        content += one
    places = []
    for one in (block([]), block(handles)):
        places.append(varint(len(content)) + varint(len(one) - 5))
        content += one
    footer = b"".join(places).ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")
    prefix.with_name(f"{prefix.name}.index").write_bytes(content + footer)
