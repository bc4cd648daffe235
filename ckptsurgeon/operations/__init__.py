"""Rule operations: what makes a source's tensors into others before any rule selects or renames them."""

from .conversion import Conversion
from .conversions import CONVERSIONS, conversion_for
from .operation import Operation, parse_operations
from .perform import MadeBy, Performed, perform

__all__ = [
    "CONVERSIONS",
    "Conversion",
    "MadeBy",
    "Operation",
    "Performed",
    "conversion_for",
    "parse_operations",
    "perform",
]
