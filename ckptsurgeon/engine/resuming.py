"""Continues an output of several files (parts) that an interrupted run began: the complete files are kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

from ..errors import ConfigError, FormatError, OutputError, PatternError, PlanError, SourceError
from ..planning.plan.plan import Plan
from ..storage.write.folders import StagedFolder, unfinished_error
from ..storage.write.journal import Journal, UnfinishedOutput, unfinished_output
from ..storage.write.staged_file import StagedFile
from ..util.text import count, human_bytes, listing
from .checksums import crc32
from .inputs import PlanInputs
from .output.layout import OutputFile, OutputOptions, OutputShape
from .part_receipt import PartReceipt
from .same_run import changed_on_disk, difference, identity_of, is_known, on_disk

__all__ = ["PartsJournal", "unfinished_parts"]

BLOCK = 1 << 20
THREADS = 2
AGAIN = (ConfigError, FormatError, PatternError, PlanError)
"""Errors that the same command would raise again. After these, finished files are kept only if sources were deleted."""


def unfinished_parts(
    path: str, plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape
) -> UnfinishedOutput | None:
    """Return the unfinished output that an interrupted run of the same command left; None if there is none.

    ``path`` is the output folder. With the option ``restart``, an unfinished output is ignored. Raises OutputError
    if another command left it, if the sources have changed since, or if it is not to be removed with ``restart``
    because that run had --consume, so that it may be the only copy of values.
    """
    found = unfinished_output(path)
    consumes = found is not None and found.head.get("consume") is True
    if found is None or (options.restart and not consumes):
        return None
    now = {**identity_of(plan, inputs, options, shape), "on_disk": on_disk(inputs)}
    if options.consume:  # the user may have copied a linked shard so that it can be deleted
        now["on_disk"] = found.head.get("on_disk")
    other = difference(found.head, now)
    hint = _way_out(is_changed=other is not None and other.is_changed, consumes=consumes)
    if options.restart:
        raise unfinished_error(found, options.path, ", and --restart does not remove them", hint)
    if other is not None:
        raise unfinished_error(found, options.path, other.why, hint)
    return found


def _way_out(*, is_changed: bool, consumes: bool) -> str:
    """Return the hint of the error on an unfinished output.

    ``is_changed`` is true if the run that began it can no longer finish it, ``consumes`` if that run had --consume.
    """
    if consumes:
        return (
            f"{'' if is_changed else 'Finish that command, without --restart. '}These parts may be the only copy of "
            "their values, since that run had --consume. If all its sources are whole again, or you do not need the "
            "values, remove that folder and run the command again."
        )
    restart = "Use --restart to remove these parts and begin anew"
    return f"{restart}." if is_changed else f"{restart}, or finish that command first."


class PartsJournal:
    """Records the finished files (parts) of an output in the journal of its temporary folder.

    ``kept`` is {name of a file that an earlier run has finished: its receipt}. Nothing is recorded if no later run
    could continue this run: if the output has only one file with tensors, or if a later run could not notice that the
    inputs have changed.
    """

    def __init__(self, folder: StagedFolder, shape: OutputShape) -> None:
        self._folder, self._shape = folder, shape
        self._journal: Journal | None = None
        self._on_disk: list[list[int | str]] = []
        self._done: set[str] = set()
        self._lock = Lock()
        self.kept: dict[str, PartReceipt] = {}
        self.waits = False
        """Whether the run waits until each new line of the journal is on disk."""

    def begin(self, plan: Plan, inputs: PlanInputs, options: OutputOptions) -> None:
        """Begin a new journal if a later run could continue this run; else do nothing."""
        if len(self._shape.parts) > 1 and is_known(plan, inputs):
            self._journal = Journal(self._folder.path, self._folder.shown)
            self._on_disk = on_disk(inputs)
            self._journal.begin({**identity_of(plan, inputs, options, self._shape), "on_disk": self._on_disk})

    def go_on(
        self, found: UnfinishedOutput, inputs: PlanInputs, check: Callable[[Collection[str]], None]
    ) -> dict[str, StagedFile]:
        """Continue the journal of the earlier run ``found``; return {name: open file} for the files that are complete.

        ``check`` is called with the names of these files; if it raises an error, nothing is changed. All other files
        in the temporary folder are removed.
        """
        self._journal = Journal(self._folder.path, self._folder.shown)
        self._on_disk = on_disk(inputs)
        known = {part.name: part for part in self._shape.parts}
        rows = {row["name"]: row for row in found.rows if row["name"] in known}
        files: dict[str, StagedFile] = {}
        with ThreadPoolExecutor(THREADS, thread_name_prefix="check") as pool:
            checked = pool.map(lambda name: self._whole(known[name], rows[name]), rows)
            for name, pair in zip(rows, checked, strict=True):
                if pair is not None:
                    files[name], self.kept[name] = pair
        self._done = set(self.kept)
        check(files)
        self._journal.cut(found.nbytes)
        for name in rows:
            if name not in files:
                self._folder.remove(name)
        self._folder.clear(but=files)
        self._folder.kept_on_failure = bool(self._done)
        return files

    def _whole(self, part: OutputFile, row: Mapping[str, Any]) -> tuple[StagedFile, PartReceipt] | None:
        """Return the open file of a part, and the receipt in ``row``; None if the file does not match the receipt."""
        try:
            receipt = PartReceipt.from_json(row)
        except (LookupError, TypeError, ValueError, AttributeError):
            return None
        if receipt.checksums.keys() != part.layout.slots.keys():
            return None
        file = self._folder.open_existing(part.name, part.layout.size)
        if file is None:
            return None
        digest = hashlib.sha256()
        for offset, data in part.layout.frame(receipt.checksums, ()):
            digest.update(data)
            if file.read(offset, len(data)) != data:
                return None
        if digest.hexdigest() != receipt.digest:
            return None
        for key, (offset, nbytes) in part.layout.slots.items():
            crc = 0
            for begin in range(0, nbytes, BLOCK):
                crc = crc32(file.read(offset + begin, min(BLOCK, nbytes - begin)), crc)
            if crc != receipt.checksums[key]:
                return None
        return file, receipt

    def add(self, receipt: PartReceipt) -> None:
        """Record in the journal that a file of the output is finished; raises OutputError."""
        if self._journal is None:
            return
        with self._lock:
            self._journal.add(receipt.to_json(), wait=self.waits)
            self._done.add(receipt.name)
            self._folder.kept_on_failure = True

    @contextmanager
    def keeping_parts(self) -> Iterator[None]:
        """Keep the finished files if the block fails, and add to the hint of the error that they are kept.

        If the same command would fail again, or if a source has changed, the finished files are removed. But if sources
        were deleted (``--consume``), the finished files are kept, because they are the only copy of some values.
        """
        try:
            yield
        except (*AGAIN, OutputError, SourceError) as error:
            changed = changed_on_disk(self._on_disk) if self._done else []
            self._folder.kept_on_failure &= not (changed or isinstance(error, AGAIN))
            if not (changed or self._folder.kept_on_failure or self._folder.is_only_copy):
                raise
            hint = f"{error.hint} {self._said(changed)}".strip()
            raise type(error)(error.message, hint=hint, details=error.details, rule=error.rule) from error
        except Exception as error:
            if self._folder.kept_on_failure:
                error.add_note(self._said())
            raise

    def _said(self, changed: Sequence[str] = ()) -> str:
        done = f"{len(self._done)} of {count(len(self._shape.parts), 'part')}"
        if changed and self._folder.is_only_copy:
            return (
                f"The finished parts are kept ({done}), because they may be the only copy of their values. To "
                f"continue, put back with the same modification time: {listing(changed, where='')}."
            )
        if changed:
            return (
                f"The finished parts are removed ({done}), because a source has changed: {listing(changed, where='')}."
            )
        return f"The finished parts are kept ({done}): run the same command again to continue from there."

    @property
    def notes(self) -> tuple[str, ...]:
        """A tuple with a note on the files that an earlier run has finished; () if there are none."""
        if not self.kept:
            return ()
        sizes = [part.layout.size for part in self._shape.parts if part.name in self.kept]
        return (
            f"continued an interrupted run: {len(self.kept)} of {count(len(self._shape.parts), 'part')} were "
            f"complete, and were kept ({human_bytes(sum(sizes))})",
        )
