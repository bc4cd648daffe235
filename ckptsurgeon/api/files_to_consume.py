"""Finds the files that a run with ``consume`` would delete, before it begins."""

from __future__ import annotations

from typing import NamedTuple

from ..engine.consuming import consumable_files
from ..engine.inputs import PlanInputs
from ..planning.plan.plan import Plan

__all__ = ["Consumption", "consumption"]


class Consumption(NamedTuple):
    """The source files that would be deleted, their total size in bytes, and the source tensors that are not used."""

    files: tuple[str, ...]
    nbytes: int
    lost: tuple[str, ...]


def consumption(plan: Plan) -> Consumption:
    """Return the files that ``apply`` deletes with ``consume``; raises OutputError if a source cannot be deleted.

    The inputs of the plan must be open, as they are when a verb returns the plan.
    """
    inputs = plan.inputs
    assert isinstance(inputs, PlanInputs)
    files = consumable_files(plan, inputs)
    read = {(one.source, one.key) for step in plan.steps for one in step.inputs}
    lost = [
        key
        for place, (described, source) in enumerate(zip(plan.sources, inputs.sources, strict=False))
        for key in source
        if described.role == "source" and (place, key) not in read
    ]
    first = [opened[0] for opened in files.values()]
    return Consumption(tuple(file.uri for file in first), sum(file.size for file in first), tuple(lost))
