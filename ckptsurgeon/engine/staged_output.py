"""Manages the temporary files of an output, which become the output when all of them are written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from threading import Lock

from ..errors import OutputError
from ..formats.base.rank_layout import SpreadLayout
from ..formats.base.sharded_writer import RECIPE_FILE
from ..planning.plan.plan import Plan
from ..storage.signing import MODEL_SIGNATURE
from ..storage.write.folders import StagedFolder, staged_folder
from ..storage.write.staged_file import StagedFile, staged_file
from ..util.text import escape
from .consuming import SourceConsumer
from .inputs import PlanInputs
from .one_output_part import PartRun
from .output.companion_files import existing_checkpoint, replaced
from .output.diffusers_pipeline import component_weights
from .output.layout import OutputFile, OutputOptions, OutputShape
from .output.signing import check_signable
from .output_parts import write_frame
from .part_receipt import PartReceipt
from .processes import SEEN_S, Helpers, pauses
from .rank_files import SpreadFile
from .resuming import PartsJournal, unfinished_parts

__all__ = ["StagedOutput", "staged_output"]


class StagedOutput:
    """The temporary files of an output, and the receipts of its finished files (parts).

    ``files`` is {name: open file}; the name is "" if the output is a single file. Then ``folder`` and ``journal`` are
    None. ``helpers`` are the other processes that write files; None if this process writes all of them. ``consumer``
    deletes shards of the sources; None if they are not deleted.
    """

    def __init__(
        self,
        shape: OutputShape,
        files: Mapping[str, StagedFile],
        folder: StagedFolder | None = None,
        journal: PartsJournal | None = None,
        helpers: Helpers | None = None,
        consumer: SourceConsumer | None = None,
    ) -> None:
        self.shape, self.files, self.folder = shape, dict(files), folder
        self._journal, self._helpers, self._consumer = journal, helpers, consumer
        self.kept: Mapping[str, PartReceipt] = journal.kept if journal is not None else {}
        self.receipts = dict(self.kept)
        self._lock = Lock()
        self._unseen: dict[str, tuple[PartReceipt, float]] = {}
        """{name of a file of another process that is not visible here yet: (its receipt, when the receipt came)}."""
        self.advance: Callable[[int], None] = lambda nbytes: None
        """A function for progress; it gets the number of bytes that another process wrote or that were uploaded."""
        self.sends = 0
        """The number of bytes that will be uploaded after they were written to this machine; 0 without an upload."""

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of the bytes outside the tensors, by the name of the file."""
        found: dict[str, str] = {}
        for name, receipt in self.receipts.items():
            file = self.files.get(name)
            found.update(file.digests if isinstance(file, SpreadFile) else {name: receipt.digest})
        return found

    @property
    def notes(self) -> tuple[str, ...]:
        """A tuple with a note on the files that an interrupted run has finished; () if there are none."""
        return self._journal.notes if self._journal is not None else ()

    def begin_parts(self, identity: Callable[[], str]) -> list[OutputFile]:
        """Divide the unfinished files between the processes; open and return the files that this process writes.

        ``identity`` returns a digest that must be equal in all processes.
        """
        parts = [part for part in self.shape.parts if part.name not in self.kept]
        if self.folder is None:
            return parts
        if self._helpers is not None:
            parts = [*self._helpers.share_out(identity(), self.folder.path, parts)]
        self._consume(self.kept)
        self.files |= {part.name: _staged(part, self.folder) for part in parts}
        return parts

    def finished(self, run: PartRun) -> None:
        """Write the bytes of a file that belong to no tensor, such as its header; record that the file is finished.

        If the output is a single file, its header is written later: it contains the recipe, with the checksums of all
        tensors.
        """
        if self.folder is not None:
            write_frame(run)
            for name in run.part.names:
                self.folder.finished(name)
        if self._consumer is not None:
            run.file.flush(run.part.layout.size)
        self._add(run.receipt)
        self.take_in()

    def wait_for_others(self) -> None:
        """Wait until the other processes have finished their files."""
        if self._helpers is None:
            return
        for _ in pauses():
            if len(self.receipts) >= len(self.shape.parts):
                return
            self.take_in()

    def take_in(self) -> None:
        """Record the files that the other processes have finished; raises an error if one failed or does not respond.

        Any thread may call this; if another thread is doing it already, the call returns immediately.
        """
        if self._helpers is None or self.folder is None or not self._lock.acquire(blocking=False):
            return
        try:
            for receipt in self._helpers.receipts():
                self._unseen[receipt.name] = receipt, time.monotonic()
            for receipt, since in [*self._unseen.values()]:
                if self._take(receipt, self.folder):
                    del self._unseen[receipt.name]
                elif time.monotonic() - since > SEEN_S:
                    raise _incomplete(receipt)
        finally:
            self._lock.release()

    def _take(self, receipt: PartReceipt, folder: StagedFolder) -> bool:
        """Record a file that another process has written; return False if it is not visible here as a whole."""
        layouts = {part.name: part.layout for part in self.shape.parts}
        layout = layouts.get(receipt.name)
        if layout is None or layout.slots.keys() != receipt.checksums.keys():
            raise _incomplete(receipt)
        file = folder.open_existing(receipt.name, layout.size)
        if file is None:
            return False
        self.files[receipt.name] = file
        self._add(receipt)
        self.advance(sum(nbytes for _, nbytes in layout.slots.values()))
        return True

    def _add(self, receipt: PartReceipt) -> None:
        self.receipts[receipt.name] = receipt
        if self._journal is not None:
            self._journal.add(receipt)
        self._consume([receipt.name])

    def _consume(self, finished: Iterable[str]) -> None:
        """With --consume, delete the shards of the sources that no unfinished file of the output needs."""
        if self._consumer is not None and self.folder is not None:
            self._consumer.finished(finished, self.folder.mark_only_copy)


