"""Rounds values to the nearest unsigned integer, with a zero point, as GPTQ and AWQ store them.

The scales, from the minimum and maximum of each group, are those that GPTQ's and AWQ's own quantisers compute before
calibration (gptqmodel/quantization/quantizer.py, ``find_params``; awq/quantize/quantizer.py,
``pseudo_quantize_tensor``).
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.casts import widened
from ..ops.regions import Array
from ._encoder import Scales
from ._scale_dtypes import stored_scale

__all__ = ["unsigned_codes", "unsigned_scales"]

SMALLEST = np.float32(1e-5)
"""A group with a smaller range (maximum minus minimum) gets the scale of this range."""


def unsigned_scales(made: Encoded, least: Array, greatest: Array) -> Scales:
    """Return the scales and the zero points of groups, by role, as they are stored.

    The number ``plus`` in ``made.facts`` is subtracted from zero points before they are stored; the results are not
    negative. If ``made.facts`` has no ``asymmetric``, all zero points are in the middle of the codes.
    """
    facts = dict(made.facts)
    top, plus = np.float32(2 ** int(facts["bits"]) - 1), np.float32(facts.get("plus", 0))
    if not facts.get("asymmetric"):
        scale = np.maximum(np.maximum(-least, greatest), SMALLEST) * np.float32(2) / top
        middle = np.full(least.shape, (top + 1) / 2 - plus)
        return {"scale": stored_scale(made, scale), "zero": middle.astype("u1")}
    scale = np.maximum(greatest - least, SMALLEST) / top
    low = (np.rint(-least / scale) < plus) & (greatest > SMALLEST)  # then positive values have one code fewer
    stored = stored_scale(made, np.where(low, greatest / (top - plus), scale))
    used = np.asarray(widened(stored, made.scale_dtype)).astype("<f4")
    return {"scale": stored, "zero": (np.clip(np.rint(-least / used), plus, top) - plus).astype("u1")}


def unsigned_codes(made: Encoded, values: Array, scales: Scales) -> tuple[Array, Array]:
    """Return the codes of values (uint8), and the decoded values of these codes."""
    facts = dict(made.facts)
    zero = scales["zero"] + np.float32(facts.get("plus", 0))
    codes = np.rint(values / scales["scale"]) + zero
    np.clip(codes, 0, np.float32(2 ** int(facts["bits"]) - 1), out=codes)
    return codes.astype("u1"), (codes - zero) * scales["scale"]
