"""Rule operations: what makes a source's tensors into others before any rule selects or renames them."""

from .operation import Operation, parse_operations
from .perform import MadeBy, Performed, perform

__all__ = ["MadeBy", "Operation", "Performed", "parse_operations", "perform"]
