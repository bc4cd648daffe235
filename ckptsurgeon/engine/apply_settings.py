"""Settings for applying a plan that are not part of the plan, and what a merge takes under these settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np

from ..errors import ConfigError, PlanError
from ..methods.merge._method import Method
from ..methods.merge._registry import merge_methods
from ..planning.plan.compute import FISHER, TURNED_GRAM, Merge
from ..planning.plan.step import Step
from ..tensors.ops.casts import raw_dtype
from ..tensors.ops.regions import blocks, box_shape
from ..util.text import escape, human_bytes
from .compute.adding_lora import AdapterChanges
from .compute.aligning import overlap_of
from .compute.encoding import Roundings
from .compute.extracting_lora import FactorCache
from .compute.growth import Growths
from .compute.reading import OutputBlock, numbered_blocks

__all__ = [
    "BUFFERS",
    "MEMORY",
    "MemoryLimitError",
    "MemoryNeed",
    "MergeContext",
    "ParallelMap",
    "bytes_of_whole",
    "device_of",
    "factorising_bytes",
    "memory_error",
    "merge_of",
    "merged_shape",
    "merging_bytes",
    "merging_places",
    "method_of",
    "whole_bytes",
]

MEMORY = 1 << 30
"""How many bytes of memory computing a tensor may take, unless an option sets another limit."""

BUFFERS = 16 << 20
"""The bytes of memory that copying takes, whatever the sizes of the tensors."""

T = TypeVar("T")


class MemoryLimitError(PlanError):
    """The computation needs more memory than is allowed; with ``needed`` bytes, this error is not raised again."""

    needed = 0


def memory_error(message: str, needed: int, instead: str = "") -> MemoryLimitError:
    """Return an error whose hint advises ``needed`` bytes of memory; ``instead`` is its end, such as ", or ..."."""
    error = MemoryLimitError(message, hint=f"Allow more memory: --memory {needed}B{instead}.")
    error.needed = needed
    return error


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes of memory that computing a tensor takes, and the reason for an error message (``why``).

    ``kept`` is the number of bytes that are needed until the whole tensor is computed. ``block`` is the number of
    additional bytes for each block, which are needed only while the block is computed.
    """

    block: int
    why: str
    kept: int = 0

    @property
    def least(self) -> int:
        """The bytes of memory that are needed if only one block at a time is computed."""
        return self.kept + self.block


class ParallelMap(Protocol):
    """A function like ``map`` that may use several threads; the results are in the order of the items."""

    def __call__(self, look: Callable[[Any], T], over: Iterable[Any], /) -> Iterable[T]:
        """Return ``look(item)`` for each item of ``over``, in order."""
        ...


@dataclass(frozen=True)
class MergeContext:
    """Settings for computing tensors: the seed, the user's merge methods (``plugins``), the memory limit in bytes.

    ``threads`` is the largest number of threads (0: one for each core of this process), and ``spread`` is a function
    like ``map`` that may use threads. ``factors`` is the cache of extracted low-rank factors. ``roundings`` records the
    rounding losses of tensors that are quantised. ``adapters`` counts how many changes each adapter makes, and how many
    of them are zero. ``growths`` records how large merged values became. ``device`` is a device of torch, or "" for
    numpy; if it is None, the device in the plan is used.
    """

    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = MEMORY
    threads: int = 0
    spread: ParallelMap = map
    factors: FactorCache = field(default_factory=FactorCache)
    roundings: Roundings = field(default_factory=Roundings)
    adapters: AdapterChanges = field(default_factory=AdapterChanges)
    growths: Growths = field(default_factory=Growths)
    device: str | None = None

    @cached_property
    def _methods(self) -> Mapping[str, Method]:
        return merge_methods(self.plugins)

    def method(self, name: str) -> Method:
        """Return the merge method with this name; raises ConfigError if there is none."""
        known = self._methods
        if name not in known:
            raise ConfigError(
                f"the merge method {escape(name)} is not known.", hint="Pass the file that defines it with --plugin."
            )
        return known[name]

    def check(self, step: Step, need: MemoryNeed) -> None:
        """Raise PlanError if a step needs more memory than the limit, even if it is computed one block at a time."""
        if need.least > self.memory:
            raise memory_error(
                f"{escape(step.key)}: computing this tensor takes {human_bytes(need.least)} of memory, because "
                f"{need.why}; the limit is {human_bytes(self.memory)}.",
                need.least,
                ", or use another merge method for this tensor" if step.op == "merge" else "",
            )


# How a tensor is merged: its method, its device, its blocks, and the memory that these take.


def merge_of(step: Step) -> Merge:
    """Return the settings of a step's merge (method, parameters); only for steps that ``check_step`` has checked."""
    assert step.merge is not None
    return step.merge