def _incomplete(receipt: PartReceipt) -> OutputError:
    return OutputError(
        f"{escape(receipt.name)}, which another process has written, is incomplete when this process reads it.",
        hint="Write to a file system that all processes share.",
    )


def _staged(part: OutputFile, folder: StagedFolder) -> StagedFile:
    """Return the open temporary file for ``part``, or an object that writes the files of all ranks.

    The latter is for formats with a file for each rank.
    """
    if isinstance(part.layout, SpreadLayout):
        return SpreadFile(part.layout, folder)
    return folder.file(part.name, part.layout.size)


@contextmanager
def staged_output(
    path: str,
    shape: OutputShape,
    written: Plan,
    options: OutputOptions,
    *,
    plan: Plan,
    inputs: PlanInputs,
    stale: Iterable[str],
    helpers: Helpers | None = None,
    consumer: SourceConsumer | None = None,
) -> Iterator[StagedOutput]:
    """Yield the temporary files of an output; after the block they become the output.

    ``plan`` is the complete plan, and ``written`` the plan with only the tensors of the output (``as_written``).
    ``stale`` are files of an earlier output that will be removed. If an interrupted run of the same command has left
    finished files, these are used. ``helpers`` are other processes that write files; ``consumer`` deletes shards of the
    sources. Raises OutputError if the folder contains a checkpoint and ``force`` is not set, or if a different command
    was interrupted and has left finished files.
    """
    if not shape.folder:
        with staged_file(path, shape.size, force=options.force) as file:
            yield StagedOutput(shape, {"": file}, helpers=helpers)
        return
    found = (
        *existing_checkpoint(path),
        *component_weights(path, shape.subfolders),
        *_existing_files(path, shape, written),
        *stale,
    )
    present = list(dict.fromkeys([*found, *_existing_signature(path, options)]))
    if present and not options.force:
        has, name = replaced(present, written.target)
        raise OutputError(f"{escape(options.path)} {has}.", hint=f"Use --force to replace {name}.")
    if options.key:
        check_signable(path, options, present)
    unfinished = unfinished_parts(path, plan, inputs, options, shape)
    there = unfinished.names if unfinished is not None else set()
    sizes = [part.layout.size for part in shape.parts if part.name not in there]
    size = sum(sizes) if consumer is None else max(sizes, default=0) + max(0, sum(sizes) - consumer.nbytes_beside(path))
    with staged_folder(path, size, stale=present, unfinished=unfinished, restart=options.restart) as folder:
        journal = PartsJournal(folder, shape)
        journal.waits = consumer is not None
        folder.reserves = consumer is None
        folder.is_only_copy = consumer is not None and consumer.has_begun
        with journal.keeping_parts():
            files: dict[str, StagedFile] = {}
            if unfinished is not None:
                files = journal.go_on(
                    unfinished, inputs, consumer.check_kept if consumer is not None else lambda names: None
                )
            if unfinished is None:
                journal.begin(plan, inputs, options)
            if consumer is not None and unfinished is None:
                consumer.check_kept(())
            yield StagedOutput(shape, files, folder, journal, helpers, consumer)


def _existing_files(path: str, shape: OutputShape, plan: Plan) -> Iterator[str]:
    """Yield the names of the output's files that already exist in the folder ``path``."""
    names = (*shape.names, *(one.name for one in plan.target.companions))
    return (name for name in names if os.path.lexists(os.path.join(path, name)))


def _existing_signature(path: str, options: OutputOptions) -> list[str]:
    """Return a list with the name of the signature file in the folder if the new output replaces it; else [].

    The signature is replaced if the folder contains a recipe (then ckptsurgeon has written it), or if the new output
    is signed.
    """
    signed = options.key or os.path.lexists(os.path.join(path, RECIPE_FILE))
    return [MODEL_SIGNATURE] if signed and os.path.lexists(os.path.join(path, MODEL_SIGNATURE)) else []
