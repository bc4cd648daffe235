"""Applies the operations on weights to the biases of the same modules: the values of biases alone prove too little."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..operations.steps import RETURN, TURN, Change, Step, free_name
from ..proposal import Tensors
from .relations import WHY

__all__ = ["with_biases"]

_WEIGHT = re.compile(r"(?:weight|kernel)$")


def with_biases(
    changes: Sequence[Change], source: Tensors, destination: Tensors, names: Mapping[str, str]
) -> list[Change]:
    """Return ``changes`` and, for each change of weights, a change of the biases, unless these are only renamed."""
    found = list(changes)
    taken = {*names.values()}
    for change in changes:
        made = _of_biases(change, source, destination)
        if made and names.keys().isdisjoint(made.sources) and taken.isdisjoint(made.results.values()):
            found.append(made)
    return found


def _of_biases(change: Change, source: Tensors, destination: Tensors) -> Change | None:
    """Return the change of the biases; None if a bias is missing, or if the steps do not apply to biases."""
    steps = [step for step in change.steps if step.phase not in (TURN, RETURN)]
    sources = tuple(map(_bias, change.sources))
    ends = {name: _bias(key) for name, key in change.results.items()}
    if not steps or not all(_is_vector(key, source) for key in sources):
        return None
    if not all(_is_vector(key, destination) for key in ends.values()) or any(map(_needs_a_matrix, steps)):
        return None
    renamed = dict(zip(change.sources, sources, strict=True))
    for name, key in ends.items():
        renamed.setdefault(name, free_name(key, source))
    if any(name not in renamed for step in steps for name in (*step.inputs, *step.outputs)):
        return None
    return Change(
        tuple(_renamed(step, renamed) for step in steps),
        {renamed[name]: key for name, key in ends.items()},
        sources,
        WHY,
    )


def _needs_a_matrix(step: Step) -> bool:
    """Return whether a step cannot be applied to a vector: it is on columns or changes the number of dimensions."""
    return step.verb in ("stack", "unstack", "copy", "reshape") or dict(step.fields).get("dim", 0) != 0


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    inputs, outputs = (tuple(names[name] for name in side) for side in (step.inputs, step.outputs))
    return Step(step.verb, inputs, outputs, step.phase, step.fields)


def _bias(key: str) -> str:
    return _WEIGHT.sub("bias", key) if _WEIGHT.search(key) else ""


def _is_vector(key: str, tensors: Tensors) -> bool:
    return key in tensors and len(tensors[key].shape) == 1
