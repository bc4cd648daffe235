"""Rule operations: what makes a source's tensors into others before any rule selects or renames them."""

from .conversion import Conversion
from .conversions import CONVERSIONS, layouts_known
from .operation import Operation, parse_operations
from .perform import MadeBy, Performed, perform

__all__ = [
    "CONVERSIONS",
    "Conversion",
    "MadeBy",
    "Operation",
    "Performed",
    "layouts_known",
    "parse_operations",
    "perform",
]
