"""What ``inspect`` finds, as plain data."""

from .inspection import Inspection, inspection_of

__all__ = ["Inspection", "inspection_of"]
