"""What a plan is carried out with that it does not say itself."""

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
from .compute.lora import Factors
from .run import MEMORY

__all__ = ["MergeContext", "Spread"]

T = TypeVar("T")


class Spread(Protocol):
    """Maps a function over many things, perhaps in several threads, and keeps their order."""

    def __call__(self, look: Callable[[Any], T], over: Iterable[Any], /) -> Iterable[T]:
        """Return the results in the order of what they are of."""
        ...


@dataclass(frozen=True)
class MergeContext:
    """What tensors are computed with beside their plan: the seed, the user's methods, the memory, the threads.

    ``memory`` is in bytes; ``device`` is where torch computes, "" for numpy, None for what the plan says; ``factors``
    are those that were extracted last.
    """

    seed: int = 0
    plugins: tuple[Method, ...] = ()
    memory: int = MEMORY
    spread: Spread = map
    factors: Factors = field(default_factory=Factors)
    device: str | None = None

    @cached_property
    def _methods(self) -> Mapping[str, Method]:
        return merge_methods(self.plugins)

    def method(self, name: str) -> Method:
        """Return a method by its name; raises ConfigError for one that is not known."""
        known = self._methods
        if name not in known:
            raise ConfigError(
                f"the merge method {escape(name)} is not known.", hint="Name the file that has it with --plugin."
            )
        return known[name]

    def check(self, step: Step, needed: int, why: str, hint: str = "") -> None:
        """Raise PlanError where something takes more bytes than the memory holds."""
        if needed > self.memory:
            raise PlanError(
                f"{escape(step.key)} takes {human_bytes(needed)} of memory, since {why}; "
                f"it has {human_bytes(self.memory)}.",
                hint=f"Allow more: --memory {needed}B{hint}.",
            )
