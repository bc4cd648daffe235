"""Finds implausible scales and zero points, which no quantisation method writes, while weights are decoded.

A scale is implausible ("odd" in names) if it is negative in an encoding without negative scales, if it makes weights
larger than any real weight, or if it is 0 although its codes are not all 0. ``odd_scales.kinds`` lists further kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, sqrt

import numpy as np

from ...errors import FormatError
from ...util.text import escape
from ..dtypes import BLOCK_SCALES, BLOCKS
from ..info import Decoded, TensorInfo
from ..odd_scales.kinds import (
    BELOW,
    CLIPPED,
    HUGE,
    NEGATED,
    NEGATIVE,
    NESTED,
    NO_OFFSET,
    ROUNDED,
    SIGNED_CODES,
    UNSET,
    ZERO,
    ZERO_BLOCKS,
)
from ..odd_scales.notes import OddScales
from ..odd_scales.shifted import SHIFT, SHIFTED
from ..odd_scales.stray_signs import CHOSEN, RARE
from ..ops.casts import widened
from ..ops.regions import Array, Box
from ..ops.small_floats import SMALL_FLOATS
from ._code_ends import have_clipped_codes, have_signed_codes
from ._code_places import spread_of_highest
from ._group_codes import kinds_of_groups
from ._group_ends import ends_of_groups
from ._rounded_words import have_rounded_words
from ._scale_tests import (
    are_negative,
    have_many_values,
    lean_of,
    odd_biases,
    rise_with_scales,
    should_be_mixed,
    steps_off,
)
from ._signs import are_chosen, count_negative

__all__ = ["add_size", "are_usual", "check_scales", "find_odd_blocks", "find_odd_codes", "find_odd_scales"]

WITH_ZEROS = ("scaled", "fp4", "gptq", "awq", "packed", "torch_quantised")
"""Decoders of encodings in which a scale of 0 is implausible if its codes are not zero.

In GGUF scales of 0 are normal: a block of tiny numbers gets one. In bitsandbytes' 4-bit encodings and in MLX a block of
zeros has the same code everywhere, but this code need not represent the number 0.
"""

TINY, LARGE = 1e-30, 1e4
"""Scales up to TINY count as 0, for example 2**-127, the smallest scale of mxfp4. No layer has weights above LARGE."""
LARGEST = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0, "int8": 128.0}
"""{dtype of codes: largest code}: scales are chosen so that the largest weight gets this code.

https://arxiv.org/abs/2209.05433
"""
MANY = 4
"""If at least this many scales are all 0, or all 1, this is not by chance."""
OFFSETS = {"gptq": "zero", "awq": "zero", "packed": "bias"}
"""{decoder of unsigned codes: role of zero points or biases}.

If all of these are 0, nearly all weights of a group have one sign.
"""

WITH_MINIMA = ("q4_1", "q5_1", "q2_k", "q4_k", "q5_k")
"""The types of GGUF whose blocks have a minimum. It is added to codes times the scale; in K types, it is subtracted."""

WITHOUT_NEGATIVE = {"q8_0": 1, "q4_1": 1, "q5_1": 1, "q2_k": 2, "q4_k": 2, "q5_k": 2}
"""{type of GGUF whose scales are never negative: how many of the numbers of a block are such scales}.

