"""Operations on single tensors; ``collapse`` later joins the operations of all layers into one."""

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
"""The phases in their order: operations on source tensors, then split and concat, then operations on the results."""

Fields = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Step:
    """One operation that turns the tensors ``inputs`` into ``outputs``; phases are carried out in order.

    ``fields`` are the operation's other fields that do not have their default values.
    """

    verb: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    phase: int
    fields: Fields = ()

    @property
    def keeps_names(self) -> bool:
        """True if the result has the name of the input, as after a transpose."""
        return self.inputs == self.outputs


@dataclass(frozen=True)
class Change:
    """The ``steps`` that make tensors of the destination from tensors of the source.

    ``results`` maps the names after the steps to keys of the destination; ``sources`` are the source keys that the
    steps use. ``why`` is the evidence.
    """

    steps: tuple[Step, ...]
    results: Mapping[str, str]
    sources: tuple[str, ...]
    why: str


def in_place(verb: str, name: str, phase: int, fields: Fields = ()) -> Step:
    """Return an operation whose result has the name of its input, such as a transpose."""
    return Step(verb, (name,), (name,), phase, fields)


def free_name(key: str, taken: Mapping[str, object]) -> str:
    """Return a name for a result that later gets the name ``key``: ``new.KEY`` if a source tensor has this name."""
    name = key
    while name in taken:
        name = f"new.{name}"
    return name


def after(keys: Sequence[str], steps: Iterable[Step]) -> list[str]:
    """Return the names of all tensors after the steps of one phase.

    The results of a step take the place of its first input.
    """
    gone: dict[str, tuple[str, ...]] = {}
    for step in steps:
        if not step.keeps_names:
            gone |= dict.fromkeys(step.inputs, ()) | {step.inputs[0]: step.outputs}
    return [name for key in keys for name in gone.get(key, (key,))]
