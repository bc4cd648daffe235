"""Destinations: a configuration, a checkpoint or a live module becomes a TargetSpec. One file for each kind."""

from ._document import Document, read_document
from ._load import adopt, is_configuration, load_target, module_destination
from ._running import user_code
from .declared import declare
from .factory import instantiated

__all__ = [
    "Document",
    "adopt",
    "declare",
    "instantiated",
    "is_configuration",
    "load_target",
    "module_destination",
    "read_document",
    "user_code",
]
