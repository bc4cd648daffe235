"""Checks that a plan that was read from a file is consistent; describes the costs of applying a plan."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ...errors import ConfigError
from ...tensors.dtypes import DTYPES
from ...util.text import escape
from .files import PlanCompanion, PlanSource, PlanTarget
from .step import Step

__all__ = ["Costs", "check_plan"]

# The costs of applying a plan, known in advance.


@dataclass(frozen=True)
class Costs:
    """The costs of applying a plan: upper limits of the bytes read, the bytes written, and the memory.

    ``passes`` is the number of times that the largest tensor may be read: some computations read their inputs several
    times. ``memory_nbytes`` is the memory in bytes that the computation needs on this machine, in addition to the
    memory of the Python interpreter.
    """

    passes: int
    nbytes_read: int
    nbytes_written: int
    memory_nbytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the costs as plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Any) -> Costs | None:
        """Return the costs that ``data`` describes, or None if ``data`` is None.

        Raises TypeError, ValueError or KeyError for wrong data.
        """
        if data is None:
            return None
        return Costs(*(int(data[name]) for name in ("passes", "nbytes_read", "nbytes_written", "memory_nbytes")))


class CheckedPlan(Protocol):
    """The attributes of a plan that ``check_plan`` uses."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> tuple[Step, ...]: ...
    @property
    def sources(self) -> tuple[PlanSource, ...]: ...
    @property
    def target(self) -> PlanTarget: ...
    @property
    def counts(self) -> dict[str, int]: ...


def check_plan(plan: CheckedPlan, data: Mapping[str, Any]) -> None:
    """Raise ConfigError if a plan contradicts itself or its JSON ``data``.

    The JSON has the class of each step (copied, initialised, ...), and the number of tensors of each class.
    """
    if not plan.steps:
        raise _fault("it has no steps")
    if not 0 <= plan.seed < 2**63:
        raise _fault(f"its seed is {plan.seed}, not a number from 0 to 2**63 - 1")
    _check_steps(plan.steps)
    _check_target(plan)
    for source in plan.sources:
        if source.path and not source.files:
            raise _fault(f"it lacks the sizes and checksums of the files of {escape(source.name)}")
    if dict(data["counts"]) != plan.counts:
        raise _fault(f"its counts are {data['counts']}, but its steps have {plan.counts}")
    for row, step in zip(data["steps"], plan.steps, strict=True):
        if row["class"] != step.kind:
            raise _fault(f"{escape(step.key)} is listed as {row['class']!r:.40}, but would be {step.kind}")


def _check_target(plan: CheckedPlan) -> None:
    """Raise ConfigError if the files that a plan writes in addition to the weights are not valid.

    Their names must be different and without folders. A file whose text is in the plan must have the recorded size and
    SHA-256. Each tensor that is not stored must be tied to a stored tensor.
    """
    names = [one.name for one in plan.target.companions]
    weights = plan.target.weights
    if weights and not (
        PlanCompanion(weights, 0, "").is_plain and "/" not in weights and weights.endswith(".safetensors")
    ):
        raise _fault(f"the file of its weights, {escape(weights)}, is not a plain file name that ends in .safetensors")
    for one in plan.target.companions:
        if not one.is_plain:
            raise _fault(
                f"its companion {one.name!r:.80} is not a plain file name: at most one folder, and no leading dot, is "
                "allowed"
            )
        text = one.text.encode("utf-8", "surrogatepass")
        if not one.path and (len(text), hashlib.sha256(text).hexdigest()) != (one.size, one.sha256):
            raise _fault(f"its companion {escape(one.name)} does not match its size and checksum")
    if not {one.subfolder for one in plan.target.companions}.isdisjoint(names):
        raise _fault("a companion has the name of another one's folder")
    if len(set(names)) != len(names):
        raise _fault("it has two companions with the same name")
    implied = set(plan.target.implied)
    kept = {step.tied_to or step.key for step in plan.steps if step.key not in implied}
    for step in plan.steps:
        if step.key in implied and (step.tied_to or step.key) not in kept:
            raise _fault(f"the tensor to which {escape(step.key)} is tied is not stored")


def _check_steps(steps: Sequence[Step]) -> None:
    seen: dict[str, Step] = {}
    for step in steps:
        if step.key in seen:
            raise _fault(f"it has two steps for {escape(step.key)}")
        if step.source is None and step.op != "init":
            raise _fault(f"{escape(step.key)} has no input for {step.op}")
        for dtype in (step.dtype, *(one.dtype for one in step.inputs)):
            if dtype not in DTYPES:
                raise _fault(f"{escape(step.key)} has an unknown dtype {dtype!r:.40}")
        if step.tied_to:
            _check_tie(step, seen.get(step.tied_to))
        seen[step.key] = step


def _check_tie(step: Step, owner: Step | None) -> None:
    if owner is None or owner.tied_to or (owner.dtype, owner.shape) != (step.dtype, step.shape):
        raise _fault(
            f"{escape(step.key)} is tied to {escape(step.tied_to)}, which is not an earlier tensor of its dtype and "
            "shape"
        )


def _fault(why: str) -> ConfigError:
    return ConfigError(
        f"the plan is malformed: {why}.", hint="Make a new plan; to change it, use options instead of editing the plan."
    )