In q2_k, q4_k and q5_k the second number is the scale of the minima; in q4_1 and q5_1 it is a minimum, of any sign.
"""


def are_usual(scale: Array, codes: str) -> bool:
    """Return whether each scale is plausible: above zero, and not too large for codes of the dtype ``codes``."""
    return not scale.size or bool(scale.min() > TINY and float(scale.max()) * _largest(codes) <= LARGE)


def _largest(codes: str) -> float:
    """Return the largest code of a dtype in ``LARGEST``; 1 for other dtypes, such as the dtypes of packed codes."""
    return LARGEST.get(codes, 1.0)


SAMPLED = 1024
"""About how many values of each decoded part are read to find its size; to read all would take far longer."""


def add_size(
    info: TensorInfo, values: Array, dtype: str, seen: OddScales, codes: Callable[[], Array | None] = lambda: None
) -> None:
    """Record the size class and the mean of a decoded matrix in ``seen``; ``values`` is a part of it as ``dtype``.

    The size is judged by the root mean square of the values. A part has no size if it contains only zeros, or values
    that are not finite. Only values at equal distances are used; the distance is an odd number, so that they are spread
    over all columns. ``codes`` is a function that returns the part decoded with scales of 1 (float32), or None if that
    is impossible; it is called only if the values are rather large.
    """
    if len(info.shape) < 2 or not values.size:
        return
    some = widened(values.reshape(-1)[:: values.size // SAMPLED | 1], dtype).astype("<f8")
    size = sqrt(float(np.mean(some * some)))
    if size > 0 and isfinite(size):
        assert isinstance(info.made, Decoded)
        seen.add_size(info.made.name, size * sqrt(info.shape[-1]), lambda: rise_with_scales(values, codes()))
        mean = float(np.mean(some))
        if _has_offsets(info.made, len(info.shape)):
            if abs(mean) > SHIFT * size:
                seen.add(SHIFTED[mean > 0], info.made.name)
            seen.add_lean(info.made.name, lean_of(values))
            if _has_few_zero_points(info.made):
                seen.add_shift(info.made.name, steps_off(values))


def _has_offsets(made: Decoded, dims: int) -> bool:
    """Return whether a weight of a linear layer has zero points, biases or minima: wrong ones would shift its mean.

    Convolutions are left out, since they may have any mean. A weight with more than two dimensions is a convolution,
    unless it is packed or in GGUF: then it is a stack of linear layers.
    """
    if made.encoding == "gguf":
        return made.of[0].dtype in WITH_MINIMA
    if dims > 2 and made.encoding != "packed":
        return False
    roles = {role for role, _ in (*made.parts, *made.facts)}
    return made.encoding == "gptq" or bool(roles & {"zero", "bias"})


MOST_BITS = 4
"""With more bits, a shift by one step is not far larger than the means of healthy weights."""


def _has_few_zero_points(made: Decoded) -> bool:
    return any(role == "zero" for role, _ in made.parts) and dict(made.facts).get("bits", MOST_BITS) <= MOST_BITS


HALF = 0.5
"""For a power of two, ``frexp`` returns this mantissa."""


def find_odd_codes(made: Decoded, codes: Array, scale: Array, box: Box, seen: OddScales) -> None:
    """Record in ``seen`` the implausible codes and scales in the part ``box`` of a weight.

    If weights were not clipped, the number of groups that contain the largest possible code is recorded, too.
    """
    if "times" in dict(made.facts) and codes.dtype == "i1" and _has_lowest(codes):  # bitsandbytes
        seen.add(BELOW, made.name)
    mantissas, exponents = np.frexp(scale.reshape(-1)) if scale.dtype.kind == "f" else (scale, scale)
    are_powers = scale.size > 0 and bool((mantissas == HALF).all())
    if have_clipped_codes(made, codes, scale.size, are_powers=are_powers):
        seen.add(CLIPPED, made.name)
        return
    reached, number = ends_of_groups(made, codes, box, are_powers=are_powers)
    if number:
        seen.add_ends(made.name, reached, number, (int(exponents.min()), int(exponents.max())) if are_powers else None)


def _has_lowest(codes: Array) -> bool:
    """Return whether an int8 code is -128, which quantisers that divide the largest weight by 127 never make.

    bitsandbytes (``int8_vectorwise_quant``), CTranslate2 and llama.cpp (``quantize_row_q8_0_ref``) divide by 127.
    compressed-tensors divides by 127.5, so that its lowest code is -128.
    """
    return bool(codes.size) and int(codes.min()) == -128


def find_odd_scales(
    made: Decoded,
    arrays: Mapping[str, Array],
    box: Box,
    seen: OddScales,
    decode_part: Callable[[Mapping[str, Array], Box], Array],
) -> None:
    """Record a quantised tensor's name in ``seen`` for each kind of implausible scales or zero points in ``arrays``.

    ``arrays`` contains, by role, the parts of the stored tensors that were read for the part ``box`` of the weight.
    ``decode_part`` returns the decoded values of such arrays and such a box. All values are decoded only if a scale is
    zero or negative; a few rows are decoded to compare zero points with codes.
    """
    if made.encoding == "ctranslate2" and bool((arrays["over"] < 0).any()):
        seen.add(NEGATIVE, made.name)
    if made.encoding == "ctranslate2" and arrays["codes"].dtype == "i1" and _has_lowest(arrays["codes"]):
        seen.add(BELOW, made.name)
    if "scale" not in arrays:
        return

    def decode(some: Mapping[str, Array]) -> Array:
        return decode_part(some, box)

    if _lacks_offsets(made, arrays):
        seen.add(NO_OFFSET, made.name)
    if have_rounded_words(made, arrays["codes"]):
        seen.add(ROUNDED, made.name)
    elif have_signed_codes(made, arrays["codes"]):
        seen.add(SIGNED_CODES, made.name)
    else:
        find_odd_codes(made, arrays["codes"], arrays["scale"], box, seen)
        if (spread := spread_of_highest(made, arrays["codes"])) is not None:
            seen.add_spread(made.name, spread)
        for kind in kinds_of_groups(made, arrays, box, decode_part):
            seen.add(kind, made.name)
    if "nested_scale" in arrays:
        if not arrays["nested_scale"].any() and have_many_values(arrays["scale"].astype("<i4") + 1):
            seen.add(NESTED, made.name)
        if arrays["scale"].size >= MANY and not arrays["scale"].any() and arrays["codes"].any():
            seen.add(ZERO, made.name)
        if _are_often_negative(made, arrays):
            seen.add(NEGATIVE, made.name)
        return
    if made.encoding == "bitsandbytes" and arrays["scale"].size >= MANY and bool((arrays["scale"] == 1).all()):
        seen.add(UNSET, made.name)
    if (made.encoding == "bitsandbytes" or "bias" in arrays) and _hides_codes(arrays, decode):
        seen.add(ZERO, made.name)
    if "bias" in arrays:
        for kind in odd_biases(int(dict(made.facts)["bits"]), arrays["scale"], arrays["bias"]):
            seen.add(kind, made.name)
        return
    scale, codes = _whole_scale(arrays), dict(made.parts)["codes"].dtype
    if are_usual(scale, codes):
        seen.add_signs(made.name, 0, scale.size)
        return
    if bool((abs(scale) * _largest(codes) > LARGE).any()):
        seen.add(HUGE, made.name)
    if _has_no_negative(made):
        if bool((scale < 0).any()):
            seen.add(NEGATIVE, made.name)
    elif are_negative(scale):
        if should_be_mixed(decode({**_copied(arrays), "scale": np.ones_like(arrays["scale"])})):
            seen.add(NEGATED, made.name)
    else:
        _count_signs(made, arrays, scale, seen, decode)
    if made.name not in seen.names[ZERO] and _makes_zeros(made, arrays, abs(scale) <= TINY, decode):
        seen.add(ZERO, made.name)


def _count_signs(
    made: Decoded,
    arrays: Mapping[str, Array],
    scale: Array,
    seen: OddScales,
    decode: Callable[[Mapping[str, Array]], Array],
) -> None:
    """Record in ``seen`` how many scales are negative, and whether a quantiser may have chosen their signs."""
    below = count_negative(scale)
    seen.add_signs(made.name, below, scale.size)
    if 0 < below <= RARE * scale.size and made.name not in seen.names[CHOSEN] and are_chosen(arrays, decode):
        seen.add(CHOSEN, made.name)


OFTEN, ROUNDING = 0.05, 0.05
"""The offset of quantised scales was lost if more than the share ``OFTEN`` of the scales is far below 0.

