"""Finds the numbers of channels that a configuration leaves out, as GPT-2's does: ``n_inner: null`` is 4 n_embd."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...destinations.hf.resizable import Resizable
from ...planning.resizing.fields import role_of
from .arguments import at_path, nested

__all__ = ["implied_fields", "with_values"]

_TIMES = (4, 2)
"""The numbers of channels, as multiples of the width, that are tried if the configuration does not have the number."""


def implied_fields(base: Resizable, names: Iterable[str]) -> dict[str, int]:
    """Return {field: number of channels} for those of ``names`` that count channels and are null in the configuration.

    The number is a multiple of the width: with this number in the field, the network must have the same shapes. If no
    multiple gives these shapes, the field is left out.
    """
    before, found = base.fields(), {}
    for name in names:
        inside, _, last = name.rpartition(".")
        part = at_path(before, inside) if inside else before
        if role_of(name) == "channels" and isinstance(part, Mapping) and part.get(last, 0) is None:
            found[name] = _size(base, before, name, part)
    return {name: size for name, size in found.items() if size}


def with_values(before: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of ``before`` with the values of ``found``; its keys are dotted paths (``text_config.n_inner``)."""
    fields = dict(before)
    for path, value in found.items():
        first, _, rest = path.partition(".")
        fields[first] = with_values(fields[first], {rest: value}) if rest else value
    return fields


def _size(base: Resizable, before: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> int:
    """Return the number of channels of the field ``name``, which is null; 0 if it is not known."""
    width = next((part[one] for one in part if role_of(one) == "width" and type(part[one]) is int), 0)
    own = _shapes(base, {})
    sizes = (times * width for times in _TIMES if width)
    return next((size for size in sizes if _shapes(base, nested({name: size}, before)) == own), 0)


def _shapes(base: Resizable, changes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {key: info.shape for key, info in base.target(changes).tensors.items()}
