"""Reversible changes between a family's own layout and another one.

The method ``there`` of a change returns the operations that make the other layout's tensors; the method ``back``
returns the operations that reverse them. ``Change`` in ``layout.py`` describes the parameters of the two methods.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ...errors import PlanError
from ...tensors.info import TensorInfo
from ...util.text import escape
from ..keys.pattern import KeyPattern
from ..keys.renaming import KeyMatcher
from .layout import Numbers, Row, Tensors

__all__ = [
    "WHAT",
    "Fused",
    "Keyed",
    "Squeezed",
    "Stacked",
    "Swapped",
    "Transposed",
    "UnknownNumberError",
    "Unsqueezed",
    "hits",
    "matched",
    "number_of",
    "parsed",
]

WHAT: Mapping[str, str] = {
    "heads": "attention heads",
    "keys": "heads of keys and values",
    "width": "rows of queries",
    "mlp": "rows of the MLP",
    "residual": "channels of the output",
    "skip": "channels of the sum of all blocks",
}
"""{name of a number that shapes do not show: its description in messages}."""


@lru_cache(maxsize=4096)
def parsed(pattern: str) -> KeyPattern:
    """Return the parsed pattern; it is cached, since layouts use the same patterns again and again."""
    return KeyPattern(pattern)


def matched(pattern: str, tensors: Tensors) -> list[str]:
    """Return the keys that a pattern matches, in the order of the tensors."""
    return hits([pattern], tensors)[0]


def hits(patterns: Iterable[str], keys: Collection[str]) -> list[list[str]]:
    """Return the keys that each pattern matches, in the order of the keys."""
    return KeyMatcher([*map(parsed, patterns)]).hits(keys)


class UnknownNumberError(PlanError):
    """Raised if a change needs a number (of heads, or of rows) that neither shapes nor a configuration show."""


def number_of(name: str, numbers: Numbers) -> int:
    """Return the number ``name``, such as "heads", from ``numbers``; shapes do not show this number.

    Raises UnknownNumberError if ``numbers`` lacks it.
    """
    if name not in numbers:
        raise UnknownNumberError(
            f"the number of {WHAT[name]} is not known, and the shapes of the tensors do not show it.",
            hint="Put the model's config.json (params.json for files of Meta and Mistral) next to the weights, or "
            "give --heads N/M.",
        )
    return numbers[name]


@dataclass(frozen=True)
class Fused:
    """A change that joins the tensors ``parts`` along dimension 0 into ``made``.

    ``ratio`` has, for each part, the name of a number such as "heads"; the parts' numbers of rows are in the ratio of
    these numbers. Without ``ratio``, all parts have equally many rows. ``groups`` is the name of a number of heads: if
    given, the rows of all parts of the first head come first, then the rows of the second head.
    """

    parts: tuple[str, ...]
    made: str
    ratio: tuple[str, ...] = ()
    groups: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that joins the tensors ``parts`` into ``made``; [] if ``tensors`` has none of them."""
        parts = [at(part) for part in self.parts]
        if not any(matched(part, tensors) for part in parts):
            return []
        return [{"concat": parts, "into": self.made, **self._groups(numbers)}]

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that splits ``made`` into ``parts`` again; [] if ``tensors`` lacks ``made``."""
        keys = matched(self.made, tensors)
        if not keys:
            return []
        row: dict[str, object] = {"split": self.made, "into": list(self.parts), **self._groups(numbers)}
        if self.ratio:
            row["sizes"] = self._sizes(keys[0], tensors[keys[0]], numbers)
        return [row]

    def _groups(self, numbers: Numbers) -> dict[str, int]:
        return {"groups": number_of(self.groups, numbers)} if self.groups else {}

    def _sizes(self, key: str, info: TensorInfo, numbers: Numbers) -> list[int]:
        shares = [number_of(name, numbers) for name in self.ratio]
        groups = number_of(self.groups, numbers) if self.groups else 1
        rows = info.shape[0] if info.shape else 0
        if not rows or rows % sum(shares) or any(share % groups for share in shares):
            heads = " and ".join(f"{numbers[name]} {WHAT[name]}" for name in dict.fromkeys(self.ratio))
            raise PlanError(
                f"{escape(key)} has {rows} rows, which cannot be divided into {heads}.",
                hint="Correct the numbers of heads, in the model's config.json or in --heads.",
            )
        return [rows // sum(shares) * share // groups for share in shares]


@dataclass(frozen=True)
class Keyed:
    """A change of the key ``name`` to ``made``, for a library whose keys are not names of modules joined by dots."""

    name: str
    made: str

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that renames ``name`` to ``made``, the library's key; [] if there is no such key."""
        return [{"copy": at(self.name), "into": [self.made]}] if matched(at(self.name), tensors) else []

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that renames ``made`` to ``name``, the family's key; [] if there is no such key."""
        return [{"copy": self.made, "into": [self.name]}] if matched(self.made, tensors) else []


