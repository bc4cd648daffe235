"""The context of applying a plan: settings that are not part of the plan."""

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
from .compute.lora import FactorCache

__all__ = ["MEMORY", "MergeContext", "ParallelMap"]

MEMORY = 1 << 30
"""Bytes that computing a merge may take, unless an option sets them."""

T = TypeVar("T")


class ParallelMap(Protocol):
    """Maps a function over many items, perhaps in several threads, and keeps their order."""

    def __call__(self, look: Callable[[Any], T], over: Iterable[Any], /) -> Iterable[T]:
        """Return the results in the order of the items."""
        ...


@dataclass(frozen=True)
class MergeContext:
    """The context for computing tensors: the seed, the user's methods, the memory, the threads.

    ``memory`` is in bytes; ``device`` is the device of torch, "" for numpy, None for the plan's; ``factors`` is the
    cache of extracted factors.
    """

    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = MEMORY
    spread: ParallelMap = map
    factors: FactorCache = field(default_factory=FactorCache)
    device: str | None = None

    @cached_property
    def _methods(self) -> Mapping[str, Method]:
        return merge_methods(self.plugins)

    def method(self, name: str) -> Method:
        """Return a method by its name; raises ConfigError for an unknown one."""
        known = self._methods
        if name not in known:
            raise ConfigError(
                f"the merge method {escape(name)} is not known.", hint="Name the file that defines it with --plugin."
            )
        return known[name]

    def check(self, step: Step, needed: int, why: str, hint: str = "") -> None:
        """Raise PlanError if something needs more bytes than the memory limit."""
        if needed > self.memory:
            raise PlanError(
                f"{escape(step.key)} takes {human_bytes(needed)} of memory, since {why}; "
                f"the limit is {human_bytes(self.memory)}.",
                hint=f"Allow more: --memory {needed}B{hint}.",
            )
