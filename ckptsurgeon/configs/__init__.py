"""Destinations: a configuration, a checkpoint or a live module becomes a TargetSpec. One file for each kind."""

from ._document import RELATIVE_TO, Document, read_document
from ._hf_files import weights_folder_files
from ._load import adopt, is_configuration, load_target, module_destination
from ._parts import is_spread, own_box, own_part, part_of, whole
from ._running import user_code
from .declared import declare
from .factory import instantiated

__all__ = [
    "RELATIVE_TO",
    "Document",
    "adopt",
    "declare",
    "instantiated",
    "is_configuration",
    "is_spread",
    "load_target",
    "module_destination",
    "own_box",
    "own_part",
    "part_of",
    "read_document",
    "user_code",
    "weights_folder_files",
    "whole",
]
