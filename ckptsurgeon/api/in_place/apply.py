"""``rename --in-place``: writes new names into the headers of the source itself, whose values stay where they are."""

from __future__ import annotations

import time

from ...planning.plan.plan import Plan
from ...planning.plan.receipt import Receipt
from ...storage.write.headers import check_alone, replace_headers
from ..inputs.argument_types import checked
from ..inputs.inputs import close_inputs
from ..inputs.reopening import inputs_of
from .prepare import NewNames, for_place, prepared

__all__ = ["apply_in_place", "check_in_place"]


@checked
def apply_in_place(plan: Plan, *, wait: float | None = None) -> Receipt:
    """Write the new names of a ``rename`` plan into the headers of its source: a local safetensors file, or its shards.

    Only headers are written, all of them or none; after a run that was killed, ``ckpt check`` finishes or undoes the
    change. The plan is written next to the source, as ``FILE.rename.json``. ``wait`` is the number of seconds to wait
    for another run that writes the same file. Raises PlanError if the plan changes more than names or a new header is
    longer than the old one, and OutputError if a file has further hard links or is open in another program.
    """
    began, plan = time.monotonic(), for_place(plan)
    made = _closed(plan)
    replace_headers(made.path, made.headers, made.record, made.index, wait=wait)
    written = sum(len(one.new) for one in made.headers) + len(made.index or b"")
    return Receipt(
        made.path, plan.counts, (), sum(len(one.old) for one in made.headers), written, time.monotonic() - began,
        plan.sha256(), (*plan.notes, *made.notes), beside=(made.record[0],),
    )  # fmt: skip


def check_in_place(plan: Plan) -> tuple[str, ...]:
    """Return the notes of ``apply_in_place``, or raise its errors, without writing anything."""
    made = _closed(for_place(plan))
    for one in made.headers:
        check_alone(one.path)
    return made.notes


def _closed(plan: Plan) -> NewNames:
    """Return the content to write for a plan, and close its source: a file must not be open while it is changed."""
    inputs = inputs_of(plan)
    try:
        return prepared(plan, inputs.sources[0])
    finally:
        close_inputs(inputs)
