"""Collects the source tensors that one conversion of transformers combines, and our own equivalent operations.

A conversion (``WeightConverter`` in transformers/core_model_loading.py) makes tensors of the destination from all
source tensors whose keys match its patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ...tensors.info import TensorInfo
from ...util.text import NUMBER_IN_KEY

__all__ = [
    "ConversionGroup",
    "IntermediateTensor",
    "Naming",
    "OperationChain",
    "Row",
    "UnknownConversion",
    "Values",
    "opened",
]

# The keys of one conversion, and their pattern for all layers.

_SPECIAL = re.compile(r"[\\*?\[\]{}=]")


class UnknownConversion(Exception):  # noqa: N818 - caught within this package, which reports it
    """The error for a conversion of transformers (a ``WeightConverter``) that our operations cannot express."""


Naming: TypeAlias = tuple[Mapping[str, str], Callable[[str], str]]
"""{source pattern of the conversion: pattern in our format}, and a function that writes a destination key.

Our patterns and the written destination key contain the same captures, such as ``{n}``: ``layers.{n}.weight``.
"""


@dataclass
class ConversionGroup:
    """The source tensors that one conversion (``converter``) of transformers combines.

    ``target`` is the destination key to which the conversion renames them. ``found`` maps each source pattern to the
    keys that match it, and ``shapes`` maps each source pattern to the shape of these tensors.
    """

    target: str
    converter: Any
    found: dict[str, list[str]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def add(self, pattern: str, key: str, info: TensorInfo) -> None:
        """Add a source tensor whose key matches ``pattern``, a source pattern of the conversion."""
        self.found.setdefault(pattern, []).append(key)
        self.shapes[pattern] = info.shape

    @property
    def keys(self) -> list[str]:
        """All keys of the source tensors."""
        return [key for keys in self.found.values() for key in keys]

    @property
    def form(self) -> tuple[Any, ...]:
        """A value that is equal for groups whose keys differ only in numbers, such as the index of a layer."""
        return id(self.converter), opened(self.target), *((p, opened(keys[0])) for p, keys in self.found.items())

    def outputs(self) -> list[str]:
        """Return the keys of the tensors that the conversion makes."""
        patterns = self.converter.target_patterns
        first = next((one for one in patterns if one in self.target), None)
        if first is None:
            return [self.target]
        head, _, tail = self.target.partition(first)
        return [head + one + tail for one in patterns]

    def literal(self) -> Naming:
        """Return key patterns that match only keys of this group, and a function that returns its argument unchanged.

        The result has one key pattern for each source pattern of the conversion. If a source pattern matches a single
        key, the key pattern is this key. If it matches several, ``{e}`` replaces the number that varies: the keys
        ``layers.0.experts.0.w1`` and ``layers.0.experts.1.w1`` give ``layers.0.experts.{e}.w1``.
        """
        return {pattern: _caught(keys, {}) for pattern, keys in self.found.items()}, lambda name: name

    def general(self) -> Naming:
        """Return key patterns that match keys of all layers, and a function that turns destination keys into patterns.

        The result has one key pattern for each source pattern of the conversion. Letters in braces replace the numbers
        that source and destination keys share: ``layers.0.q.weight`` becomes ``layers.{n}.q.weight``. If the numbers of
        a source key and the destination key differ, returns ``literal()``. ``{e}`` is used as in ``literal``.
        """
        numbers = NUMBER_IN_KEY.findall(self.target)
        kept = {pattern: _constant(keys) for pattern, keys in self.found.items()}
        if len(numbers) > len(_NAMES) or any(found != numbers for found in kept.values()):
            return self.literal()
        names = {pattern: _caught(keys, dict(enumerate(_NAMES))) for pattern, keys in self.found.items()}
        return names, _numbered


_NAMES = "nmk"


def opened(key: str) -> str:
    """Return a key with ``#`` for each of its numbers: ``layers.#.weight``."""
    return NUMBER_IN_KEY.sub("#", key)


