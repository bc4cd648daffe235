"""Recognises floats that may be the scales of integer codes, by their shapes and not by their names."""

from __future__ import annotations

import re

__all__ = ["CODES", "decodes_nothing", "fits_as_scale"]

CODES = {"int8": 1, "uint8": 4, "int16": 8, "uint16": 8, "int32": 16, "uint32": 16}
"""{dtype of codes: the most codes in one element}; 64-bit integers are indices or counters, not codes."""
_OF_NETWORKS = re.compile(r"bias$|^(weight|gamma|beta)$|^running_")


def decodes_nothing(leaf: str) -> bool:
    """Return whether a parameter is never a scale, by the last segment of its key (``leaf``), such as ``bias``."""
    return _OF_NETWORKS.search(leaf.lower()) is not None


def fits_as_scale(dtype: str, codes: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether a floating-point tensor of the shape ``shape`` may be the scale of integer codes.

    ``dtype`` and ``codes`` are the dtype and the shape of the codes. The tensor may be their scale if it has one number
    for all codes (int8 only), for each row, for each column, or for each group in a row or column.
    """
    *above, rows, columns = codes
    if all(size == 1 for size in shape):
        return dtype == "int8"
    if shape in ((*above, rows), (*above, columns)):
        return True
    if len(shape) != len(codes) or list(shape[:-2]) != above:
        return False
    groups = (shape[-1], columns) if shape[-2] == rows else (shape[-2], rows) if shape[-1] == columns else (0, 1)
    return 0 < groups[0] < groups[1] and groups[1] * CODES[dtype] % groups[0] == 0
