"""Goes on with an output of several parts that an interrupted run began: the parts that are whole are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import OutputError, SourceError
from ..planning.plan.plan import Plan
from ..storage.write.folders import StagedFolder
from ..storage.write.journal import Begun, Journal, begun_output
from ..storage.write.staging import StagedFile
from ..util.text import count, escape, human_bytes, listing
from ..util.version import __version__
from .checksums import crc32
from .output.layout import OutputFile, OutputOptions, OutputShape
from .part_receipt import PartReceipt

__all__ = ["PartsJournal", "begun_parts"]

BLOCK = 1 << 20
THREADS = 2


def begun_parts(path: str, plan: Plan, options: OutputOptions, shape: OutputShape) -> Begun | None:
    """Return what an interrupted run of the same command left of the output folder ``path``; None if nothing is left.

    With ``restart`` in the options, what was left does not count. Raises OutputError if it was another command, or if
    the sources have changed.
    """
    begun = None if options.restart else begun_output(path)
    if begun is None:
        return None
    why = _difference(begun.head, _identity(plan, options, shape))
    if why:
        place = os.path.join(os.path.dirname(options.path.rstrip("/")), os.path.basename(begun.folder))
        raise OutputError(
            f"an interrupted run has left {begun.done} parts of {escape(options.path)} in {escape(place)}, {why}.",
            hint="Finish that command first, or use --restart to remove what it left.",
        )
    return begun


def _identity(plan: Plan, options: OutputOptions, shape: OutputShape) -> dict[str, Any]:
    """Return, as plain data, what two runs must have in common if one goes on with what the other began."""
    identity = {
        "ckptsurgeon": __version__,
        "verb": plan.verb,
        "sources": [source.to_json() for source in plan.sources],
        "arguments": dict(plan.arguments),
        "to": options.to,
        "max_shard_size": options.max_shard_size,
        "parts": len(shape.parts),
        "plan": plan.sha256(),
    }
    return dict(json.loads(json.dumps(identity)))  # as the journal has it, with lists for tuples


def _difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return in words how a run differs from the one that began an output; "" if it is the same."""
    begun = {name: begun.get(name) for name in now}
    if begun == now:
        return ""
    if begun.get("ckptsurgeon") != now["ckptsurgeon"]:
        return f"written by ckptsurgeon {escape(str(begun.get('ckptsurgeon')))}, and this is {now['ckptsurgeon']}"
    if begun.get("verb") != now["verb"]:
        return f"by another command: ckpt {escape(str(begun.get('verb')))}"
    found: list[str] = []
    with suppress(LookupError, TypeError, AttributeError):
        sources = {one["path"]: one["files"] for one in begun["sources"]}
        changed = [one["path"] for one in now["sources"] if sources.get(one["path"], one["files"]) != one["files"]]
        if changed:
            return f"and its sources have changed since: {listing(changed)}"
        gone = [path for path in sources if path not in {one["path"] for one in now["sources"]}]
        if gone:
            return f"made from other sources: {listing(gone)}"
        were = {**begun["arguments"], "to": begun["to"], "max_shard_size": begun["max_shard_size"]}
        are = {**now["arguments"], "to": now["to"], "max_shard_size": now["max_shard_size"]}
        found = [name for name in dict.fromkeys([*were, *are]) if were.get(name) != are.get(name)]
    return f"by a command with another {listing(found, where='')}" if found else "by another plan"


class PartsJournal:
    """The finished parts of an output, which are written into the journal of its temp folder.

    ``kept`` has the receipts of the parts that an earlier run has written, by name. If the output cannot be gone on
    with, since it has a single part or a source in memory, there is no journal.
    """

    def __init__(self, folder: StagedFolder, shape: OutputShape, begun: Begun | None) -> None:
        self._folder, self._shape, self._begun = folder, shape, begun
        self._journal: Journal | None = None
        self._done: set[str] = set()
        self.kept: dict[str, PartReceipt] = {}

    def begin(self, plan: Plan, options: OutputOptions) -> dict[str, StagedFile]:
        """Begin the journal, or go on with it; return the open files of the parts that are kept, by name.

        Parts that an earlier run has written are read, and kept if they are whole.
        """
        files = {} if self._begun is None else self._whole_parts(self._begun)
        if len(self._shape.parts) > 1 and not any(source.memory for source in plan.sources):
            self._journal = Journal(self._folder.path, self._folder.shown)
            if self._begun is None:
                self._journal.begin(_identity(plan, options, self._shape))
        self._done = set(self.kept)
        self._folder.stays = bool(self._done)
        return files

    def _whole_parts(self, begun: Begun) -> dict[str, StagedFile]:
        """Return the files that are whole; all other files in the temp folder are removed, but for the journal."""
        known = {part.name: part for part in self._shape.parts}
        rows = {str(row["name"]): row for row in begun.rows if row.get("name") in known}
        files: dict[str, StagedFile] = {}
        with ThreadPoolExecutor(THREADS, thread_name_prefix="check") as pool:
            found = pool.map(lambda name: self._whole(known[name], rows[name]), rows)
        for name, pair in zip(rows, found, strict=True):
            if pair is not None:
                files[name], self.kept[name] = pair
        self._folder.clear(but=files)
        return files

    def _whole(self, part: OutputFile, row: Mapping[str, Any]) -> tuple[StagedFile, PartReceipt] | None:
        """Return the file of a part and its receipt, if the bytes of all its tensors are those that were written."""
        try:
            receipt = PartReceipt.from_json(row)
        except (LookupError, TypeError, ValueError):
            return None
        file = self._folder.again(part.name, part.layout.size)
        if file is None or receipt.checksums.keys() != part.layout.slots.keys():
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
        self._done.add(receipt.name)
        if self._journal is not None:
            self._journal.add(receipt.to_json())
            self._folder.stays = True

    @contextmanager
    def staying(self) -> Iterator[None]:
        """Keep the finished parts if the block fails for a reason that may be gone when the same command runs again.

        These are a full disk, a source that cannot be reached, too little memory and a signal. The error says so.
        """
        try:
            yield
        except (OutputError, SourceError) as error:
            if not self._folder.stays:
                raise
            hint = f"{error.hint} {self._said()}".strip()
            raise type(error)(error.message, hint=hint, details=error.details, rule=error.rule) from error
        except (OSError, MemoryError):
            raise
        except Exception:
            self._folder.stays = False
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
