"""Configurations of mergekit 0.1.5: what they say, and the tensors that they ask for. Opens nothing, reads no tensor.

https://github.com/arcee-ai/mergekit#merge-configuration
"""

from .configuration import Configuration, Module, Slice, Source, Tokenizer, read_configuration
from .fields import Reference
from .pieces import Layout, Models, pieces_of_configuration
from .templates import TEMPLATES

__all__ = [
    "TEMPLATES",
    "Configuration",
    "Layout",
    "Models",
    "Module",
    "Reference",
    "Slice",
    "Source",
    "Tokenizer",
    "pieces_of_configuration",
    "read_configuration",
]
