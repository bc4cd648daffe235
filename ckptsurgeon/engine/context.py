"""Settings for applying a plan that are not part of the plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar

from ..errors import ConfigError, PlanError
from ..methods.merge._method import Method
from ..methods.merge._registry import merge_methods
from ..planning.plan.step import Step
from ..util.text import escape, human_bytes
from .compute.adding_lora import AdapterChanges
from .compute.encoding import Roundings
from .compute.extracting_lora import FactorCache
from .compute.growth import Growths

__all__ = ["BUFFERS", "MEMORY", "MemoryLimitError", "MergeContext", "ParallelMap", "memory_error"]

MEMORY = 1 << 30
"""How many bytes of memory computing a tensor may take, unless an option sets another limit."""

BUFFERS = 16 << 20
"""The bytes of memory that copying takes, whatever the sizes of the tensors."""

T = TypeVar("T")


class MemoryLimitError(PlanError):
    """The computation needs more memory than is allowed; with ``needed`` bytes, the same command runs."""

    needed = 0


def memory_error(message: str, needed: int, instead: str = "") -> MemoryLimitError:
    """Return an error whose hint advises ``needed`` bytes of memory; ``instead`` is its end, such as ", or ..."."""
    error = MemoryLimitError(message, hint=f"Allow more memory: --memory {needed}B{instead}.")
    error.needed = needed
    return error


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

    def check(self, step: Step, needed: int, why: str, hint: str = "") -> None:
        """Raise PlanError if ``needed``, the bytes of memory for a step, is over the limit.

        ``why`` is a clause for the message: why the step needs this memory. ``hint`` is added to the hint of the error.
        """
        if needed > self.memory:
            raise memory_error(
                f"{escape(step.key)}: computing this tensor takes {human_bytes(needed)} of memory, because {why}; "
                f"the limit is {human_bytes(self.memory)}.",
                needed,
                hint,
            )
