"""Carries plans out: streams from file to file, computes what must be, and puts the output in place atomically.

Names are imported when they are used: copying needs no numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .announcing import fetch_keys, fetch_tensors, quiet
    from .apply import carry_out
    from .casting import cast_for
    from .check_steps import check_step
    from .checksums import bad_checksum, check_storage, check_values, checkable, combine, crc32
    from .companions import as_written
    from .compute import computed_blocks
    from .context import MergeContext
    from .costs import costs_of
    from .factoring import differ
    from .layout import OutputOptions, check_options, lay_out
    from .libraries import check_device
    from .locking import check_wait, output_lock
    from .mapping import mapped_block
    from .memory import put_tensors, stage_tensors
    from .overlaying import overlaid_boxes
    from .places import check_is_path, check_output, output_error
    from .reading import read_number, read_part
    from .run import MEMORY, Inputs
    from .sizes import parse_size
    from .staging import StagedFile, staged_file, temp_file, write_text
    from .temp import remove_leftovers, sync_folder, temp_name

__all__ = [
    "MEMORY",
    "Inputs",
    "MergeContext",
    "OutputOptions",
    "StagedFile",
    "as_written",
    "bad_checksum",
    "carry_out",
    "cast_for",
    "check_device",
    "check_is_path",
    "check_options",
    "check_output",
    "check_step",
    "check_storage",
    "check_values",
    "check_wait",
    "checkable",
    "combine",
    "computed_blocks",
    "costs_of",
    "crc32",
    "differ",
    "fetch_keys",
    "fetch_tensors",
    "lay_out",
    "mapped_block",
    "output_error",
    "output_lock",
    "overlaid_boxes",
    "parse_size",
    "put_tensors",
    "quiet",
    "read_number",
    "read_part",
    "remove_leftovers",
    "stage_tensors",
    "staged_file",
    "sync_folder",
    "temp_file",
    "temp_name",
    "write_text",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".announcing": ("fetch_keys", "fetch_tensors", "quiet"),
        ".apply": ("carry_out",),
        ".casting": ("cast_for",),
        ".check_steps": ("check_step",),
        ".costs": ("costs_of",),
        ".compute": ("computed_blocks",),
        ".libraries": ("check_device",),
        ".companions": ("as_written",),
        ".layout": ("OutputOptions", "check_options", "lay_out"),
        ".factoring": ("differ",),
        ".locking": ("check_wait", "output_lock"),
        ".mapping": ("mapped_block",),
        ".overlaying": ("overlaid_boxes",),
        ".context": ("MergeContext",),
        ".memory": ("put_tensors", "stage_tensors"),
        ".reading": ("read_number", "read_part"),
        ".run": ("MEMORY", "Inputs"),
        ".sizes": ("parse_size",),
        ".places": ("check_is_path", "check_output", "output_error"),
        ".staging": ("StagedFile", "staged_file", "temp_file", "write_text"),
        ".temp": ("remove_leftovers", "sync_folder", "temp_name"),
        ".checksums": ("bad_checksum", "check_storage", "check_values", "checkable", "combine", "crc32"),
    },
)
