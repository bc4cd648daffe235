"""Writes some files (parts) of an output, in a process other than the one that publishes the output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from ..errors import OutputError
from ..planning.plan.plan import Plan
from ..planning.plan.receipt import Receipt
from ..storage.read.base import Progress
from ..storage.write.folders import StagedFolder
from ..util.text import escape
from .check_steps import check_step
from .inputs import PlanInputs
from .one_output_part import PartRun, keeping
from .output.layout import OutputOptions, as_written, is_shared_out, lay_out
from .output.quantisers import quantisers_of
from .output_parts import ByteCounter, plan_of_parts, steps_of_parts, write_frame, write_parts
from .part_receipt import PartReceipt
from .prefetch import prefetch
from .processes import SEEN_S, ProcessGroup
from .same_run import identity_digest

__all__ = ["PartWorker", "run_worker"]


def run_worker(
    plan: Plan, inputs: PlanInputs, options: OutputOptions, group: ProcessGroup, progress: Progress | None = None
) -> Receipt:
    """Write the files of an output that the first process assigns to this process; return a receipt for them.

    Returns only after the first process has published the output. Raises the same errors as ``carry_out``, and the
    error of the first process if that process fails.
    """
    began = time.perf_counter()
    made: list[PartReceipt] = []

    def done(receipt: PartReceipt) -> None:
        made.append(receipt)
        group.report(receipt)

    size, folder = 0, ""
    try:
        if is_shared_out(options):
            worker = PartWorker(plan, inputs, options)
            folder, names = group.assignment(worker.identity)
            if names:  # without names, the folder may be gone: the output may already be published
                size = worker.write(folder, names, done, check=group.check, progress=progress)
    except BaseException as error:
        if isinstance(error, OutputError) and folder and not os.path.isdir(folder):
            group.check_soon()  # the first process removes the folder before it says which error it has
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
        plan_sha256=plan.sha256(),
    )


class PartWorker:
    """Writes some files of an output into a temporary folder that another process created; the inputs must be open."""

    def __init__(self, plan: Plan, inputs: PlanInputs, options: OutputOptions) -> None:
        for step in plan.steps:
            check_step(step)
        self.plan, self.inputs, self.options = plan, inputs, options
        self._written = as_written(plan, options)
        quantisers = quantisers_of(self._written, inputs.sources)
        self._shape = lay_out(self._written, options, (), quantisers=quantisers)

    @property
    def identity(self) -> str:
        """A digest that is equal in all processes that write the same output."""
        return identity_digest(self.plan, self.inputs, self.options, self._shape)

    def write(
        self,
        folder: str,
        names: Collection[str],
        done: Callable[[PartReceipt], None],
        *,
        check: Callable[[], None] = lambda: None,
        progress: Progress | None = None,
    ) -> int:
        """Write the files ``names`` of the output into the temporary folder; return their total size in bytes.

        ``done`` is called with the receipt of each file when its bytes are on disk. ``check`` is called repeatedly: it
        raises an error if the process that publishes the output has failed.
        """
        sizes = {part.name: part.layout.size for part in self._shape.parts if part.name in names}
        if len(sizes) < len(names):
            raise OutputError(
                "the first process told this process to write files that this process's plan of the output lacks.",
                hint="Give all processes the same command.",
            )
        _wait_until_seen(folder, self.options.path, check)
        staged = StagedFolder(folder, self.options.path)
        counter = ByteCounter(progress, sum(sizes.values()), watch=check)
        parts = [one for one in self._shape.parts if one.name in names]
        steps = steps_of_parts(self._written, self._shape)
        flusher = _Flusher(sizes, done, check)
        try:
            for name in sizes:
                staged.remove(name)  # it may exist if a machine was lost and its task is repeated
            files = {name: staged.file(name, size) for name, size in sizes.items()}
            with keeping(self.inputs.sources):
                if any(source.is_remote for source in self.inputs.sources):
                    unwritten = plan_of_parts(self._written, steps, parts)
                    counter.fetched(prefetch(unwritten, self.inputs, counter.fetching))
                runs = [
                    PartRun(self._written, steps[part.name], self.inputs, part, files[part.name], counter.advance)
                    for part in parts
                ]
                write_parts(runs, flusher.finished)
                flusher.wait()
        finally:
            flusher.close()
            staged.close()
        return sum(sizes.values())


class _Flusher:
    """Flushes finished files to disk in a thread, while the next file is computed.

    ``sizes`` are the sizes of the files by name. ``done`` and ``check`` are as in ``PartWorker.write``.
    """

    def __init__(
        self, sizes: Mapping[str, int], done: Callable[[PartReceipt], None], check: Callable[[], None]
    ) -> None:
        self._sizes, self._done, self._check = sizes, done, check
        self._flushes: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flush")

    def finished(self, run: PartRun) -> None:
        """Write the bytes of a file that belong to no tensor, and begin to flush the file.

        Raises the error of a failed flush.
        """
        write_frame(run)
        self._check()
        for flush in self._flushes:
            if flush.done():
                flush.result()
        self._flushes.append(self._pool.submit(self._flush, run))

    def _flush(self, run: PartRun) -> None:
        run.file.flush(self._sizes[run.part.name])
        self._done(run.receipt)

    def wait(self) -> None:
        """Wait until all files are on disk; raises the error of a failed flush."""
        for flush in self._flushes:
            flush.result()

    def close(self) -> None:
        """Stop the thread; files whose flush has not begun are not flushed."""
        self._pool.shutdown(cancel_futures=True)


def _wait_until_seen(folder: str, shown: str, check: Callable[[], None]) -> None:
    until = time.monotonic() + SEEN_S
    while not os.path.isdir(folder):
        check()
        if time.monotonic() > until:
            raise OutputError(
                f"this process cannot see the temporary folder of {escape(shown)}: {escape(folder)}.",
                hint="Write to a file system that all processes share.",
            )
        time.sleep(0.1)
