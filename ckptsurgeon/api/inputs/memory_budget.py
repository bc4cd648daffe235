"""The memory that a verb may take, and what its plan costs in it."""

from __future__ import annotations

from dataclasses import replace

from ...engine.compute.costs import costs_of
from ...engine.context import MergeContext
from ...engine.output.layout import parse_size
from ...engine.run import MEMORY
from ...methods.merge._method import Method
from ...planning.plan.plan import Plan

__all__ = ["memory_bytes", "with_costs"]


def memory_bytes(memory: str | int | None) -> int:
    """Return what ``--memory`` says in bytes, 0 where it says nothing; raises ConfigError for what is no size."""
    return parse_size(memory, "--memory") if memory is not None else 0


def with_costs(plan: Plan, memory: int, plugins: tuple[Method, ...] = ()) -> Plan:
    """Return a plan with what it costs in so many bytes of memory, in what is usual for 0."""
    return replace(plan, costs=costs_of(plan, MergeContext(plan.seed, plugins, memory or MEMORY)))
