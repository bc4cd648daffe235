"""Finds scales and zero points that no method of quantisation writes, while weights are decoded.

Such a scale is negative, or so large that no weight is, or it is 0 although not all of its codes are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..info import Decoded
from ..odd_scales import HUGE, NEGATIVE, NO_OFFSET, ZERO, OddScales
from ..ops.regions import Array
from ..ops.small_floats import SMALL_FLOATS

__all__ = ["are_usual", "find_odd_scales"]

EMPTY, ONE = np.empty(0), np.ones(1)
WITH_ZEROS = ("scaled", "fp4", "gptq", "awq", "packed", "torch_quantised")
"""Decoders of encodings in which a scale of 0 is odd if its codes are not zero.

In GGUF and in bitsandbytes' 4-bit encodings such scales are normal: a block of tiny numbers has one.
"""


TINY, LARGE = 1e-30, 1e4
"""Scales up to TINY count as 0: the smallest exponent of mxfp4 is 2**-127. No layer has weights above LARGE."""
LARGEST = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 240.0, "int8": 128.0}
"""The largest code of a dtype (https://arxiv.org/abs/2209.05433), if scales are made so that weights use it."""
MANY = 4
"""So many scales are not all 0 by chance, whatever the encoding."""
OFFSETS = {"gptq": "zero", "awq": "zero", "packed": "bias"}
"""The offsets of encodings whose codes have no sign: if all are 0, no decoded weight is negative."""


def are_usual(scale: Array, codes: str) -> bool:
    """Return whether all scales are above zero and not too large for codes of a dtype, so that none of them is odd."""
    return not scale.size or bool(scale.min() > TINY and float(scale.max()) * _largest(codes) <= LARGE)


def _largest(codes: str) -> float:
    """Return the largest code of a dtype; 1 for packed codes."""
    return LARGEST.get(codes, 1.0)


def find_odd_scales(
    made: Decoded, arrays: Mapping[str, Array], seen: OddScales, decode: Callable[[Mapping[str, Array]], Array]
) -> None:
    """Add the quantised tensor to ``seen`` if one of the scales in ``arrays`` is odd.

    ``arrays`` contains the parts of its stored tensors that were read, by role; ``decode`` returns the values decoded
    from such arrays. Codes are decoded only if a scale is zero.
    """
    scale = arrays.get("scale")
    if scale is None:
        return
    offset = arrays.get(OFFSETS.get(made.encoding, ""))
    if offset is not None and offset.size > 1 and not offset.any() and scale.any():
        seen.add(NO_OFFSET, made.name)
    if "nested_scale" in arrays:
        return
    if scale.size >= MANY and not scale.any() and arrays.get("bias", ONE).any():  # not rows of zeros, as of MLX
        seen.add(ZERO, made.name)
    if "bias" in arrays:
        return
    scale = scale.astype("<f8") if scale.dtype.kind == "f" else scale
    with np.errstate(all="ignore"):
        scale = scale * arrays["times"].reshape(-1)[0] if arrays.get("times", EMPTY).size else scale
        scale = scale / arrays["over"].reshape(-1)[0] if arrays.get("over", EMPTY).size else scale
    codes = dict(made.parts)["codes"].dtype
    if are_usual(scale, codes):
        return
    if made.name not in seen.names[HUGE] and bool((abs(scale) * _largest(codes) > LARGE).any()):
        seen.add(HUGE, made.name)
    if made.name not in seen.names[NEGATIVE] and _has_no_negative(made) and bool((scale < 0).any()):
        seen.add(NEGATIVE, made.name)
    is_zero = abs(scale) <= TINY
    if made.encoding in WITH_ZEROS and made.name not in seen.names[ZERO] and is_zero.any():
        parts = {
            role: one.copy() for role, one in arrays.items() if role not in ("times", "over")
        }  # decoding may write
        with np.errstate(all="ignore"):
            alone = decode({**parts, "scale": is_zero.astype("<f4")})
        if (alone != 0).any():
            seen.add(ZERO, made.name)


def _has_no_negative(made: Decoded) -> bool:
    """Return whether the encoding has no negative scales.

    This is so if a scale is the largest magnitude of a block divided by the largest code, as for small floats. Integer
    codes may have negative scales: AutoRound and MLX use them so that the value of the largest magnitude gets the code
    of the largest magnitude, which is negative.
    """
    codes = dict(made.parts)["codes"].dtype
    return made.encoding in ("fp4", "bitsandbytes") or (
        made.encoding == "scaled" and (codes in SMALL_FLOATS or "times" in dict(made.facts))
    )
