"""A conversion between two frameworks' layouts of one network: operations that ship with us, and when they apply."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..tensors import TensorInfo

__all__ = ["Conversion"]


@dataclass(frozen=True)
class Conversion:
    """Operations by a name, which ``--ruleset`` takes.

    ``converts`` tells by names and shapes whether a source is what they are for; ``gives`` are keys that there are
    then; ``said`` says what happens.
    """

    name: str
    said: str
    converts: Callable[[Mapping[str, TensorInfo]], bool]
    gives: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    def is_for(self, source: Mapping[str, TensorInfo], destination: Collection[str]) -> bool:
        """Whether a source has to be converted, and then is what a destination of these keys wants."""
        return all(key in destination for key in self.gives) and self.converts(source)
