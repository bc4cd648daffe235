"""``sharing``: what each of several processes will do for an output."""

from __future__ import annotations

from ..engine.inputs import PlanInputs
from ..engine.output.layout import OutputOptions
from ..engine.sharing import sharing_of
from ..errors import ConfigError
from ..planning.plan.plan import Plan
from ..planning.plan.sharing import Sharing
from ..storage.read.uri import scheme_of, shown
from ..util.text import escape

__all__ = ["sharing"]

MOST = 4096
"""The largest number of processes."""


def sharing(
    plan: Plan, processes: int, *, output: str | None = None, to: str | None = None, max_shard_size: str | None = None
) -> Sharing:
    """Return what each of ``processes`` processes would do to write the output of a plan; nothing is written.

    The other arguments are those of ``apply``; the inputs of the plan have to be open, as they are when a verb returns
    it. A sample of the output is made in memory to measure how long it takes. Raises ConfigError for another number
    than 1 to 4096, and for an output at an address.
    """
    if not 1 <= processes <= MOST:
        raise ConfigError(f"--processes {processes} is not a number from 1 to {MOST}.")
    if scheme_of(output or ""):
        raise ConfigError(
            f"--processes: the output at {escape(shown(output or ''))} is written by one process.", hint="Leave it out."
        )
    assert isinstance(plan.inputs, PlanInputs)
    return sharing_of(plan, plan.inputs, OutputOptions(output or "output/", to or "", max_shard_size or ""), processes)
