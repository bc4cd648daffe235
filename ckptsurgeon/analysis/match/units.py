"""A state dict as modules: numbered ones that hold the same leaves are one unit, with a place for the number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...tensors.info import TensorInfo

__all__ = ["Unit", "units_of"]

_NUMBER = re.compile(r"\d{1,9}")
_LEAVES = {
    "gamma": "weight",
    "beta": "bias",
    "weight_g": "weight.0",
    "weight_v": "weight.1",
    "parametrizations.weight.original0": "weight.0",
    "parametrizations.weight.original1": "weight.1",
}
"""Names of leaves that are the same: LayerNorm's of TensorFlow, weight norm's before and after torch 2.0."""
_PARAMETRIZED = re.compile(r"(?:^|\.)parametrizations\.[^.]+\.original[01]$")

Index = tuple[int, ...]


@dataclass(eq=False)
class Unit:
    """Modules that differ in their numbers only. ``path`` has ``#`` for each number; '' is the top level.

    ``keys`` gives the key of each leaf of each module, ``makes`` the shapes of its leaves by its numbers; ``order`` is
    the first's place in the state dict.
    """

    path: str
    order: int
    keys: dict[tuple[Index, str], str] = field(default_factory=dict)
    makes: dict[Index, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def add(self, index: Index, leaf: str, key: str, info: TensorInfo) -> None:
        """Take a tensor in."""
        self.keys[index, leaf] = key
        self.makes.setdefault(index, {})[leaf] = info.shape


def units_of(tensors: Mapping[str, TensorInfo], view: str = "modules") -> list[Unit]:
    """Return the units of a state dict, in its order.

    ``view`` says what a unit is: "modules"; "parts", where a last number is a name and no layer's (the ``2`` of a
    Sequential); or "tensors", each one a unit of its own.
    """
    found: dict[str, Unit] = {}
    for order, (key, info) in enumerate(tensors.items()):
        module, leaf = _split(key) if view != "tensors" else (key, "")
        segments = module.split(".")
        layers = segments[: -1 if view == "parts" else None]
        numbers = tuple(int(part) for part in layers if _NUMBER.fullmatch(part))
        path = ".".join("#" if _NUMBER.fullmatch(part) else part for part in layers)
        path = f"{path}.{segments[-1]}".strip(".") if view == "parts" else path
        unit = found.setdefault(path, Unit(path, order))
        unit.add(numbers, _LEAVES.get(leaf, leaf), key, info)
    return list(found.values())


def _split(key: str) -> tuple[str, str]:
    """Cut a key into its module and its leaf, which for a parametrised weight has three segments."""
    found = _PARAMETRIZED.search(key)
    if found:
        return key[: found.start()], key[found.start() :].removeprefix(".")
    module, _, leaf = key.rpartition(".")
    return module, leaf