def method_of(step: Step, context: MergeContext) -> Method:
    """Return the merge method of a step, after a check that the plan has exactly the parameters of this method.

    Raises ConfigError for an unknown method, PlanError if the parameters differ, for example because a user has edited
    the plan. Without this check, the method would silently use the default of a missing parameter.
    """
    merge = merge_of(step)
    method = context.method(merge.method)
    name, takes = escape(merge.method), [one.name for one in method.parameters]
    if unknown := [one for one in merge.parameters if one not in takes]:
        raise PlanError(
            f"the plan sets the parameter {escape(unknown[0])}, which the merge method {name} does not have.",
            hint="Make a new plan.",
        )
    if lacking := [one for one in takes if one not in merge.parameters]:
        raise PlanError(
            f"the plan lacks the parameter {lacking[0]} of the merge method {name} for {escape(step.key)}.",
            hint="Make a new plan.",
        )
    return method


def device_of(step: Step, context: MergeContext) -> str:
    """Return the device on which torch computes the merge of a step; "" if numpy computes it."""
    return merge_of(step).device if context.device is None else context.device


ELEMENTS = 1 << 17
"""How many elements a slice has: slices of several models, and intermediate results, must fit in a core's cache."""

DEVICE_ELEMENTS = 1 << 22
"""How many elements a slice has if it is copied to a device, such as a GPU, and back."""

MANY = 8
"""With more models than this, slices have fewer elements than ``ELEMENTS`` or ``DEVICE_ELEMENTS``."""

TEMPORARIES = 3
"""For each input, a merge method has at most this many temporary arrays of a slice's size in memory."""

WHOLE = 4 * 8
"""The bytes of each element of a matrix that is merged as a whole: four matrices in double precision."""


def merging_places(step: Step, context: MergeContext) -> list[OutputBlock]:
    """Return the blocks of a merged tensor; they are the same on every machine, so that the results are the same."""
    by_rows = method_of(step, context).wants_rows(step.shape, merge_of(step).parameters)
    most = DEVICE_ELEMENTS if device_of(step, context) else ELEMENTS
    most = max(1, most // -(-_count(step) // MANY))
    limit = max(most, step.shape[-1] if by_rows else 1)
    return list(_places(step.shape, limit, raw_dtype(step.dtype).itemsize))


@lru_cache(maxsize=16)
def _places(shape: tuple[int, ...], limit: int, itemsize: int) -> tuple[OutputBlock, ...]:
    """Return the blocks of a tensor, of about ``limit`` elements each; cached, since many tensors share a shape."""
    return tuple(numbered_blocks(blocks(shape, limit), itemsize))


def _count(step: Step) -> int:
    """Return the number of arrays in a slice: the models, the base and, for some methods, the statistics.

    Statistics are in a slice only if they have one value for each element, as Fisher information has.
    """
    return len(step.combined if merge_of(step).statistics != FISHER else step.inputs)


def merging_bytes(step: Step, places: Sequence[OutputBlock]) -> int:
    """Return the bytes of memory for computing one block of a merge."""
    elements = max((prod(box_shape(place.box)) for place in places), default=0)
    return elements * np.dtype(merge_of(step).compute).itemsize * _count(step) * (1 + TEMPORARIES)


def factorising_bytes(step: Step, context: MergeContext) -> int:
    """Return the bytes of memory for factorising a whole tensor, if the merge method of a step does so; else 0."""
    merge = merge_of(step)
    itemsize, shape, number = np.dtype(merge.compute).itemsize, merged_shape(step), len(step.combined)
    if merge.statistics != TURNED_GRAM:
        return method_of(step, context).bytes_held(shape, number, itemsize, merge.parameters)
    whole = prod(shape) * (number * itemsize + WHOLE)  # its columns are merged together, and so whole matrices
    turned = (*shape[:-2], shape[-1], shape[-2])
    return whole + method_of(step, context).bytes_held(turned, number, itemsize, merge.parameters)


def whole_bytes(step: Step, context: MergeContext) -> int:
    """Return the bytes of memory for a tensor that the merge method of a step reads as a whole; 0 if it reads slices.

    Factorising takes more memory: see ``factorising_bytes``.
    """
    is_read_whole = method_of(step, context).is_read_whole(merged_shape(step), merge_of(step).parameters)
    return bytes_of_whole(step) if is_read_whole else 0


def merged_shape(step: Step) -> tuple[int, ...]:
    """Return the shape of the merged values: the output's or, with the policy ``overlap``, that of the overlap."""
    return step.shape if step.policy != "overlap" else overlap_of(step)


def bytes_of_whole(step: Step) -> int:
    """Return the bytes of memory for merging a whole tensor at once."""
    return prod(merged_shape(step)) * np.dtype(merge_of(step).compute).itemsize * len(step.combined) * TEMPORARIES
