"""Rounds rows of numbers to GGUF's K types: blocks of 256 numbers, divided into groups that have scales of few bits.

Follows https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-quants.c (``quantize_row_q4_K_ref`` and the
like, without an importance matrix) operation by operation, so that the result has the same bits. For each group,
several scales are tried, and the one with the smallest weighted error is taken. The scales of the groups are then
rounded themselves, as multiples of a float16 number of the block, and codes are computed with the rounded scales.

In this module the values of groups are arrays of shape (numbers in a group, groups): sums add one row after another, as
in C, and so do not depend on how many groups are computed together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from ..ops.regions import Array

__all__ = ["K_TYPES", "bits_together"]

_F = np.float32
_SIZE = 256
"""The number of values in a block."""
_NOTHING = _F(1e-15)
"""A group whose numbers are all smaller than this in magnitude is rounded to zeros."""


class _Search(NamedTuple):
    """The scales to try for a group that has a minimum: the group's range, divided by several divisors.

    The first divisor is ``codes - 1``, the second ``codes - 1 + first``. ``steps`` more divisors follow, each larger
    than the previous one by 0.1. If ``is_absolute`` is true, errors are summed as magnitudes, not as squares.
    """

    codes: int
    first: float
    steps: int
    is_absolute: bool = False


def bits_together(codes: Array, bits: int, run: int) -> Array:
    """Return codes of a few bits packed in bytes, in the shape (blocks, bytes).

    The codes for each ``run`` bytes follow each other: first those in the lowest ``bits`` bits of each byte, then those
    in the next bits of each byte, and so on.
    """
    runs = codes.reshape(len(codes), -1, 8 // bits, run)
    packed = runs[:, :, 0].copy()
    for number in range(1, 8 // bits):
        packed |= runs[:, :, number] << np.uint8(bits * number)
    return packed.reshape(len(codes), -1)


def _q2_k(blocks: Array) -> Array:
    values = _groups(blocks, 16)
    found = _with_minimum(values, np.abs(values), _Search(4, -0.5, 15, is_absolute=True))
    scales, top = _rounded_sizes(_by_block(found.scales, 16), 15)
    least, low = _rounded_sizes(_by_block(found.least, 16), 15)
    codes = _recoded(values, found.codes, _times(top, scales), _times(low, least), (0, 3))
    return np.concatenate([scales | least << np.uint8(4), bits_together(_in_blocks(codes), 2, 32), top, low], 1)


def _q3_k(blocks: Array) -> Array:
    values = _groups(blocks, 16)
    found, drafts = _symmetric_by_exchange(values, 4)
    scales = _by_block(found, 16)
    signed, top = _rounded_signed(scales, 32)
    codes = _in_blocks(_recoded(values, drafts, _times(top, signed), None, (-4, 3)))
    stored = (signed + 32).astype("u1")
    stored[(scales == 0).all(1)] = 0
    packed = np.concatenate([bits_together(stored & np.uint8(15), 4, 8), bits_together(stored >> np.uint8(4), 2, 4)], 1)
    high, low = bits_together(codes >> np.uint8(2), 1, 32), bits_together(codes & np.uint8(3), 2, 32)
    return np.concatenate([high, low, packed, top], 1)


def _q4_k(blocks: Array) -> Array:
    head, codes = _q4_or_q5_k(blocks, _Search(16, -1, 20))
    return np.concatenate([head, bits_together(codes, 4, 32)], 1)


def _q5_k(blocks: Array) -> Array:
    head, codes = _q4_or_q5_k(blocks, _Search(32, -0.5, 15))
    high = bits_together(codes >> np.uint8(4), 1, 32)
    return np.concatenate([head, high, bits_together(codes & np.uint8(15), 4, 32)], 1)


def _q4_or_q5_k(blocks: Array, search: _Search) -> tuple[Array, Array]:
    """Return (first 16 bytes of each block, codes of each block); these bytes contain the scales and minima."""
    values = _groups(blocks, 32)
    sizes = np.abs(values)
    found = _with_minimum(values, np.sqrt(_total(values * values) / _F(32)) + sizes, search)
    scales, top = _rounded_sizes(_by_block(found.scales, 8), 63)
    least, low = _rounded_sizes(_by_block(found.least, 8), 63)
    codes = _recoded(values, found.codes, _times(top, scales), _times(low, least), (0, search.codes - 1))
    six, four, high = np.uint8(63), np.uint8(15), np.uint8(0x30)
    first, second = (one[:, :4] & six | (one[:, 4:] & high) << np.uint8(2) for one in (scales, least))
    third = scales[:, 4:] & four | (least[:, 4:] & four) << np.uint8(4)
    return np.concatenate([top, low, first, second, third], 1), _in_blocks(codes)


def _q6_k(blocks: Array) -> Array:
    values = _groups(blocks, 16)
    found, drafts = _symmetric(values, 32)
    scales = _by_block(found, 16)
    signed, top = _rounded_signed(scales, 128)
    codes = _in_blocks(_recoded(values, drafts, _times(top, signed), None, (-32, 31)))
    empty = np.abs(scales).max(1) < _NOTHING
    signed[empty], top[empty], codes[empty] = 0, 0, 0
    low, high = bits_together(codes & np.uint8(15), 4, 64), bits_together(codes >> np.uint8(4), 2, 32)
    return np.concatenate([low, high, signed.astype("i1").view("u1"), top], 1)


class _Found(NamedTuple):
    """The result of a search, for each group: its scale, its minimum times -1, and a code for each number."""

    scales: Array
    least: Array
    codes: Array


def _with_minimum(values: Array, weights: Array, search: _Search) -> _Found:
    """Return scales and minima so that ``codes * scale - least`` is near the values (``make_qkx2_quants``).

    Each try rounds values to codes, and then fits the scale and the minimum to these codes by least squares, weighted
    with ``weights``. The result with the smallest error is returned.
    """
    top = _F(search.codes - 1)
    offset, highest = np.minimum(values.min(0), 0), values.max(0)
    is_flat = highest == offset
    highest = np.where(is_flat, offset + 1, highest)
    sum_w, sum_x = _total(weights), _total(weights * values)
    over = top / (highest - offset)
    codes = _nearest(over * (values - offset), 0, search.codes - 1)
    scales = _F(1) / over
    error = _error(scales * codes + offset - values, weights, search)
    for step in range(search.steps + 1):
        # A minimum that was found to be better is where the next steps begin.
        over = (_F(search.first) + _F(0.1) * _F(step) + top) / (highest - offset)
        tried = _nearest(over * (values - offset), 0, search.codes - 1)
        of_codes = weights * tried
        sum_l, sum_l2, sum_xl = _total(of_codes), _total(of_codes * tried), _total(of_codes * values)
        divisor = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
        other_offset = (sum_l2 * sum_x - sum_l * sum_xl) / divisor
        is_above = other_offset > 0
        scale = np.where(is_above, sum_xl / sum_l2, scale)
        other_offset = np.where(is_above, _F(0), other_offset)
        other = _error(scale * tried + other_offset - values, weights, search)
        is_better = (divisor > 0) & (other < error)
        np.copyto(codes, tried, where=is_better)
        error, scales = np.where(is_better, other, error), np.where(is_better, scale, scales)
        offset = np.where(is_better, other_offset, offset)
    codes[:, is_flat] = 0
    return _Found(np.where(is_flat, _F(0), scales), -offset, codes)


def _error(differences: Array, weights: Array, search: _Search) -> Array:
    return _total(weights * (np.abs(differences) if search.is_absolute else differences * differences))


def _symmetric(values: Array, most: int) -> tuple[Array, Array]:
    """Return a scale for each group, and codes from ``-most`` to ``most - 1`` (``make_qx_quants``).

    19 scales are tried. The first gives the number that is farthest from 0 the code ``-most``; the other scales are a
    little smaller or larger.
    """
    extreme, is_empty = _extremes(values)
    weights = values * values
    scales = best = codes = np.zeros(0, "<f4")
    for step in (0, *range(-9, 0), *range(1, 10)):
        tried = _nearest(-(_F(most) + _F(0.1) * _F(step)) / extreme * values, -most, most - 1)
        sum_xl, sum_l2 = _total(weights * values * tried), _total(weights * tried * tried)
        scale = np.where(sum_l2 > 0, sum_xl / sum_l2, _F(0))
        if not step:
            scales, best, codes = scale, scale * sum_xl, tried
            continue
        is_better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        np.copyto(codes, tried, where=is_better)
        scales, best = np.where(is_better, scale, scales), np.where(is_better, scale * sum_xl, best)
    codes[:, is_empty] = -most
    return np.where(is_empty, _F(0), scales), codes


def _symmetric_by_exchange(values: Array, most: int) -> tuple[Array, Array]:
    """Return a scale for each group, and codes from ``-most`` to ``most - 1`` (``make_q3_quants``).

    Codes are improved in five rounds. In each round, each number in turn gets a new code: the code that is best with
    the scale that fits all other numbers of the group.
    """
    extreme, is_empty = _extremes(values)
    codes = _nearest(-_F(most) / extreme * values, -most, most - 1)
    weights = values * values
    sum_xl, sum_l2 = _total(weights * values * codes), _total(weights * codes * codes)
    is_changing = ~is_empty
    for _ in range(5):
        changed = np.zeros_like(is_changing)
        for x, weight, code in zip(values, weights, codes, strict=True):
            other_xl, other_l2 = sum_xl - weight * x * code, sum_l2 - weight * code * code
            new = _nearest(x * other_l2 / other_xl, -most, most - 1)
            new_xl, new_l2 = other_xl + weight * x * new, other_l2 + weight * new * new
            is_better = is_changing & (other_xl > 0) & (new != code) & (new_l2 > 0)
            is_better &= new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2
            np.copyto(code, new, where=is_better)
            sum_xl, sum_l2 = np.where(is_better, new_xl, sum_xl), np.where(is_better, new_l2, sum_l2)
            changed |= is_better
        is_changing = changed
    codes[:, is_empty] = -most
    scales = np.where((sum_l2 > 0) & ~is_empty, sum_xl / sum_l2, _F(0))
    return scales, codes


def _extremes(values: Array) -> tuple[Array, Array]:
    """Return the number of each group that is farthest from 0 (1 if all are 0), and a mask of the groups of zeros."""
    at = np.abs(values).argmax(0)[None]
    extreme = np.take_along_axis(values, at, 0)[0]
    is_empty = np.abs(extreme) < _NOTHING
    return np.where(is_empty, _F(1), extreme), is_empty


def _rounded_sizes(found: Array, most: int) -> tuple[Array, Array]:
    """Return the scales (or minima) of each block as whole numbers up to ``most``, and a float16 that multiplies them.

    The float16 is two bytes, in the shape (blocks, 2). Scales below 0 become 0.
    """
    largest = np.maximum(found.max(1, keepdims=True), 0)
    over = np.where(largest > 0, _F(most) / largest, _F(0))
    return _nearest(over * found, 0, most).astype("u1"), _half_bytes(largest / _F(most))


def _rounded_signed(found: Array, most: int) -> tuple[Array, Array]:
    """Return scales as whole numbers from ``-most`` on, and the float16 (two bytes) of a block that multiplies them."""
    at = np.abs(found).argmax(1)[:, None]
    extreme = np.take_along_axis(found, at, 1)
    over = np.where(extreme == 0, _F(0), -_F(most) / extreme)
    signed = _nearest(over * found, -most, most - 1)
    return signed, _half_bytes(np.where(over == 0, _F(0), _F(1) / over))


def _half_bytes(numbers: Array) -> Array:
    return np.ascontiguousarray(numbers.astype("<f2")).view("u1")


def _times(half: Array, scales: Array) -> Array:
    """Return the float16 of each block times the whole numbers of its groups, in the shape (groups,)."""
    products: Array = half.view("<f2").astype("<f4") * scales.astype("<f4")
    return products.reshape(-1)


def _recoded(values: Array, codes: Array, scales: Array, least: Array | None, span: tuple[int, int]) -> Array:
    """Return the codes of values for the rounded scales and minima; a group whose scale is 0 keeps its old ``codes``.

    ``span`` is (lowest code, highest code). The lowest code is subtracted, so that the returned codes begin at 0.
    """
    above = values if least is None else values + least
    new = _nearest(above / np.where(scales == 0, _F(1), scales), *span)
    return (np.where(scales == 0, codes, new) - _F(span[0])).astype("u1")


def _groups(blocks: Array, size: int) -> Array:
    """Return the numbers of all groups as an array of shape (numbers in a group, groups)."""
    return np.ascontiguousarray(blocks.reshape(-1, size).T)


def _by_block(found: Array, number: int) -> Array:
    """Return an array that has one number per group, reshaped to (blocks, groups in a block)."""
    return found.reshape(-1, number)


def _in_blocks(codes: Array) -> Array:
    """Return the codes of groups as an array of shape (blocks, codes of a block)."""
    return np.ascontiguousarray(codes.T).reshape(-1, _SIZE)


def _nearest(numbers: Array, least: float, most: float) -> Array:
    """Return the nearest whole numbers between two bounds; halves are rounded to even numbers."""
    whole: Array = np.rint(numbers)
    return np.clip(whole, least, most, out=whole)


def _total(rows: Array) -> Array:
    """Return the sum of the numbers of each group, added from the first to the last.

    numpy adds whole rows in this order. Only for a single group, it would add the numbers in pairs, which rounds
    differently; but a block has at least eight groups.
    """
    total: Array = np.add.reduce(rows)
    return total


K_TYPES: Mapping[str, Callable[[Array], Array]] = {
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
}
"""{type: function from float32 numbers of shape (blocks, 256) to the bytes of blocks}."""
