"""Operations on single tensors, before those of all layers become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "JOIN",
    "ORDER",
    "REORDER",
    "RETURN",
    "STACK",
    "TURN",
    "UNSTACK",
    "Change",
    "Fields",
    "Step",
    "after",
    "free_name",
    "in_place",
]

UNSTACK, TURN, ORDER, JOIN, REORDER, RETURN, STACK = range(7)
"""The order of operations: on parts of the source, then split and concat, then on parts of the destination."""

Fields = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Step:
    """One operation on the tensors ``inputs``, which become ``outputs``; ``phase`` says when it is done.

    ``fields`` are the operation's other fields, without those that have their default.
    """

    verb: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    phase: int
    fields: Fields = ()

    @property
    def keeps_names(self) -> bool:
        """Whether the result has the name of the input, as that of a transpose."""
        return self.inputs == self.outputs


@dataclass(frozen=True)
class Change:
    """Tensors of the source that become tensors of the destination by ``steps``.

    ``results`` maps the names after the steps to keys of the destination, and ``sources`` has the keys that the steps
    use. ``why`` is the evidence.
    """

    steps: tuple[Step, ...]
    results: Mapping[str, str]
    sources: tuple[str, ...]
    why: str


def in_place(verb: str, name: str, phase: int, fields: Fields = ()) -> Step:
    """Return an operation whose result has the name of its input, such as a transpose."""
    return Step(verb, (name,), (name,), phase, fields)


def free_name(key: str, taken: Mapping[str, object]) -> str:
    """Return the name of a result that becomes ``key``: another one if a tensor of the source has that name."""
    name = key
    while name in taken:
        name = f"new.{name}"
    return name


def after(keys: Sequence[str], steps: Iterable[Step]) -> list[str]:
    """Return the names of all tensors after steps of one phase; results get the place of their first input."""
    gone: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if not step.keeps_names:
            gone |= dict.fromkeys(step.inputs, ()) | {step.inputs[0]: step.outputs}
    return [name for key in keys for name in gone.get(key, (key,))]
