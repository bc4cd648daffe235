"""The position of a tensor in a model: its layer, its module and the module's parent, from its key."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["NUMBER", "Place", "place_of", "shown"]

NUMBER = re.compile(r"[0-9]{1,9}")
_JOINED = re.compile(r"(in_proj)_(weight|bias)")
"""The fused projection of torch's attention, whose tensors are parameters of the attention module itself."""


@dataclass(frozen=True)
class Place:
    """The position of a tensor; for ``layers.3.mlp.up.weight``: (3,), ``layers.3.mlp``, ``up`` and ``weight``."""

    numbers: tuple[int, ...]
    parent: str
    module: str
    leaf: str


def place_of(key: str) -> Place:
    """Return the position of the tensor ``key``."""
    parts = key.split(".")
    joined = _JOINED.fullmatch(parts[-1])
    parts = [*parts[:-1], joined[1], joined[2]] if joined else parts
    parts = parts if parts[-1] in ("weight", "bias", "kernel") or len(parts) < 2 else [*parts, ""]
    numbers = tuple(int(part) for part in parts if NUMBER.fullmatch(part))
    return Place(numbers, ".".join(parts[:-2]), parts[-2] if len(parts) > 1 else "", parts[-1])


def shown(key: str) -> str:
    """Return a key with ``{n}``, ``{m}`` and so on in place of its numbers."""
    names = iter("nmkijl")
    return ".".join(f"{{{next(names, 'x')}}}" if NUMBER.fullmatch(part) else part for part in key.split("."))
