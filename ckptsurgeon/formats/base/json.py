"""Reads JSON that nobody vouches for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

from ...storage.json_text import unique_keys
from . import limits

__all__ = ["parse_json", "unique_keys"]


_MINUS_ZERO = re.compile(rb"[\s,:\[]-0[\s,\]}]")


def parse_json(
    raw: bytes, pairs: Callable[[Sequence[tuple[str, Any]]], dict[str, Any]] = dict, *, strict: bool = False
) -> Any:
    """Return what a UTF-8 text spells; ``pairs`` makes an object of its members.

    A ``strict`` reader takes what RFC 8259 has and no more, as that of safetensors does: no NaN and no infinity, and
    -0 is a float.

    Raises ValueError with the reason. How many values there are is bounded before they are made: three bytes can
    become sixty.
    """
    opened = raw.count(b"[") + raw.count(b"{")
    if opened > limits.JSON_OPENED or raw.count(b",") > limits.JSON_COMMAS:
        raise ValueError(f"it has {opened} arrays and objects or more values than are read")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, **(_strictly(raw) if strict else {}))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"it is nested too deeply ({type(error).__name__})") from None


def _strictly(raw: bytes) -> dict[str, Any]:
    """Return how numbers are read; integers by a function of ours only where one may be -0, since headers are many."""
    odd = {"parse_int": _integer} if _MINUS_ZERO.search(raw) else {}
    return {"parse_constant": _refuse, "parse_float": _finite, **odd}


def _refuse(said: str) -> Any:
    raise ValueError(f"it holds {said}, which is no JSON")


def _finite(said: str) -> float:
    return float(said) if isfinite(float(said)) else _refuse(said)


def _integer(said: str) -> int | float:
    return -0.0 if said == "-0" else int(said)
