"""Finds pages of zeros in blocks of bytes that were read for another purpose, for example to copy them."""

from __future__ import annotations

__all__ = ["GRID", "PAGE", "zero_page"]

PAGE = 4096
"""The size of a page of zeros in bytes."""
GRID = 1 << 15
"""The distance in bytes between the checked offsets of a block: a run of ``GRID + PAGE`` zeros is always noticed."""
_WORDS, _HEAD = GRID // 8, 64
_PAGE = bytes(PAGE)


def zero_page(view: memoryview) -> int | None:
    """Return the offset of the first page of zeros in a block; None if there is none.

    The offset is a multiple of ``GRID``: only 8 bytes at each multiple are checked, unless they are zeros. So a block
    of 1 MiB takes about 2 microseconds.
    """
    words = view[: len(view) // 8 * 8].cast("Q")[::_WORDS].tolist()
    if 0 not in words:
        return None
    offsets = (number * GRID for number, word in enumerate(words) if not word)
    heads = (at for at in offsets if bytes(view[at : at + _HEAD]) == _PAGE[:_HEAD])
    return next((at for at in heads if bytes(view[at : at + PAGE]) == _PAGE), None)
