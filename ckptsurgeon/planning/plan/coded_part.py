"""Describes which part of a quantised tensor a step stores; converts this from and to JSON data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .compute import text

__all__ = ["CodedPart"]


@dataclass(frozen=True)
class CodedPart:
    """The part of a quantised tensor (codes or scales) that a step stores instead of the numbers that it computes.

    ``key``, ``dtype`` and ``shape`` describe the weight: the numbers before they are rounded, which all parts of the
    quantised tensor encode together. The other fields are the same as in ``tensors.info.Encoded``.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    role: str
    steps: tuple[int, ...]
    scale_dtype: str
    facts: tuple[tuple[str, float], ...] = ()

    @property
    def is_ordered(self) -> bool:
        """Whether the columns of a group are not adjacent; the step then reads the number of each column's group."""
        return ("ordered", 1.0) in self.facts

    def to_json(self) -> dict[str, Any]:
        """Return the object as plain data, for JSON."""
        return {
            "key": self.key, "dtype": self.dtype, "shape": list(self.shape), "encoding": self.encoding,
            "role": self.role, "steps": list(self.steps), "scale_dtype": self.scale_dtype, "facts": dict(self.facts),
        }  # fmt: skip

    @staticmethod
    def from_json(data: Any) -> CodedPart | None:
        """Return the object that ``data`` describes, or None if ``data`` is None.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        facts: Mapping[str, Any] = dict(data["facts"])
        return CodedPart(
            text(data["key"]), text(data["dtype"]), tuple(map(int, data["shape"])), text(data["encoding"]),
            text(data["role"]), tuple(map(int, data["steps"])), text(data["scale_dtype"]),
            tuple((str(name), float(value)) for name, value in facts.items()),
        )  # fmt: skip
