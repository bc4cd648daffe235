"""Finds scales that no method of quantisation writes, while weights are decoded.

Such a scale is negative, or it is 0 although not all of its codes are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..info import Decoded
from ..odd_scales import NEGATIVE, ZERO, OddScales
from ..ops.regions import Array
from ..ops.small_floats import SMALL_FLOATS

__all__ = ["are_usual", "find_odd_scales"]

WITH_ZEROS = ("scaled", "fp4", "gptq", "awq", "packed", "torch_quantised")
"""Decoders of encodings in which a scale of 0 is odd if its codes are not zero.

In GGUF and in bitsandbytes' 4-bit encodings such scales are normal: a block of tiny numbers has one.
"""


def are_usual(scale: Array) -> bool:
    """Return whether all scales are above zero, so that none of them is odd."""
    return not scale.size or bool(scale.min() > 0)


def find_odd_scales(
    made: Decoded, arrays: Mapping[str, Array], seen: OddScales, decode: Callable[[Mapping[str, Array]], Array]
) -> None:
    """Add the quantised tensor to ``seen`` if one of the scales in ``arrays`` is odd.

    ``arrays`` contains the parts of its stored tensors that were read, by role; ``decode`` returns the values decoded
    from such arrays. Codes are decoded only if a scale is zero.
    """
    scale = arrays.get("scale")
    if scale is None or "bias" in arrays or "nested_scale" in arrays:
        return
    whole = next((arrays[role] for role in ("times", "over") if role in arrays), None)
    if whole is not None and whole.size and not are_usual(whole):
        scale = scale * whole.reshape(-1)[0]
    if are_usual(scale):
        return
    if made.name not in seen.names[NEGATIVE] and _has_no_negative(made) and bool((scale < 0).any()):
        seen.add(NEGATIVE, made.name)
    is_zero = scale == 0
    if made.encoding in WITH_ZEROS and made.name not in seen.names[ZERO] and is_zero.any():
        codes = {role: one for role, one in arrays.items() if role not in ("times", "over")}
        with np.errstate(all="ignore"):
            alone = decode({**codes, "scale": is_zero.astype("<f4")})
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
