"""Checks untrusted data: JSON, sizes, and the amount of copying."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import Any

from ...errors import FormatError, UnsafeError
from ...storage.json_text import unique_keys
from ...util.text import brief_repr
from . import limits

__all__ = ["CopyBudget", "check_elements", "check_sizes", "growth", "most_segments", "parse_json", "unique_keys"]

# Checks that several readers share: sizes, and the amount of copying.


def growth(stored: int) -> float:
    """Return the factor that raises the limits for a pickle of ``stored`` bytes: 1 for a small pickle."""
    return min(max(stored / limits.PICKLE_FREE, 1), limits.PICKLE_GROWTH)


def most_segments(keys: int) -> int:
    """Return the limit on segments (parts between dots) of ``keys`` keys in all."""
    return max(limits.SEGMENTS, limits.SEGMENTS_EACH * keys)


class CopyBudget:
    """Counts how many elements ckptsurgeon's functions may still copy to rebuild the values of one pickle."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = limits.PICKLE_COPIES

    def spend(self, elements: int) -> None:
        """Subtract a number of elements from the budget; raises UnsafeError if the budget becomes negative."""
        self.left -= elements
        if self.left < 0:
            raise UnsafeError(
                f"the pickle copies more elements than the limit of {limits.PICKLE_COPIES}.", rule="pickle copies"
            )


def check_sizes(values: Any, what: str) -> None:
    """Raise FormatError if ``values`` is not a tuple of valid sizes; ``what`` is its name in the message ("stride")."""
    if type(values) is not tuple or len(values) > limits.DIMENSIONS:
        raise FormatError(
            f"a tensor's {what} is not a tuple of at most {limits.DIMENSIONS} numbers.", rule=f"tensor {what}"
        )
    for value in values:
        if type(value) is not int or value < 0 or value > limits.ELEMENTS:
            raise FormatError(
                f"a tensor's {what} contains {brief_repr(value)}, not an integer from 0 to {limits.ELEMENTS}.",
                rule=f"tensor {what}",
            )


def check_elements(shape: tuple[int, ...]) -> None:
    """Raise FormatError if the product of the sizes in a shape that are not 0 does not fit in an int64."""
    if prod(size for size in shape if size) > limits.ELEMENTS:
        raise FormatError(f"a tensor of shape {shape} has too many elements.", rule="tensor size")


# Reads untrusted JSON.

_MINUS_ZERO = re.compile(rb"[\s,:\[]-0[\s,\]}]")


def parse_json(
    raw: bytes, pairs: Callable[[Sequence[tuple[str, Any]]], dict[str, Any]] = dict, *, strict: bool = False
) -> Any:
    """Return the value of a JSON text in UTF-8; ``pairs`` makes a dict from the (name, value) pairs of an object.

    If ``strict`` is true, only RFC 8259 is accepted, as in the reader of safetensors: no NaN and no infinity, and -0 is
    a float. Raises ValueError with the reason if the text is not valid or has too many values. The values are counted
    before they are made, since three bytes of text can become sixty bytes of memory.
    """
    opened, commas = raw.count(b"[") + raw.count(b"{"), raw.count(b",")
    if opened > limits.JSON_OPENED or commas > limits.JSON_COMMAS:
        raise ValueError(f"it has too many values to read: {opened} arrays and objects, {commas} commas")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, **(_strict_parsers(raw) if strict else {}))
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"it is nested too deeply, or too large ({type(error).__name__})") from None


def _strict_parsers(raw: bytes) -> dict[str, Any]:
    """Return the arguments of ``json.loads`` that make it parse numbers strictly.

    ``parse_int`` is slow, so it is set only if the text may contain -0.
    """
    odd = {"parse_int": _integer} if b"-0" in raw and _MINUS_ZERO.search(raw) else {}
    return {"parse_constant": _refuse, "parse_float": _finite, **odd}


def _refuse(said: str) -> Any:
    raise ValueError(f"it contains {said}, which is not valid JSON")


def _finite(said: str) -> float:
    if not isfinite(float(said)):
        raise ValueError(f"it contains {brief_repr(said)}, which is too large for a float")
    return float(said)


def _integer(said: str) -> int | float:
    return -0.0 if said == "-0" else int(said)
