"""Goes on with an output of several parts that an interrupted run began: the parts that are whole are kept."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

from ..errors import ConfigError, FormatError, OutputError, PatternError, PlanError, SourceError
from ..planning.plan.plan import Plan
from ..storage.small_files import open_file
from ..storage.write.folders import StagedFolder, check_no_unfinished
from ..storage.write.journal import Journal, UnfinishedOutput, unfinished_output
from ..storage.write.staging import StagedFile
from ..util.text import count, human_bytes, listing
from ..util.version import __version__
from .checksums import crc32
from .inputs import PlanInputs
from .output.layout import OutputFile, OutputOptions, OutputShape
from .part_receipt import PartReceipt

__all__ = ["PartsJournal", "identity_digest", "unfinished_parts"]

BLOCK = 1 << 20
THREADS = 2
AGAIN = (ConfigError, FormatError, PatternError, PlanError)
"""Errors that the same command would meet again: then no parts are kept."""

# What two runs must have in common if one goes on with what the other began, or if they write parts of one output.


def _identity(plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape) -> dict[str, Any]:
    """Return what makes an output what it is, as plain data."""
    identity = {
        "ckptsurgeon": __version__,
        "verb": plan.verb,
        "sources": [source.to_json() for source in plan.sources],
        "target": [[one.name, one.size, one.sha256] for one in plan.target.files],
        "arguments": dict(plan.arguments),
        "to": options.to,
        "max_shard_size": options.max_shard_size,
        "parts": len(shape.parts),
        "plugins": [_code_of(method.function) for method in inputs.plugins],
        "plan": plan.sha256(),
    }
    return dict(json.loads(json.dumps(identity)))  # as a journal has it, with lists for tuples


def _code_of(function: Any) -> str:
    """Return a digest of the file that defines a merge method of the user."""
    function = inspect.unwrap(function)
    with open_file(inspect.getfile(function)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_digest(plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape) -> str:
    """Return a digest that is equal for runs that write the same output."""
    text = json.dumps(_identity(plan, inputs, options, shape), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _on_disk(inputs: PlanInputs) -> list[list[int]]:
    """Return the inode and the time of change of every local source: another file may have the same size and mtime."""
    found = []
    for source in inputs.sources:
        for file in source.open_files().values():
            with file.descriptor() as fd:
                if fd is not None:
                    stat = os.fstat(fd)
                    found.append([stat.st_ino, stat.st_ctime_ns])
    return found


def _is_known(plan: Plan, inputs: PlanInputs) -> bool:
    """Return whether it can be told later that the inputs have not changed.

    It cannot for a source in memory, for an address whose server names no version, and for initial values that code of
    the user draws.
    """
    files = (file for source in plan.sources for file in source.files)
    draws = inputs.target is not None and bool(inputs.target.ran) and any(step.draws for step in plan.steps)
    return (
        not draws
        and not any(source.memory for source in plan.sources)
        and all(file.mtime_ns is not None or file.validator for file in files)
    )


def unfinished_parts(
    path: str, plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape
) -> UnfinishedOutput | None:
    """Return what an interrupted run of the same command left of the output folder ``path``; None if nothing is left.

    With ``restart`` in the options, what was left does not count. Raises OutputError if it was another command, or if
    the sources have changed.
    """
    found = None if options.restart else unfinished_output(path)
    if found is None:
        return None
    now = {**_identity(plan, inputs, options, shape), "on_disk": _on_disk(inputs)}
    why = _difference(found.head, now)
    if why:
        check_no_unfinished(path, options.path, why)
    return found


def _difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how a run differs from the one that began an output; "" if it is the same."""
    begun = {name: begun.get(name) for name in now}
    if begun == now:
        return ""
    if begun["ckptsurgeon"] != now["ckptsurgeon"]:
        return f": ckptsurgeon {begun['ckptsurgeon']!s:.40} has written them, and this is {now['ckptsurgeon']}"
    if begun["verb"] != now["verb"]:
        return f": they are of another command, ckpt {begun['verb']!s:.40}"
    with suppress(LookupError, TypeError, AttributeError):
        sources = {one["path"]: one for one in begun["sources"]}
        gone = [path for path in sources if path not in {one["path"] for one in now["sources"]}]
        if gone:
            return f": they are made from other sources: {listing(gone)}"
        changed = [
            one["path"]
            for one in now["sources"]
            if [sources[one["path"]].get(name) for name in ("files", "beside")] != [one["files"], one.get("beside")]
        ]
        if changed:
            return f", and its sources have changed since: {listing(changed)}"
        were = {**begun["arguments"], **{name: begun[name] for name in ("to", "max_shard_size")}}
        are = {**now["arguments"], **{name: now[name] for name in ("to", "max_shard_size")}}
        options = [name for name in dict.fromkeys([*were, *are]) if were.get(name) != are.get(name)]
        if options:
            return f": they are of a command with another {listing(options, where='')}"
    changed = [name for name in ("target", "plugins", "on_disk") if begun[name] != now[name]]
    said = {"target": "the destination", "plugins": "the plugin", "on_disk": "a source"}
    return f", and {said[changed[0]]} has changed since" if changed else ": they are of another plan"


