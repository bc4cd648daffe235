"""What happens to the values of one tensor, block by block: boxes, casts, interpolation. numpy, no files."""

from .boxes import Array, Box, blocks, box_shape, overlap_shape
from .casts import Lost, cast, count_nonzero, count_special, goes_to_zero, raw_dtype, widened
from .interpolation import interpolate, interpolation_box

__all__ = [
    "Array",
    "Box",
    "Lost",
    "blocks",
    "box_shape",
    "cast",
    "count_nonzero",
    "count_special",
    "goes_to_zero",
    "interpolate",
    "interpolation_box",
    "overlap_shape",
    "raw_dtype",
    "widened",
]
