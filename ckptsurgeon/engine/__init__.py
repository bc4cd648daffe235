"""Carries plans out: streams from file to file, computes what must be, and puts the output in place atomically."""

from .apply import Inputs, Progress, carry_out, check_sources
from .compute import cast_for, computed_blocks, overlay
from .layout import OutputOptions, is_folder, lay_out
from .memory import load_tensors
from .output import write_text
from .reading import read_part
from .transfer import check_range, crc32

__all__ = [
    "Inputs",
    "OutputOptions",
    "Progress",
    "carry_out",
    "cast_for",
    "check_range",
    "check_sources",
    "computed_blocks",
    "crc32",
    "is_folder",
    "lay_out",
    "load_tensors",
    "overlay",
    "read_part",
    "write_text",
]