class PartsJournal:
    """The finished parts of an output, which are written into the journal of its temp folder.

    ``kept`` has the receipts of the parts that an earlier run has written, by name. If the output cannot be gone on
    with, there is no journal: it has a single part, or nobody could tell later whether its inputs have changed.
    """

    def __init__(self, folder: StagedFolder, shape: OutputShape) -> None:
        self._folder, self._shape = folder, shape
        self._journal: Journal | None = None
        self._done: set[str] = set()
        self._lock = Lock()
        self.kept: dict[str, PartReceipt] = {}

    def begin(self, plan: Plan, inputs: PlanInputs, options: OutputOptions) -> None:
        """Begin a journal."""
        if len(self._shape.parts) > 1 and _is_known(plan, inputs):
            self._journal = Journal(self._folder.path, self._folder.shown)
            self._journal.begin({**_identity(plan, inputs, options, self._shape), "on_disk": _on_disk(inputs)})

    def go_on(self, found: UnfinishedOutput) -> dict[str, StagedFile]:
        """Go on with the journal of an earlier run; return the open files of the parts that are whole, by name.

        All other files in the temp folder are removed.
        """
        self._journal = Journal(self._folder.path, self._folder.shown)
        self._journal.cut(found.nbytes)
        known = {part.name: part for part in self._shape.parts}
        rows = {row["name"]: row for row in found.rows if row["name"] in known}
        files: dict[str, StagedFile] = {}
        with ThreadPoolExecutor(THREADS, thread_name_prefix="check") as pool:
            checked = pool.map(lambda name: self._whole(known[name], rows[name]), rows)
            for name, pair in zip(rows, checked, strict=True):
                if pair is None:
                    self._folder.remove(name)
                else:
                    files[name], self.kept[name] = pair
        self._folder.clear(but=files)
        self._done = set(self.kept)
        self._folder.kept_on_failure = bool(self._done)
        return files

    def _whole(self, part: OutputFile, row: Mapping[str, Any]) -> tuple[StagedFile, PartReceipt] | None:
        """Return the file of a part and its receipt, if all its bytes are those that were written."""
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
        """Write into the journal that a part is finished; raises OutputError."""
        if self._journal is None:
            return
        with self._lock:
            self._journal.add(receipt.to_json())
            self._done.add(receipt.name)
            self._folder.kept_on_failure = True

    @contextmanager
    def keeping_parts(self) -> Iterator[None]:
        """Keep the finished parts if the block fails, unless the same command would fail again; the error says so."""
        try:
            yield
        except AGAIN:
            self._folder.kept_on_failure = False
            raise
        except (OutputError, SourceError) as error:
            if not self._folder.kept_on_failure:
                raise
            hint = f"{error.hint} {self._said()}".strip()
            raise type(error)(error.message, hint=hint, details=error.details, rule=error.rule) from error
        except Exception as error:
            if self._folder.kept_on_failure:
                error.add_note(self._said())
            raise

    def _said(self) -> str:
        done = f"{len(self._done)} of {count(len(self._shape.parts), 'part')}"
        return f"The finished parts are kept ({done}): run the same command again to go on from there."

    @property
    def notes(self) -> tuple[str, ...]:
        """A note on the parts that an earlier run has written."""
        if not self.kept:
            return ()
        sizes = [part.layout.size for part in self._shape.parts if part.name in self.kept]
        return (
            f"went on from an interrupted run: {len(self.kept)} of {count(len(self._shape.parts), 'part')} were "
            f"whole, and were kept ({human_bytes(sum(sizes))})",
        )
