"""Destinations: a configuration, a checkpoint or a live module becomes a TargetSpec. One file for each kind."""

from ._document import RELATIVE_TO, Document, read_document
from ._hf_files import ADAPTER, CONFIG, is_of_tokenizer, linked_away, model_files
from ._hf_tokens import renumbered, renumbered_generation, renumbering_of, with_tokenizer_of
from ._load import adopt, code_named, is_configuration, load_target, module_destination, target_with
from ._parts import is_spread, own_box, own_part, part_of, whole
from ._running import user_code
from .declared import declare
from .factory import instantiated, targets_in

__all__ = [
    "ADAPTER",
    "CONFIG",
    "RELATIVE_TO",
    "Document",
    "adopt",
    "code_named",
    "declare",
    "instantiated",
    "is_configuration",
    "is_of_tokenizer",
    "is_spread",
    "linked_away",
    "load_target",
    "model_files",
    "module_destination",
    "own_box",
    "own_part",
    "part_of",
    "read_document",
    "renumbered",
    "renumbered_generation",
    "renumbering_of",
    "target_with",
    "targets_in",
    "user_code",
    "whole",
    "with_tokenizer_of",
]
