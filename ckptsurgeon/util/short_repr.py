"""Shortens the ``repr`` of results so that it fits on a screen, however many tensors they have."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from dataclasses import Field
    from typing import Any

__all__ = ["LIMIT", "Brief", "brief_fields"]

LIMIT = 640
"""The longest ``repr`` in characters: eight lines of a terminal."""
_VALUE = 80
_ITEMS = 3
_SCALARS = (bool, int, float, complex, str, bytes, type(None))


class Brief:
    """Base class of dataclasses with a short ``repr``.

    Use ``@dataclass(repr=False)``, since ``@dataclass`` would define another ``repr``.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return brief_fields(self)


def brief_fields(value: Any) -> str:
    """Return a short ``repr`` of a dataclass.

    Fields with their default value are left out; a long list is shown only by its number of entries.
    """
    from dataclasses import fields

    shown = [
        f"{field.name}={_value(getattr(value, field.name))}"
        for field in fields(value)
        if field.repr and not _is_default(field, getattr(value, field.name))
    ]
    text = f"{type(value).__name__}({', '.join(shown)})"
    return text if len(text) <= LIMIT else f"{text[: LIMIT - 2]}…)"


def _is_default(field: Field[Any], value: Any) -> bool:
    if type(value) is dict:
        return not value
    return type(value) in (*_SCALARS, tuple) and type(value) is type(field.default) and bool(value == field.default)


def _value(value: Any) -> str:
    from .text import brief_repr

    if isinstance(value, _SCALARS):
        return brief_repr(value, _VALUE)
    if isinstance(value, (tuple, list)) and len(value) <= _ITEMS and all(isinstance(one, _SCALARS) for one in value):
        return brief_repr(value, _VALUE)
    if isinstance(value, (tuple, list, dict, set, frozenset)):
        return f"<{len(value)} entr{'y' if len(value) == 1 else 'ies'}>"
    return f"<{type(value).__name__}>"
