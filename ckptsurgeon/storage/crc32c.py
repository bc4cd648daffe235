"""Computes CRC-32C (Castagnoli, RFC 3720 B.4), the checksum of LevelDB's tables and TensorFlow's tensors.

Neither the standard library nor isal can compute it. The checksum is linear: the checksum of a message is the checksum
of its left half, shifted by the length of the right half, plus the checksum of its right half. So numpy folds a block
in half until one word remains, at a gigabyte per second. For short data, numpy is not imported.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Words = NDArray[np.uint32]

__all__ = ["SHORT", "SHORTEST", "crc32c", "masked", "unmasked"]

_POLYNOMIAL = 0x82F63B78
"""The polynomial in reflected form: the lowest bit belongs to the highest power. The whole file uses this form."""
_MASK_DELTA = 0xA282EAD8
SHORT, SHORTEST = 1 << 12, 1 << 8
"""Sizes in bytes above which numpy is faster: ``SHORT`` if numpy must be imported first, ``SHORTEST`` otherwise."""
_ROW = 1 << 14
"""The number of words that are folded at once: few enough to stay in the cache of a processor core."""
_BLOCK = 1 << 20


def unmasked(stored: int) -> int:
    """Return the checksum that LevelDB stores in the masked form ``stored`` (leveldb's ``util/crc32c.h``)."""
    turned = (stored - _MASK_DELTA) & 0xFFFFFFFF
    return (turned >> 17 | turned << 15) & 0xFFFFFFFF


def masked(crc: int) -> int:
    """Return the masked form of the checksum ``crc``; LevelDB stores this form."""
    return ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF


def crc32c(data: bytes | bytearray | memoryview, crc: int = 0, *, short: int = SHORT) -> int:
    """Return the CRC-32C of bytes; ``crc`` is the CRC-32C of the bytes before them, if there are any.

    Blocks of ``short`` bytes or more are computed with numpy.
    """
    view = memoryview(data).cast("B")
    crc ^= 0xFFFFFFFF
    for begin in range(0, len(view), _BLOCK):
        block = view[begin : begin + _BLOCK]
        crc = _short(block, crc) if len(block) < short else _long(block, crc)
    return crc ^ 0xFFFFFFFF


def _short(data: memoryview, crc: int) -> int:
    table = _table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


@cache
def _table() -> tuple[int, ...]:
    """Return the CRC of each of the 256 values of a byte."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


def _long(data: memoryview, crc: int) -> int:
    """Return the CRC of ``data``, computed with numpy; ``crc`` is the CRC of the bytes before it.

    The 32-bit words are put into rows of equal length, and the rows are folded into one. The first row is filled up
    with zeros at its beginning: they do not change the CRC.
    """
    import numpy as np

    whole = len(data) & ~3
    words = np.frombuffer(data[:whole], "<u4")
    width = min(_ROW, 1 << (len(words) - 1).bit_length())
    rows = -(-len(words) // width)
    folded = np.zeros(width, "<u4")
    first = len(words) - (rows - 1) * width
    folded[width - first :] = words[:first]
    folded[width - first] ^= np.uint32(crc)
    for row in range(1, rows):
        begin = first + (row - 1) * width
        folded = _moved(folded, 4 * width) ^ words[begin : begin + width]
    while width > 1:
        width //= 2
        folded = _moved(folded[:width], 4 * width) ^ folded[width:]
    return _short(data[whole:], int(_moved(folded, 4)[0]))


def _moved(words: Words, nbytes: int) -> Words:
    """Return a CRC for each 32-bit word in ``words``: that of the word, followed by ``nbytes`` zero bytes."""
    low, high = _moves(nbytes)
    moved: Words = low[words & 0xFFFF] ^ high[words >> 16]
    return moved


@cache
def _moves(nbytes: int) -> tuple[Words, Words]:
    """Return two lookup tables for ``_moved``: for the lower 16 bits of a word, and for the upper 16 bits.

    A table has an entry for each value of its bits: the CRC of the word in which all other bits are zero, followed by
    ``nbytes`` zero bytes. ``nbytes`` is a power of two and at least 4.
    """
    import numpy as np

    if nbytes == 4:
        table, bits = _table(), []
        for bit in range(32):
            word = 1 << bit
            for _ in range(4):
                word = table[word & 0xFF] ^ word >> 8
            bits.append(word)
        images = np.array(bits, "<u4")
    else:  # shift twice by half as many bytes
        low, high = _moves(nbytes // 2)
        once = np.concatenate([low[1 << np.arange(16)], high[1 << np.arange(16)]])
        images = low[once & 0xFFFF] ^ high[once >> 16]
    return _spanned(images[:16]), _spanned(images[16:])


def _spanned(images: Any) -> Words:
    """Return the values of a function for all 16-bit numbers; the function must be linear over XOR.

    ``images`` has the values of the function for the numbers 1, 2, 4, 8 … 2**15.
    """
    import numpy as np

    table = np.zeros(1 << 16, "<u4")
    for bit, image in enumerate(images):
        table[1 << bit : 2 << bit] = table[: 1 << bit] ^ image
    return table
