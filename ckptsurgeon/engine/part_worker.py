"""Writes some parts of an output for the process that publishes it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection

from ..errors import OutputError
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import Receipt
from ..storage.read.base import Progress
from ..storage.write.folders import StagedFolder
from ..util.text import escape
from .check_steps import check_step
from .inputs import PlanInputs
from .output.companions import as_written
from .output.layout import OutputOptions, is_folder, lay_out
from .part_receipt import PartReceipt
from .parts import ByteCounter, plan_of_parts, runs_of_parts, steps_of_parts, write_frame, write_parts
from .prefetch import keeping, prefetch
from .processes import ProcessGroup
from .run import PartRun, check_unchanged

__all__ = ["help_out", "write_named_parts"]

SEEN_S = 120.0
"""Seconds until a folder that was made on another machine must be seen here: NFS remembers what was not there."""


def help_out(
    plan: Plan, inputs: PlanInputs, options: OutputOptions, group: ProcessGroup, progress: Progress | None = None
) -> Receipt:
    """Write the parts that the first process gives to this one; return a receipt of these parts when all is published.

    Raises what ``carry_out`` raises, and the error of the first process.
    """
    began = time.perf_counter()
    sha256 = plan.sha256()
    made: list[PartReceipt] = []

    def done(receipt: PartReceipt) -> None:
        made.append(receipt)
        group.report(receipt)

    try:
        size = 0
        if is_folder(options):
            folder, names = group.ordered(sha256)
            if names:  # else the output may be published already
                size = write_named_parts(plan, inputs, options, folder, names, done, group.check, progress)
    except BaseException as error:
        group.fail(error)
        raise
    group.wait_for_end()
    return Receipt(
        output=options.path,
        counts=plan.counts,
        unexpected=tuple(key for _, key in plan.unexpected),
        nbytes_read=sum(one.nbytes_read for one in made),
        nbytes_written=size,
        elapsed_s=time.perf_counter() - began,
        plan_sha256=sha256,
    )


def write_named_parts(
    plan: Plan,
    inputs: PlanInputs,
    options: OutputOptions,
    folder: str,
    names: Collection[str],
    done: Callable[[PartReceipt], None],
    check: Callable[[], None],
    progress: Progress | None = None,
) -> int:
    """Write those parts of a plan's output whose names are given into its temp folder; return their size in bytes.

    ``done`` is called with the receipt of each part when its bytes are on disk. ``check`` raises the error of the
    process that publishes the output, if it has failed.
    """
    for step in plan.steps:
        check_step(step)
    written = as_written(plan, options)
    shape = lay_out(written, options, ())
    parts = [part for part in shape.parts if part.name in names]
    _wait_until_seen(folder, options.path, check)
    staged = StagedFolder(folder, options.path)
    try:
        for part in parts:
            staged.remove(part.name)  # of a task that is done again, since its machine was lost
        files = {part.name: staged.file(part.name, part.layout.size) for part in parts}
        sizes = {part.name: part.layout.size for part in parts}
        counter = ByteCounter(progress, sum(sizes.values()), 0)

        def finished(run: PartRun) -> None:
            write_frame(run)
            run.file.flush(sizes[run.part.name])
            check()
            done(run.receipt)

        with keeping(inputs):
            steps = steps_of_parts(written, shape)
            counter.fetched(prefetch(plan_of_parts(written, steps, parts), inputs, counter.fetching))
            write_parts(runs_of_parts(written, steps, inputs, parts, files, counter.advance), finished)
            check_unchanged(inputs)
    finally:
        staged.close()
    return sum(sizes.values())


def _wait_until_seen(folder: str, shown: str, check: Callable[[], None]) -> None:
    until = time.monotonic() + SEEN_S
    while not os.path.isdir(folder):
        check()
        if time.monotonic() > until:
            raise OutputError(
                f"the temporary folder of {escape(shown)} is not seen by this process: {escape(folder)}.",
                hint="Write to a file system that all processes share.",
            )
        time.sleep(0.1)
