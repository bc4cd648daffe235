"""Parses ``--memory``, and estimates the cost of a plan under this limit."""

from __future__ import annotations

from dataclasses import replace

from ...engine.compute.costs import costs_of
from ...engine.context import MEMORY, MergeContext
from ...engine.output.shards import parse_size
from ...methods.merge._method import Method
from ...planning.plan.plan import Plan

__all__ = ["memory_bytes", "with_costs"]


def memory_bytes(memory: str | int | None) -> int:
    """Return ``--memory`` in bytes; 0 if it is not given. Raises ConfigError for an invalid size."""
    return parse_size(memory, "--memory") if memory is not None else 0


def with_costs(plan: Plan, memory: int, plugins: tuple[Method, ...] = ()) -> Plan:
    """Return a plan with its estimated cost (passes, bytes read and written) under a limit of ``memory`` bytes.

    A ``memory`` of 0 means the default limit. ``plugins`` are the user's own merge methods. Raises PlanError if the
    limit is too small.
    """
    return replace(plan, costs=costs_of(plan, MergeContext(plan.seed, plugins, memory or MEMORY)))
