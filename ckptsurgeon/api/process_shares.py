"""``sharing``: estimates how the writing of an output is divided among several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..engine.output.layout import OutputOptions
from ..engine.process_shares import sharing_of
from ..errors import ConfigError
from ..planning.plan.plan import Plan
from ..planning.plan.process_shares import Sharing
from ..storage.read.uri import scheme_of, shown
from ..util.text import escape
from .apply import open_inputs
from .inputs.inputs import close_inputs
from .inputs.reopening import inputs_of

__all__ = ["first_process", "sharing"]

MOST = 4096
"""The largest number of processes that can be asked for."""


def sharing(
    plan: Plan, processes: int, *, output: str | None = None, to: str | None = None, max_shard_size: str | None = None
) -> Sharing:
    """Return the parts of the output that each of ``processes`` processes would write, and the estimated time.

    Nothing is written: a sample of the output is computed in memory to measure the speed. The other arguments mean the
    same as in ``apply``. Raises ConfigError if ``processes`` is not from 1 to 4096, or if the output is remote, and
    PlanError if a file of a plan that was read from a file has changed since.
    """
    if not 1 <= processes <= MOST:
        raise ConfigError(f"--processes {processes} is not a number from 1 to {MOST}.")
    if scheme_of(output or ""):
        raise ConfigError(
            f"--processes has no effect, because one process writes the remote output {escape(shown(output or ''))}.",
            hint="Leave --processes out.",
        )
    opened = open_inputs(plan)
    inputs = opened or inputs_of(plan)
    try:
        return sharing_of(plan, inputs, OutputOptions(output or "output/", to or "", max_shard_size or ""), processes)
    finally:
        if opened is None:
            close_inputs(inputs)


@contextmanager
def first_process() -> Iterator[bool]:
    """Yield True in the process that must do the work of the ``with`` block, and False in all others.

    Among the processes of ``torchrun``, only the first one does the work. At the end of the block, the others wait
    until it is done; if the first process fails, they raise its error.
    """
    from ..engine.processes import process_group

    with process_group() as group:
        if group is None:
            yield True
        elif group.is_first:
            with group.leading():
                yield True
        else:
            yield False
            group.wait_for_end()