@dataclass(frozen=True)
class Stacked:
    """A change that stacks the tensors ``parts`` along a new first dimension into ``made``.

    ``parts`` is a pattern with ``{i}``, or with ``{n}`` only: then all layers are stacked.
    """

    parts: str
    made: str

    @property
    def of_layers(self) -> bool:
        """Whether the change stacks all layers, and not the modules of one layer."""
        return "{i}" not in self.parts

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that stacks the tensors ``parts`` into ``made``; [] if ``tensors`` has none of them."""
        parts = at(self.parts)
        return [{"stack": parts, "into": self.made}] if matched(parts, tensors) else []

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that unstacks ``made``: it makes one tensor for each index of the first dimension."""
        into = self.parts.replace("{n}", "{i}") if self.of_layers else self.parts
        return [{"unstack": self.made, "into": into}] if matched(self.made, tensors) else []


@dataclass(frozen=True)
class Transposed:
    """A change that transposes the matrices ``name``.

    If tensors have more than two dimensions, ``dims`` are the two to swap.
    """

    name: str
    made: str = ""
    dims: tuple[int, ...] = ()

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operation that transposes the matrices ``name``, or undoes this: both are the same operation."""
        name = at(self.name)
        return [{"transpose": name, **({"dims": [*self.dims]} if self.dims else {})}] if matched(name, tensors) else []

    back = there


@dataclass(frozen=True)
class Squeezed:
    """A change that removes the dimensions ``dims``, of size 1, which only the family's tensors ``name`` have."""

    name: str
    dims: tuple[int, ...]
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that remove the dimensions ``dims`` of the tensors ``name``, which have size 1."""
        return self._reshaped(tensors, at, self._without)

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that give the tensors ``name`` the dimensions ``dims`` of size 1 again."""
        return self._reshaped(tensors, at, self._with)

    def _reshaped(
        self, tensors: Tensors, at: Callable[[str], str], change: Callable[[Sequence[int]], list[int]]
    ) -> list[Row]:
        keys = matched(at(self.name), tensors)
        shapes = {tensors[key].shape for key in keys}
        if len(shapes) == 1:
            return [{"reshape": at(self.name), "shape": change(next(iter(shapes)))}]
        return [{"reshape": key, "shape": change(tensors[key].shape)} for key in keys]

    def _without(self, shape: Sequence[int]) -> list[int]:
        return [size for dim, size in enumerate(shape) if dim not in self.dims or size != 1]

    def _with(self, shape: Sequence[int]) -> list[int]:
        sizes = list(shape)
        for dim in self.dims:
            sizes.insert(dim, 1)
        return sizes


class Unsqueezed(Squeezed):
    """A change that adds dimensions of size 1, at the indices ``dims``, which the family's tensors ``name`` lack."""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that give the tensors ``name`` the dimensions ``dims`` of size 1."""
        return super().back(tensors, numbers, at)

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that remove the dimensions ``dims`` of size 1 from the tensors ``name`` again."""
        return super().there(tensors, numbers, at)


@dataclass(frozen=True)
class Swapped:
    """A change that swaps the first and the second half of the rows of ``name``."""

    name: str
    made: str = ""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that swap the two halves of the rows of ``name``, or undo this by a second swap."""
        name = at(self.name)
        if not matched(name, tensors):
            return []
        halves = [f"{name}_first", f"{name}_second"]
        return [{"split": name, "into": halves}, {"concat": halves[::-1], "into": name}]

    back = there
