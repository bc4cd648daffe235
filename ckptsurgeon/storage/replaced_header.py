"""Marks a safetensors file whose header is being replaced in place: with an impossible length of the header."""

from __future__ import annotations

__all__ = ["REPLACED", "is_replaced"]

REPLACED = b"\xff" * 8
"""The mark, written over the length of the header. No header is so long, so every reader refuses the file."""


def is_replaced(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is a safetensors file whose header is being replaced."""
    return head[:9] == REPLACED + b"{"
