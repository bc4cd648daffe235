"""Computes the shapes of tensors from the fields of a configuration, by rules for their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Fields", "Rule", "Shape", "UnknownError", "rules"]

Shape: TypeAlias = "tuple[int | None, ...]"
"""A shape. It has None for a size that no field determines, or that another check compares."""


LARGEST = 2**40
"""The largest valid size. Without this limit, a hostile file could have sizes whose product Python refuses to print."""


class UnknownError(Exception):
    """Raised if a configuration does not have a field that a shape is computed from."""


class Fields:
    """The fields of a configuration. ``names`` collects the fields that were used to compute a shape."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> int:
        """Return the size in field ``name``, which may be in a nested configuration (``vision_config.hidden_size``).

        Raises UnknownError if the field is missing or not a valid size.
        """
        value = self._value(name)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise UnknownError
        self.names[name] = None
        return value

    def get(self, name: str, default: int) -> int:
        """Return the size in field ``name``; ``default`` if the field is missing or null."""
        return default if self._value(name) is None else self[name]

    def of(self, name: str, number: int) -> int:
        """Return entry ``number`` of the list of sizes in field ``name``; a negative number counts from the end.

        Raises UnknownError if there is no such entry or it is not a valid size.
        """
        value = self._value(name)
        if not isinstance(value, list) or not -len(value) <= number < len(value):
            raise UnknownError
        size = value[number]
        if type(size) is not int or abs(size) > LARGEST:
            raise UnknownError
        self.names[f"{name}, entry {number % len(value)}"] = None
        return size

    def says(self, name: str) -> Any:
        """Return the value of a field that is not a size, such as a string or a boolean; None if it is missing."""
        return self._value(name)

    def _value(self, name: str) -> Any:
        found: Any = self._config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


class Rule(NamedTuple):
    """A rule that computes the shape of the tensors with certain names from the fields of a configuration.

    ``pattern`` is the end of the names, with # for numbers. ``shape`` is the function that returns the shape; its
    arguments are the fields and the last number in the name.
    """

    pattern: str
    shape: Callable[[Fields, int], Shape]


def rules(rules: Mapping[str, Callable[[Fields, int], Shape]], *, has_biases: bool = True) -> tuple[Rule, ...]:
    """Return a rule for each name pattern; a key of ``rules`` has one or more patterns, separated by spaces.

    If ``has_biases``, there is also a rule for the bias of each weight, with as many values as the weight has rows.
    """
    made = [Rule(pattern, shape) for patterns, shape in rules.items() for pattern in patterns.split()]
    known = {one.pattern for one in made}
    biases = [(one, f"{one.pattern.removesuffix('weight')}bias") for one in made if one.pattern.endswith(".weight")]
    made += [Rule(name, _first(one.shape)) for one, name in biases if has_biases and name not in known]
    return tuple(made)


def _first(shape: Callable[[Fields, int], Shape]) -> Callable[[Fields, int], Shape]:
    return lambda c, number: shape(c, number)[:1]
