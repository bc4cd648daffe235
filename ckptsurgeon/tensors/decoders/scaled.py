"""Decodes 8-bit floats or integers by multiplying them by a scale: one for the tensor, each row or each block.

If there is a zero point, it is subtracted from the codes first. Codes are also multiplied by ``weight_scale_inv`` of
DeepSeek-V3, although its name says inverse: https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/README_WEIGHTS.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from ...errors import FormatError
from ...util.text import escape
from ..composition import decoded, reshape
from ..info import Decoded, TensorInfo
from ..ops.regions import Array, Box
from ..quantised.block_scales import FUSED, are_without_blocks, fitted_scales
from ..quantised.encoding import EXPERT_SCALES
from ..quantised.settings import BLOCK_SETTINGS, QuantisationSettings
from ._decoder import Request, UndecodableError, as_exponents, groups_of

__all__ = ["DECODER", "few_bits"]

USUAL_BLOCK = 128
"""The rows and columns of a block if no setting contains them, as in DeepSeek's models."""
SCALES = (
    ".weight_scale_inv", ".weight_scale", ".weight_descale", ".scale_weight", ".qscale_weight",
    ".weights_scaling_factor", ".scale", "_scale_inv", "_scale", "_descale", ".weight._scale",
    "._scale", *EXPERT_SCALES,
)  # fmt: skip
"""The endings of the keys of scales that multiply the codes."""

OF_FUSED = "; the tensor has the name of several fused weights, each of which may have blocks of its own"


class _Scaled:
    """The decoder of codes that are numbers, not indices of a table: weight = (code - zero point) * scale.

    ``Decoded.facts`` has ``step0``, ``step1`` and so on: how many elements along each dimension share a scale. If it
    also has ``times``, the weight is multiplied by this number. If it has ``bits``, no code may need more bits. The
    stored tensors are the codes, the scale and perhaps a zero point, all with as many dimensions as the weight.
    """

    families = ("fp8", "mxfp8", "int8", "Quanto")

    def describe(self, asked: Request) -> TensorInfo:
        codes = asked.codes
        if ".embedding_scale" in asked.parts:
            raise UndecodableError("the tensor is a quantised embedding (embedding_scale), which no decoder knows")
        if any(one.endswith(("._shift", "._data._data")) for one in asked.parts):
            raise UndecodableError(
                "the codes are integers of 2 or 4 bits, packed by quanto: the headers do not contain the weight's shape"
            )
        end = next((end for end in SCALES if end in asked.parts), "")
        if not end:
            raise UndecodableError("the tensor has no scale")
        _check_other_scales(asked, end)
        if ".weight_g_idx" in asked.parts:
            raise UndecodableError("the columns are permuted (weight_g_idx)")
        scale = as_exponents(asked.parts[end])
        own = asked.own
        sizes = tuple(size for name in BLOCK_SETTINGS for size in own.pairs(name))
        stated = own.pairs("weight_block_size")
        try:
            scale, steps = _aligned(codes.shape, scale, sizes)
            if asked.coded.method != "mxfp8":  # always has 32 columns in a block
                _check_blocks(codes.shape, scale.shape, stated)
        except UndecodableError as error:
            fused = OF_FUSED if stated and FUSED.search(asked.coded.name) else ""
            raise UndecodableError(f"{error}{fused}") from None
        found = [("codes", codes), ("scale", scale)]
        if (zero := asked.parts.get(".weight_zero_point")) is not None:
            if fitted_scales(codes.shape, zero.shape) != scale.shape:
                raise UndecodableError(
                    f"the zero points have the shape {list(zero.shape)}, which does not fit the scales "
                    f"{list(scale.shape)}"
                )
            zero = reshape(zero, scale.shape)
            found.append(("zero", zero))
        facts = tuple((f"step{dim}", step) for dim, step in enumerate(steps))
        bits = few_bits(own) if codes.dtype == "int8" else 0
        return decoded(codes.shape, Decoded(tuple(found), "scaled", (*facts, ("bits", bits)) if bits else facts))

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        ranges = [groups_of(span, step) for span, step in zip(box, _steps(made), strict=True)]
        (codes, _), *others = made.parts
        return {codes: box, **{end: _within(info.shape, ranges) for end, info in others}}

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        steps, facts = _steps(made), dict(made.facts)
        codes, scale, *zero = arrays.values()
        _check_bits(made.name, codes, int(facts.get("bits", 0)))
        values: Array = codes.astype("<f4", copy=False)  # changed in place below: the array was read for this call only
        for rows, begin, end in _row_groups(box, steps):
            part = values[..., begin:end, :] if values.ndim > 1 else values
            if zero:
                part -= _spread(zero[0], steps, box, rows)
            part *= _spread(scale, steps, box, rows)
        times = facts.get("times")
        return values if times is None else values * np.float32(times)


def _check_other_scales(asked: Request, end: str) -> None:
    """Raise UndecodableError unless all scales of the weight are equal to the scale with the ending ``end``.

    ``.scale`` is left out: it may be the scale of something else.
    """
    own = asked.parts[end]
    for other in SCALES:
        info = asked.parts.get(other)
        if info is None or other in (end, ".scale") or (info.place is not None and info.place == own.place):
            continue
        is_alike = (info.dtype, info.shape) == (own.dtype, own.shape)
        are_equal = asked.are_equal(end, other) if is_alike else False
        if not are_equal:
            how = "cannot be compared" if are_equal is None else "differ"
            raise UndecodableError(f"the tensor has two scales ({end[1:]} and {other[1:]}), which {how}")


