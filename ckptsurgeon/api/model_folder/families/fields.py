"""Computes the shapes of tensors from the fields of a configuration, by rules for their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["Fields", "Rule", "Shape", "UnknownError", "rules"]

Shape: TypeAlias = "tuple[int | None, ...]"
"""A shape; None for a size that no field gives, or that another check compares."""


LARGEST = 2**40
"""No size is larger: numbers of thousands of digits would be multiplied, and Python does not print their product."""


class UnknownError(Exception):
    """Raised if a configuration does not have a field that a shape is computed from."""


class Fields:
    """The fields of a configuration, which notes the names of those that a shape is computed from."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        self.names: dict[str, None] = {}

    def __getitem__(self, name: str) -> int:
        """Return a size; ``vision_config.hidden_size`` is one of a nested configuration."""
        value = self._value(name)
        if type(value) is not int or not 1 <= value <= LARGEST:
            raise UnknownError
        self.names[name] = None
        return value

    def get(self, name: str, default: int) -> int:
        """Return a size, or a default if the configuration lacks it, or has null."""
        return default if self._value(name) is None else self[name]

    def of(self, name: str, number: int) -> int:
        """Return an entry of a list of sizes; a negative number counts from its end."""
        value = self._value(name)
        if not isinstance(value, list) or not -len(value) <= number < len(value):
            raise UnknownError
        size = value[number]
        if type(size) is not int or abs(size) > LARGEST:
            raise UnknownError
        self.names[f"{name}, entry {number % len(value)}"] = None
        return size

    def says(self, name: str) -> Any:
        """Return the value of a field that turns something on or off."""
        return self._value(name)

    def _value(self, name: str) -> Any:
        found: Any = self._config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found


class Rule(NamedTuple):
    """The shape of a tensor by the fields of a configuration.

    ``pattern`` ends the names, with # for numbers. The function gets the fields and the last number in the name.
    """

    pattern: str
    shape: Callable[[Fields, int], Shape]


def rules(rules: Mapping[str, Callable[[Fields, int], Shape]], *, has_biases: bool = True) -> tuple[Rule, ...]:
    """Return a rule for each of the names, which are separated by spaces.

    If the module ``has_biases``, there is also one for the bias of each weight, of as many values as that has rows.
    """
    made = [Rule(pattern, shape) for patterns, shape in rules.items() for pattern in patterns.split()]
    known = {one.pattern for one in made}
    biases = [(one, f"{one.pattern.removesuffix('weight')}bias") for one in made if one.pattern.endswith(".weight")]
    made += [Rule(name, _first(one.shape)) for one, name in biases if has_biases and name not in known]
    return tuple(made)


def _first(shape: Callable[[Fields, int], Shape]) -> Callable[[Fields, int], Shape]:
    return lambda c, number: shape(c, number)[:1]