Far below 0 means: below -``ROUNDING`` times the largest scale. Rounding alone makes no scale that low.
"""


def _are_often_negative(made: Decoded, arrays: Mapping[str, Array]) -> bool:
    """Return whether many quantised scales of bitsandbytes are negative after the offset is added to them.

    The right offset is the mean of the scales. With 0, or with the offset of another tensor, the smaller scales become
    negative. The second-level scales differ by little, so their mean is used for all of them.
    """
    facts, codes = dict(made.facts), arrays["scale"].reshape(-1)
    if codes.size < MANY or "nested_values" not in arrays:
        return False
    outer = float(np.abs(arrays["nested_scale"].astype("<f8")).mean())
    scale = arrays["nested_values"].astype("<f8")[codes] * outer + facts["offset"]
    return bool((scale < -ROUNDING * np.abs(scale).max()).mean() > OFTEN)


def _lacks_offsets(made: Decoded, arrays: Mapping[str, Array]) -> bool:
    """Return whether all zero points or biases of unsigned codes are 0, although not all codes are 0."""
    offset = arrays.get(OFFSETS.get(made.encoding, ""))
    if offset is None or offset.size < 2 or offset.any():
        return False
    return bool(arrays["scale"].any() and arrays["codes"].any())


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies of arrays, because ``decode`` may write into them."""
    return {role: one.copy() for role, one in arrays.items()}


def _hides_codes(arrays: Mapping[str, Array], decode: Callable[[Mapping[str, Array]], Array]) -> bool:
    """Return whether codes whose scale is 0 have more different values than blocks of zeros have (``DIFFERENT``)."""
    is_zero = arrays["scale"] == 0
    if not is_zero.any():
        return False
    bias = {"bias": np.zeros_like(arrays["bias"])} if "bias" in arrays else {}
    return have_many_values(decode({**_copied(arrays), **bias, "scale": is_zero.astype("<f4")}))


