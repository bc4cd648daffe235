"""A conversion between two frameworks' layouts of one network: operations that ship with us, and when they apply."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...tensors.info import TensorInfo

__all__ = ["Conversion"]


@dataclass(frozen=True)
class Conversion:
    """Operations by a name, which ``--ruleset`` takes.

    ``converts`` tells by names and shapes whether a source is what they are for; ``gives`` are keys that there are
    then; ``said`` says what the source is, and what becomes of it.
    """

    name: str
    said: str
    converts: Callable[[Mapping[str, TensorInfo]], bool]
    gives: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
