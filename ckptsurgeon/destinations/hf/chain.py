"""The operations of one group of tensors so far, and the tensors that they have made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...tensors.info import TensorInfo
from .group import Group, Unknown

__all__ = ["Chain", "Row", "Value", "Values"]

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Value:
    """A tensor on its way: what it is called, which may be a pattern, and its shape. ``many`` are those of a list."""

    name: str
    shape: tuple[int, ...]
    many: int = 0


Values: TypeAlias = dict[str, Value]
"""By the pattern of the conversion that it stands for."""


@dataclass
class Chain:
    """The operations of one group so far."""

    group: Group
    config: Any
    targets: Mapping[str, TensorInfo]
    write: Callable[[str], str]
    rows: list[Row] = field(default_factory=list)
    _parts: int = 0

    def fresh(self) -> str:
        """Return a name for what is made on the way."""
        self._parts += 1
        return f"{self.write(self.group.target)}.part{self._parts}"

    def names(self, patterns: Sequence[str]) -> list[str]:
        """Return the names in the destination that patterns of the conversion stand for."""
        outputs = dict(zip(self.group.converter.target_patterns, self.group.outputs(), strict=False))
        return [self.write(outputs.get(pattern, self.group.target)) for pattern in patterns]

    def only(self, values: Values) -> tuple[str, Value]:
        """Return the one tensor there is."""
        if len(values) != 1 or next(iter(values.values())).many > 1:
            raise Unknown("several tensors go where one is expected")
        return next(iter(values.items()))

    def target(self, values: Values) -> str:
        """Return the pattern that a single tensor stands for after an operation in place."""
        patterns = self.group.converter.target_patterns
        return patterns[0] if len(patterns) == 1 else next(iter(values))

    def finals(self, values: Values) -> dict[str, str]:
        """Rename what does not have its name in the destination yet; by key, as renamings are."""
        wanted = dict(zip(self.group.converter.target_patterns, self.group.outputs(), strict=False))
        last: dict[str, str] = {}
        for pattern, value in values.items():
            name = wanted.get(pattern, self.group.target)
            if value.name in self._sources():
                last[self.group.keys[0]] = name
            elif value.name != self.write(name):
                self.rows.append({"concat": [value.name], "into": self.write(name)})
        return last

    def _sources(self) -> set[str]:
        return {*self.group.literal()[0].values(), *self.group.general()[0].values()}
