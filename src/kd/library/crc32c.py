"""CRC-32C (Castagnoli) of large buffers with numpy: many stretches side by side, then joined.

A remainder of polynomials over GF(2), so the sum of two texts one after the other is the first one's, moved over the
second's length, plus the second's. Definition: RFC 3720; the masked form is LevelDB's.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # reflected
ONES = 0xFFFFFFFF
LANES = 1 << 13  # stretches that are walked through together
BLOCK = 1 << 24  # bytes that are cut into them at once
Words = NDArray[np.uint32]


@functools.cache
def table() -> Words:
    """What two further bytes, low one first, do to a remainder of 0."""
    values = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(POLYNOMIAL), values >> 1).astype(np.uint32)
    return values


def crc32c(data: bytes | memoryview | NDArray[np.uint8]) -> int:
    """The sum of some bytes, as google-crc32c and others give it."""
    buffer, remainder = np.frombuffer(data, np.uint8), ONES
    for start in range(0, len(buffer), BLOCK):
        block = buffer[start : start + BLOCK]
        stretch = len(block) // LANES // 2 * 2
        if stretch >= 64:  # below that joining takes longer than walking
            remainder = side_by_side(block[: stretch * LANES].reshape(LANES, stretch), remainder)
            block = block[stretch * LANES :]
        remainder = walk(block, remainder)
    return remainder ^ ONES


def side_by_side(stretches: NDArray[np.uint8], remainder: int) -> int:
    """The remainder after stretches ``[LANES, bytes]``, with that of what stands before them."""
    remainders, steps = np.zeros(LANES, np.uint32), table()
    remainders[0] = remainder
    for column in np.ascontiguousarray(stretches.view("<u2").T):
        remainders = (remainders >> 16) ^ steps.take(remainders.astype(np.uint16) ^ column)
    return joined(remainders, stretches.shape[1])


def walk(buffer: NDArray[np.uint8], remainder: int) -> int:
    """The remainder after some more bytes, one by one."""
    single = byte_table()
    for byte in buffer.tobytes():
        remainder = (remainder >> 8) ^ single[(remainder ^ byte) & 0xFF]
    return remainder


@functools.cache
def byte_table() -> list[int]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(POLYNOMIAL), values >> 1).astype(np.uint32)
    return [int(value) for value in values]


def joined(remainders: Words, length: int) -> int:
    """The remainder of stretches of ``length`` bytes each, neighbours joined two by two (LANES is a power of two)."""
    move = over_zeros(length)
    while len(remainders) > 1:
        remainders = times(move, remainders[0::2]) ^ remainders[1::2]
        move = times(move, move)
    return int(remainders[0])


def over_zeros(length: int) -> Words:
    """What that many zero bytes do to a remainder, as a matrix over GF(2): the images of its 32 bits."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    one = (bits >> 8) ^ np.array(byte_table(), np.uint32)[bits & np.uint32(0xFF)]  # a zero byte
    result = bits
    while length:
        if length & 1:
            result = times(one, result)
        one, length = times(one, one), length >> 1
    return result


def times(matrix: Words, vectors: Words) -> Words:
    """The matrix applied to each vector of 32 bits."""
    found = np.zeros_like(vectors)
    for bit in range(32):
        found ^= np.where((vectors >> np.uint32(bit)) & 1, matrix[bit], np.uint32(0)).astype(np.uint32)
    return found


def masked(value: int) -> int:
    """How sums are stored beside the data they are of."""
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & ONES
