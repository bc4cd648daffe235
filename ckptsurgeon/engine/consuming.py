"""Deletes the shards of the sources as soon as what came of them is on disk: for disks without room for a second model.

A shard is deleted when all parts of the output that are made of it are finished, on disk and in the journal. What is
left of it (``storage/read/consumed.py``) is enough for the same command to plan again and go on, if it is interrupted.
From then on the finished parts are the only copy, and no failure removes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Lock

from ..errors import OutputError, PlanError
from ..formats.base import limits
from ..formats.base.sharded_writer import RECIPE_FILE
from ..planning.plan.plan import Plan
from ..planning.plan.step import Step
from ..storage.json_text import read_json
from ..storage.read.consumed import CONSUMED
from ..storage.read.local import ConsumedFile, LocalFile
from ..storage.read.uri import scheme_of
from ..storage.small_files import read_file
from ..storage.write.consuming import check_deletable, consume, delete
from ..tensors.composition import leaves
from ..util.text import count, escape, human_bytes, listing
from .identity import is_known
from .inputs import PlanInputs
from .output.layout import OutputOptions, OutputShape
from .parts import steps_of_parts

__all__ = ["SourceConsumer", "consumable_files", "source_consumer"]

END = ""
"""Stands for the end of the run, as if it were a part."""
SAFETENSORS = ".safetensors"
INDEX = ".safetensors.index.json"


def consumable_files(plan: Plan, inputs: PlanInputs) -> dict[str, list[LocalFile]]:
    """Return the shards that a run with ``consume`` deletes, by path: those of the sources, not of a destination.

    A shard that is a part of several sources is open several times. Raises OutputError for a source that is not a
    local folder of safetensors shards.
    """
    found: dict[str, list[LocalFile]] = {}
    for described, source in zip(plan.sources, inputs.sources, strict=False):
        if described.role != "source":
            continue
        for file in source.open_files().values():
            if file.name.endswith(INDEX):
                continue
            if not isinstance(file, LocalFile) or not file.name.endswith(SAFETENSORS):
                raise OutputError(
                    f"{escape(source.path)} cannot be consumed: it is not of safetensors files on this machine.",
                    hint="Leave out --consume, or convert it first.",
                )
            found.setdefault(os.path.realpath(file.path), []).append(file)
    return found


def source_consumer(
    plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape
) -> SourceConsumer | None:
    """Return what deletes the shards of the sources, if the options ask for it; raises OutputError if it cannot."""
    if not options.consume:
        return None
    if scheme_of(options.path):
        raise OutputError(
            "--consume is not for an output at an address: nothing there is kept of an interrupted run.",
            hint="Write the output to this machine, or leave out --consume.",
        )
    if not shape.folder or len(shape.parts) < 2:
        raise OutputError(
            "--consume needs an output of several shards: a single file is not finished before its last byte.",
            hint="Write a folder of shards, with --max-shard-size smaller than the model.",
        )
    if not is_known(plan, inputs):
        raise OutputError(
            "--consume needs inputs of which a later run can tell that they are the same: files, and no initial values "
            "that code of your own draws.",
            hint="Leave out --consume.",
        )
    files = consumable_files(plan, inputs)
    kept = {os.path.realpath(one.name) for one in plan.target.files}
    for path, (file, *_) in files.items():
        if not isinstance(file, ConsumedFile):
            check_deletable(file.path, file.uri)
        elif os.path.realpath(file.shard.output) != os.path.realpath(options.path):
            other = escape(file.shard.output)
            raise OutputError(
                f"{escape(file.uri)} was consumed by a run that writes {other}, and was interrupted.",
                hint="Run that command again.",
            )
        if path in kept:
            raise OutputError(f"{escape(file.uri)} is the destination, and cannot be consumed.")
    return SourceConsumer(plan, inputs, options.path, files=files, parts=steps_of_parts(plan, shape))


class SourceConsumer:
    """The shards of the sources that are to be deleted, and the parts of the output that each of them is needed for.

    ``files`` are the open files of each shard, by path.
    """

    def __init__(
        self,
        plan: Plan,
        inputs: PlanInputs,
        output: str,
        files: Mapping[str, Sequence[LocalFile]],
        parts: Mapping[str, Sequence[Step]],
    ) -> None:
        self._files, self._output, self._lock = files, output, Lock()
        self._unfinished = set(parts)
        self._paths: dict[str, set[str]] = {
            name: set(_read_by(steps, inputs)) & files.keys() for name, steps in parts.items()
        }
        self._waiting: dict[str, set[str]] = {path: set() for path in files}
        for name, paths in self._paths.items():
            for path in paths:
                self._waiting[path].add(name)
        for pair in plan.equal:  # compared before anything is written, also when an interrupted run goes on
            for path in (*_files_of(inputs, pair.source, pair.first), *_files_of(inputs, pair.source, pair.second)):
                if path in files:
                    self._waiting[path].add(END)

    @property
    def nbytes(self) -> int:
        """The bytes of all shards."""
        return sum(opened[0].size for opened in self._files.values())

    def nbytes_beside(self, path: str) -> int:
        """Return the bytes of the shards that are still there, on the file system of the output ``path``."""
        device = os.stat(os.path.dirname(os.path.abspath(path))).st_dev
        there = (os.stat(one) for one in self._files if os.path.exists(one))
        return sum(found.st_size for found in there if found.st_dev == device)

    @property
    def has_begun(self) -> bool:
        """Whether a shard was deleted, by this run or by an interrupted one."""
        return any(isinstance(opened[0], ConsumedFile) or opened[0].closed for opened in self._files.values())

    def check_kept(self, kept: Collection[str]) -> None:
        """Raise PlanError if a part that is not finished needs a shard that is gone."""
        lost = [
            opened[0].uri
            for path, opened in self._files.items()
            if isinstance(opened[0], ConsumedFile) and not self._waiting[path] <= set(kept)
        ]
        if lost and not kept and os.path.exists(os.path.join(self._output, RECIPE_FILE)):
            raise OutputError(
                f"{escape(self._output)} was written by a run that consumed its sources and ended too early: "
                f"some files are left of them: {listing(lost)}.",
                hint=f"See that it is whole, with ckpt verify, and remove these files (*{CONSUMED}) and their index.",
                details=lost,
            )
        if lost:
            raise PlanError(
                f"finished shards of {escape(self._output)} are damaged or cannot be read, and what they were made of "
                f"was consumed: {listing(lost)}. Nothing was changed.",
                hint="Run the command again; if that does not help, fetch these files again.",
                details=lost,
            )

    def finished(self, names: Iterable[str], before: Callable[[], None]) -> None:
        """Delete the shards that only finished parts were made of; ``names`` are those that were finished now.

        ``before`` is called before the first of them is deleted. With the last part nothing is deleted until the output
        is in its place; shards that no part was made of stay until then, too. Raises OutputError.
        """
        with self._lock:
            free = list(self._free(names))
            if not free or not self._unfinished:
                return
            before()
            for path in free:
                first, *others = self._files[path]
                if not isinstance(first, ConsumedFile):
                    consume(first, self._output)
                for file in others:
                    file.close()

    def _free(self, names: Iterable[str]) -> Iterator[str]:
        """Note that parts are finished; yield the paths of the shards that no part needs any more."""
        for name in names:
            self._unfinished.discard(name)
            for path in self._paths.pop(name, ()):
                self._waiting[path].discard(name)
                if not self._waiting[path]:
                    yield path

    def finish(self) -> tuple[str, ...]:
        """Delete all shards, and indexes that name nothing else; return a note. Raises OutputError."""
        for path in self._files:
            delete(path)
        for folder in dict.fromkeys(map(os.path.dirname, self._files)):
            for index in (os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(INDEX)):
                shards = _shards(index)
                if not shards.isdisjoint(self._files) and not any(map(os.path.exists, shards)):
                    delete(index)
        return (f"consumed {count(len(self._files), 'file')} of the sources ({human_bytes(self.nbytes)})",)


def _shards(index: str) -> set[str]:
    """Return the paths of the shards that an index names; none if it cannot be read."""
    with suppress(OSError, ValueError, AttributeError, LookupError):
        names = set(map(str, read_json(read_file(index, limits.JSON_HEADER_BYTES).decode())["weight_map"].values()))
        return {os.path.join(os.path.dirname(index), name) for name in names}
    return set()


def _read_by(steps: Sequence[Step], inputs: PlanInputs) -> Iterator[str]:
    """Yield the paths of the files that steps read."""
    for step in steps:
        for one in step.inputs:
            yield from _files_of(inputs, one.source, one.key)


def _files_of(inputs: PlanInputs, place: int, key: str) -> Iterator[str]:
    """Yield the paths of the files that store a tensor of a source, or what it is computed from."""
    source = inputs.sources[place]
    info = source.get(key)
    for leaf in leaves(info) if info is not None else ():
        file = source.open_files().get(leaf.storage.file) if leaf.storage is not None else None
        if isinstance(file, LocalFile):
            yield os.path.realpath(file.path)
