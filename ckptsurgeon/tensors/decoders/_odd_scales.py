"""Finds scales that no method of quantisation writes, while weights are decoded: below zero, or zero with codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ..info import Decoded
from ..odd_scales import NEGATIVE, ZERO, OddScales
from ..ops.regions import Array
from ..ops.small_floats import SMALL_FLOATS

__all__ = ["are_usual", "find_odd_scales"]

WITH_ZEROS = ("scaled", "fp4", "gptq", "awq", "packed", "torch_quantised")
"""Decoders of encodings that have no scale of 0 for codes that are not zero.

The blocks of GGUF and of bitsandbytes' 4 bits have them if all numbers of a block are tiny or zero.
"""


def are_usual(scale: Array) -> bool:
    """Return whether all of some scales are above zero: then none is odd."""
    return not scale.size or bool(scale.min() > 0)


def find_odd_scales(
    made: Decoded, arrays: Mapping[str, Array], seen: OddScales, decode: Callable[[Mapping[str, Array]], Array]
) -> None:
    """Add a quantised tensor to ``seen`` if the scales of a part of it are odd; ``arrays`` has what is read of it.

    ``decode`` returns the values of the part. Codes are only looked at if a scale is zero.
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
    """Return whether scales are the largest magnitude of a block over that of its codes, as no integers' need be.

    AutoRound and MLX give integers negative scales, so that the largest of them is that of the largest magnitude.
    """
    codes = dict(made.parts)["codes"].dtype
    return made.encoding in ("fp4", "bitsandbytes") or (
        made.encoding == "scaled" and (codes in SMALL_FLOATS or "times" in dict(made.facts))
    )
