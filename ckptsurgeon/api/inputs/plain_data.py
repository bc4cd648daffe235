"""Arguments as Python's own data: arrays and iterators become lists, torch's dtypes and devices their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from ...checkpoint.given import is_given

__all__ = ["plain", "plain_checkpoints"]


def plain(value: Any) -> Any:
    """Return a value without the types of other libraries, none of which is imported for it."""
    if isinstance(value, (str, bytes, type, os.PathLike)):
        return value
    if type(value).__module__ == "torch" and type(value).__name__ in ("dtype", "device"):
        return str(value).removeprefix("torch.")
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, Iterable) else value


def plain_checkpoints(value: Any) -> Any:
    """Return one checkpoint as it is, and several as a list."""
    if is_given(value) or isinstance(value, (bytes, type)):
        return value
    value = plain(value) if callable(getattr(value, "tolist", None)) else value
    return [one if is_given(one) else plain(one) for one in value] if isinstance(value, Iterable) else value