def _check_blocks(shape: tuple[int, ...], scales: tuple[int, ...], sizes: tuple[tuple[int, int], ...]) -> None:
    """Raise UndecodableError if the shape of the scales does not fit the block sizes in the settings.

    ``sizes`` are these block sizes (rows, columns). Scales for blocks of another size may belong to another weight. One
    scale for each row, for each column or for the whole tensor is always accepted, because it needs no block size.
    """
    if not sizes or len(shape) < 2 or are_without_blocks(shape, scales):
        return
    needed = [(-(-shape[-2] // rows), -(-shape[-1] // columns)) for rows, columns in sizes]
    if scales[-2:] not in needed:
        raise UndecodableError(
            f"the scale has the shape {list(scales)}, but the codes {list(shape)} have {needed[0][0]} x {needed[0][1]} "
            f"blocks of the weight_block_size {list(sizes[0])} (quantization_config)"
        )


def few_bits(settings: QuantisationSettings) -> int:
    """Return the number of bits of a code in the settings, if it is below 8 although codes are bytes; else 0."""
    told = {bits for one in settings.sections("weights") for bits in one.numbers("num_bits", most=32)}
    return max(told) if told and max(told) < 8 else 0


def _check_bits(name: str, codes: Array, bits: int) -> None:
    """Raise FormatError if a code does not fit in ``bits`` bits, as a signed integer; 0 for no limit."""
    if not bits or not codes.size:
        return
    low, high, limit = int(codes.min()), int(codes.max()), 1 << bits - 1
    if low < -limit or high >= limit:
        raise FormatError(
            f"{escape(name)} has the code {high if high >= limit else low}, but its quantization_config says num_bits "
            f"{bits}: codes from {-limit} to {limit - 1}.",
            rule="code",
        )


def _row_groups(box: Box, steps: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (index of the group in the box, first row, row after the last) for each group of rows that share scales.

    If all rows have the same scales, or each row has its own, the whole box is one group with the index -1.
    """
    if len(box) < 2 or steps[-2] == 1:
        yield -1, 0, box[-2][1] - box[-2][0] if len(box) > 1 else 1
        return
    first, last = box[-2]
    for number, group in enumerate(range(*groups_of((first, last), steps[-2]))):
        begin, end = group * steps[-2], (group + 1) * steps[-2]
        yield number, max(begin - first, 0), min(end, last) - first


def _steps(made: Decoded) -> list[int]:
    facts = dict(made.facts)
    return [int(facts[f"step{dim}"]) for dim in range(len(made.of[0].shape))]


def _within(shape: Sequence[int], ranges: Sequence[tuple[int, int]]) -> Box:
    return tuple((0, 1) if size == 1 else one for size, one in zip(shape, ranges, strict=True))


def _spread(scale: Array, steps: Sequence[int], box: Box, rows: int) -> Array:
    """Return the scales of a group of rows as float32, in a shape that numpy broadcasts to the shape of the group.

    ``steps`` is the size of a block of elements that share a scale, and ``box`` is the part of the weight. ``rows`` is
    the index of the group, as ``_row_groups`` yields it.
    """
    made: Array = scale.astype("<f4")
    if rows >= 0 and made.shape[-2] > 1:
        made = made[..., rows : rows + 1, :]
    for dim, ((begin, end), step) in enumerate(zip(box, steps, strict=True)):
        if made.shape[dim] > 1 and step > 1:
            made = np.take(made, np.arange(begin, end) // step - begin // step, axis=dim)
    return made


def _aligned(
    shape: tuple[int, ...], scale: TensorInfo, sizes: tuple[tuple[int, int], ...]
) -> tuple[TensorInfo, list[int]]:
    """Return ``scale`` with as many dimensions as the codes, and how many elements share a scale along each dimension.

    ``shape`` is the shape of the codes, ``sizes`` are the block sizes (rows, columns) in the settings.
    """
    own, steps = _fitted(shape, scale.shape, sizes)
    return reshape(scale, own), list(steps)


@lru_cache(1024)  # tens of thousands of weights have few shapes
def _fitted(
    shape: tuple[int, ...], scales: tuple[int, ...], sizes: tuple[tuple[int, int], ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the new shape of the scales, and how many elements share a scale along each dimension.

    The parameters are the same as for ``_aligned``, but ``scales`` is only the shape of the scales. Raises
    UndecodableError if the scales do not fit.
    """
    own = fitted_scales(shape, scales)
    if len(own) != len(shape):
        raise UndecodableError(f"the scale has the shape {list(scales)}, which does not fit the codes {list(shape)}")
    steps = (
        _step(size, number, sizes, dim - len(shape)) for dim, (size, number) in enumerate(zip(shape, own, strict=True))
    )
    return own, tuple(steps)


def _step(size: int, number: int, sizes: tuple[tuple[int, int], ...], dim: int) -> int:
    """Return the number of elements that share a scale, of the ``size`` elements along a dimension.

    ``number`` is the number of scales along this dimension, ``sizes`` are the block sizes (rows, columns) in the
    settings. ``dim`` is counted from the last dimension, which is -1. Raises UndecodableError if the scales do not fit.
    """
    if number in (1, size):
        return 1 if number == size else max(size, 1)
    told = [pair[dim] for pair in sizes] if dim >= -2 else []
    possible = [*told, USUAL_BLOCK, *([size // number] if size % number == 0 else [])]
    for one in possible:
        if -(-size // one) == number:
            return one
    raise UndecodableError(
        f"there are {number} scales for {size} elements along a dimension, and no block size in the settings fits"
    )


DECODER = _Scaled()
