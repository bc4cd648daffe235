"""Reversible changes that split a tensor of the family's own layout, or add a number to its elements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .changes import matched
from .layout import Numbers, Row, Tensors

__all__ = ["Halved", "Parted", "Shifted"]


@dataclass(frozen=True)
class Parted:
    """A tensor ``made`` that another change splits from the family's tensor ``name``; by itself it changes nothing."""

    name: str
    made: str

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return no operations: the other change, which splits ``name``, makes this tensor, too."""
        return []

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return no operations: the other change, which joins ``name`` again, also uses this tensor."""
        return []


@dataclass(frozen=True)
class Halved(Parted):
    """A change that splits the tensor ``name`` along ``dim`` into two equal parts, ``made`` and ``other``."""

    other: str
    dim: int = 0

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that splits ``name`` into ``made`` and ``other``; [] if ``tensors`` lacks ``name``."""
        name = at(self.name)
        return [{"split": name, "into": [self.made, self.other], "dim": self.dim}] if matched(name, tensors) else []

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that joins ``made`` and ``other`` into ``name``; [] if there is nothing to join."""
        if not matched(self.made, tensors):
            return []
        return [{"concat": [self.made, self.other], "into": self.name, "dim": self.dim}]


@dataclass(frozen=True)
class Shifted:
    """A change that adds the number ``by`` to every element of the tensors ``name``, with the operation ``shift``."""

    name: str
    by: float
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that adds ``by`` to all elements of the tensors ``name``."""
        return [{"shift": at(self.name), "by": self.by}] if matched(at(self.name), tensors) else []

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that subtracts ``by`` from all elements of the tensors ``name`` again."""
        return [{"shift": at(self.name), "by": -self.by}] if matched(at(self.name), tensors) else []
