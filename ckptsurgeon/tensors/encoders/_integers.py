"""Rounds values to integers times a scale, with or without a zero point, as compressed-tensors does.

See compressed_tensors/quantization/utils/helpers.py, ``calculate_qparams``; lifecycle/forward_helpers.py,
``_quantize``.
"""

from __future__ import annotations

import numpy as np

from ..info import Encoded
from ..ops.casts import widened
from ..ops.regions import Array
from ._encoder import Scales
from ._scale_dtypes import stored_scale

__all__ = ["integer_codes", "integer_scales"]


def integer_scales(made: Encoded, least: Array, greatest: Array) -> Scales:
    """Return scales, and also signed zero points if ``made.facts`` has ``asymmetric``."""
    facts = dict(made.facts)
    codes = np.float32(2.0 ** facts["bits"] - 1)
    if not facts.get("asymmetric"):
        return {"scale": stored_scale(made, np.maximum(-least, greatest) / (codes / np.float32(2)))}
    spread = greatest - least
    scale = np.where(np.isfinite(spread), spread / codes, greatest / codes - least / codes)
    stored = stored_scale(made, scale)
    low = np.float32(-(2.0 ** (facts["bits"] - 1)))
    used = np.asarray(widened(stored, made.scale_dtype)).astype("<f4")
    zero = np.rint(np.clip(low - least / used, low, low + codes))
    return {"scale": stored, "zero": np.where(spread == 0, np.float32(0), zero).astype("i1")}


def integer_codes(made: Encoded, values: Array, scales: Scales) -> tuple[Array, Array]:
    """Return the signed codes of values (int8), and the decoded values of these codes."""
    bits = int(dict(made.facts)["bits"])
    low, high = np.float32(-(1 << (bits - 1))), np.float32((1 << (bits - 1)) - 1)
    codes = values / scales["scale"]
    if "zero" in scales:
        codes += scales["zero"]
    np.rint(np.clip(codes, low, high, out=codes), out=codes)
    meant = codes - scales["zero"] if "zero" in scales else codes.copy()
    meant *= scales["scale"]
    return codes.astype("i1"), meant
