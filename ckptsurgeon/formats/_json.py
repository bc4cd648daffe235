"""Reads JSON that nobody vouches for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from ..jsontext import unique_keys
from . import limits

__all__ = ["parse_json", "unique_keys"]


def parse_json(raw: bytes, pairs: Callable[[Sequence[tuple[str, Any]]], dict[str, Any]] = dict) -> Any:
    """Return what a UTF-8 text spells; ``pairs`` makes an object of its members.

    Raises ValueError with the reason. How many values there are is bounded before they are made: three bytes can
    become sixty.
    """
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > limits.JSON_OPENED or raw.count(b",") > limits.JSON_COMMAS:
        raise ValueError(f"it has {opened} arrays and objects or more values than are read")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs)
    except UnicodeDecodeError:
        raise ValueError("it is no UTF-8") from None
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"it is nested too deeply ({type(error).__name__})") from None
