"""Configurations of mergekit 0.1.5: what they say, and the tensors that they ask for. Opens nothing, reads no tensor.

https://github.com/arcee-ai/mergekit#merge-configuration
"""

from .configuration import Configuration, Module, Slice, Source, read_configuration
from .fields import Reference
from .pieces import Layout, Models, pieces_of_configuration
from .templates import TEMPLATES
from .tokenizer import Tokenizer, TokenRow

__all__ = [
    "TEMPLATES",
    "Configuration",
    "Layout",
    "Models",
    "Module",
    "Reference",
    "Slice",
    "Source",
    "TokenRow",
    "Tokenizer",
    "pieces_of_configuration",
    "read_configuration",
]
