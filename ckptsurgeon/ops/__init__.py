"""What happens to the values of one tensor, block by block: boxes, casts, interpolation. numpy, no files."""

from .boxes import Array, Box, blocks, box_shape, overlap_shape
from .casts import cast, count_special, raw_dtype, widened
from .interpolation import interpolate, interpolation_box

__all__ = [
    "Array",
    "Box",
    "blocks",
    "box_shape",
    "cast",
    "count_special",
    "interpolate",
    "interpolation_box",
    "overlap_shape",
    "raw_dtype",
    "widened",
]