def _numbered(name: str) -> str:
    """Return a destination key with ``{n}``, ``{m}`` and ``{k}`` in place of its first, second and third number."""
    captures = iter(_NAMES)
    return NUMBER_IN_KEY.sub(lambda found: f"{{{next(captures)}}}", name)


def _constant(keys: Sequence[str]) -> list[str]:
    """Return the numbers that all ``keys`` have in common at the same position, in order."""
    columns = zip(*(NUMBER_IN_KEY.findall(key) for key in keys), strict=True)
    return [column[0] for column in columns if len(set(column)) == 1 or len(keys) == 1]


def _caught(keys: Sequence[str], names: Mapping[int, str]) -> str:
    """Return one pattern for all ``keys``: ``{e}`` replaces the number that varies between them.

    ``names`` maps the index of a number, among the numbers that all keys share, to the letter that replaces it, as in
    ``{n}``. Other numbers stay. Raises UnknownConversion if the keys differ in more than one number.
    """
    if any(_SPECIAL.search(key) for key in keys) or len({opened(key) for key in keys}) > 1:
        raise UnknownConversion("no pattern can match all of its source tensors")
    columns = list(zip(*(NUMBER_IN_KEY.findall(key) for key in keys), strict=True))
    varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    if len(varying) > 1:
        raise UnknownConversion("the keys of its source tensors differ in several numbers")
    places = iter(range(len(columns)))
    shared = iter(range(len(columns)))

    def written(found: re.Match[str]) -> str:
        if next(places) in varying:
            return "{e}"
        name = names.get(next(shared))
        return f"{{{name}}}" if name else found[0]

    return NUMBER_IN_KEY.sub(written, keys[0])


# The operations of one group so far, and the tensors that they make.

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class IntermediateTensor:
    """A tensor between two operations: its name, which may be a pattern, and its shape.

    ``many`` is the number of source tensors that the pattern matches; it is 0 if an operation made the tensor.
    """

    name: str
    shape: tuple[int, ...]
    many: int = 0


Values: TypeAlias = dict[str, IntermediateTensor]
"""Intermediate tensors by the source or target pattern of the conversion."""


@dataclass
class OperationChain:
    """Makes the operations for one group of source tensors, and collects them in ``rows``.

    ``config`` is the configuration of the model, and ``targets`` are the destination's tensors. ``write`` is the
    function of a ``Naming`` that turns a destination key into a pattern with captures such as ``{n}``.
    """

    group: ConversionGroup
    config: Any
    targets: Mapping[str, TensorInfo]
    write: Callable[[str], str]
    rows: list[Row] = field(default_factory=list)
    _parts: int = 0

    def fresh(self) -> str:
        """Return a new name for an intermediate tensor."""
        self._parts += 1
        return f"{self.write(self.group.target)}.part{self._parts}"

    def names(self, patterns: Sequence[str]) -> list[str]:
        """Return the destination keys for some target patterns of the conversion."""
        outputs = dict(zip(self.group.converter.target_patterns, self.group.outputs(), strict=False))
        return [self.write(outputs.get(pattern, self.group.target)) for pattern in patterns]

    def only(self, values: Values) -> tuple[str, IntermediateTensor]:
        """Return (pattern, tensor) of ``values``, which must have one pattern that stands for one tensor.

        Raises UnknownConversion if there is another number of tensors.
        """
        if len(values) != 1 or next(iter(values.values())).many > 1:
            raise UnknownConversion("an operation on one tensor gets several tensors")
        return next(iter(values.items()))

    def target(self, values: Values) -> str:
        """Return the pattern for the result of an operation that makes one tensor from ``values``.

        If the conversion has one target pattern, this pattern is returned, else the first pattern in ``values``.
        """
        patterns = self.group.converter.target_patterns
        return patterns[0] if len(patterns) == 1 else next(iter(values))

    def finals(self, values: Values) -> dict[str, str]:
        """Give the tensors in ``values``, the results of the conversion, the keys of the destination.

        A tensor that an operation made under another name is renamed: an operation for this is added to ``rows``. A
        source tensor that no operation changed is returned as {source key: destination key}; else {} is returned.
        """
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