def _whole_scale(arrays: Mapping[str, Array]) -> Array:
    """Return the factors by which codes become values: the scales, combined with the scale of the whole tensor.

    Formats store the scale of the whole tensor as a factor ("times") or as a divisor ("over"), or have none.
    """
    scale = arrays["scale"]
    scale = scale.astype("<f8") if scale.dtype.kind == "f" else scale
    with np.errstate(all="ignore"):
        if "times" in arrays and arrays["times"].size:
            scale = scale * arrays["times"].reshape(-1)[0]
        if "over" in arrays and arrays["over"].size:
            scale = scale / arrays["over"].reshape(-1)[0]
    return scale


def _makes_zeros(
    made: Decoded, arrays: Mapping[str, Array], is_zero: Array, decode: Callable[[Mapping[str, Array]], Array]
) -> bool:
    """Return whether a scale of 0 belongs to a code that is not 0; False if the encoding allows such a scale.

    ``is_zero`` is true for each scale that is 0.
    """
    if made.encoding not in WITH_ZEROS or not is_zero.any():
        return False
    parts = {role: one for role, one in _copied(arrays).items() if role not in ("times", "over")}
    with np.errstate(all="ignore"):
        alone = decode({**parts, "scale": is_zero.astype("<f4")})
    return bool((alone != 0).any())


def _has_no_negative(made: Decoded) -> bool:
    """Return whether the encoding has no negative scales.

    It has none if a scale is the largest magnitude of a block divided by the largest code, as for small floats. Scales
    of integer codes may be negative: AutoRound and MLX choose their sign so that the value of largest magnitude gets
    the code of largest magnitude, which is negative.
    """
    codes = dict(made.parts)["codes"].dtype
    return made.encoding in ("fp4", "bitsandbytes") or (
        made.encoding == "scaled" and (codes in SMALL_FLOATS or "times" in dict(made.facts))
    )


def find_odd_blocks(made: Decoded, codes: Array, values: Array, seen: OddScales) -> None:
    """Record a GGUF tensor in ``seen`` for each kind of implausible scales or codes in a part of it.

    ``codes`` are the bytes of its blocks, ``values`` the decoded numbers.
    """
    dtype = made.of[0].dtype
    blocks = codes.reshape(-1, BLOCKS[dtype][1])
    if dtype == "q8_0" and _has_lowest(blocks[:, 2:].view("i1")):
        seen.add(BELOW, made.name)
    if not values.any():
        if bool((blocks != blocks[:1]).any()):
            seen.add(ZERO_BLOCKS, made.name)
    elif dtype in BLOCK_SCALES:
        begin, number = BLOCK_SCALES[dtype]
        scale = np.ascontiguousarray(blocks[:, begin : begin + 2 * number]).view("<f2")
        if are_negative(scale[:, :1]) and should_be_mixed(values):
            seen.add(NEGATED, made.name)
        elif dtype in WITHOUT_NEGATIVE and bool((scale[:, : WITHOUT_NEGATIVE[dtype]] < 0).any()):
            seen.add(NEGATIVE, made.name)


def not_finite(made: Decoded, part: str = "scale") -> FormatError:
    """Return the error for a weight with a scale, or another ``part``, that is NaN or infinite."""
    return FormatError(
        f"a {part} of the quantised tensor {escape(made.name)} is NaN or infinite.",
        hint="Fetch the file again, or quantise the model again: the values of the tensor are lost. ckpt check "
        "lists such tensors.",
        rule="scale",
    )


def check_scales(made: Decoded, arrays: Mapping[str, Array]) -> None:
    """Raise FormatError if a scale, bias or zero point is NaN or infinite, or if codes are divided by a scale of 0.

    Zero points that are subtracted from codes are not checked: their values are counted when they are decoded.
    """
    for name in SCALES:
        if name in arrays and arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise not_finite(made, SCALES[name])
    if "over" in arrays and not arrays["over"].all():
        raise FormatError(f"the codes of {escape(made.name)} are divided by a scale that is 0.", rule="scale")


SCALES = {
    "scale": "scale", "bias": "bias", "nested_scale": "scale", "times": "scale", "over": "scale", "shift": "zero point",
}  # fmt: skip
"""{role of a stored tensor whose values must be finite: what such a value is, for messages}."""
