"""Deletes shards of the sources while the output is written: for disks without room for a second model (--consume).

A shard is deleted when all files of the output that need it are finished, on disk and recorded in the journal. A small
file replaces the shard (``storage/read/consumed_shard.py``). If the run is interrupted, the same command can make the
plan again from this small file, and continue. After a shard was deleted, the finished files of the output are the only
copy of its values, and no failure removes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Lock

from ..errors import CheckpointError, OutputError, PlanError
from ..formats.base import limits
from ..formats.base.sharded_writer import RECIPE_FILE, OneFile
from ..planning.plan.plan import Plan
from ..planning.plan.step import Step
from ..planning.recipe import parse_recipe
from ..storage.json_text import read_json
from ..storage.read.consumed_shard import CONSUMED
from ..storage.read.local import ConsumedFile, LocalFile
from ..storage.read.uri import scheme_of
from ..storage.small_files import read_file
from ..storage.write.shard_deletion import check_deletable, consume, delete
from ..tensors.composition import leaves
from ..util.text import count, escape, human_bytes, listing
from .inputs import PlanInputs
from .output.layout import OutputOptions, OutputShape, writer_of
from .output_parts import steps_of_parts
from .same_run import is_known

__all__ = ["SourceConsumer", "consumable_files", "source_consumer"]

END = ""
"""The name of an imaginary output file that is never finished.

Shards that it needs are therefore deleted only at the end of the run.
"""
SAFETENSORS = ".safetensors"
INDEX = ".safetensors.index.json"


def consumable_files(plan: Plan, inputs: PlanInputs) -> dict[str, list[LocalFile]]:
    """Return {path of a shard: its open files} for all shards that a run with ``consume`` deletes.

    These are all shards of the sources, but not the shards of a destination. If several sources have the same shard,
    the shard has several open files. Raises OutputError if a source has files that are not local safetensors files.
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
                    f"--consume needs local safetensors files, but {escape(source.path)} has other files.",
                    hint="Leave out --consume, or first convert the source to safetensors on this machine.",
                )
            found.setdefault(os.path.realpath(file.path), []).append(file)
    return found


def source_consumer(plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape) -> SourceConsumer:
    """Return the consumer that deletes the shards of the sources, for a run with the option ``consume``.

    Raises OutputError if the sources must not be deleted, or if the output is not a local folder of several shards.
    """
    if scheme_of(options.path):
        raise OutputError(
            "--consume does not work with an output at an address: an interrupted run leaves no finished parts there, "
            "so the values of the sources that it has deleted would be lost.",
            hint="Write the output to this machine, or leave out --consume.",
        )
    if not shape.folder or len(shape.parts) < 2:
        raise OutputError(
            "--consume needs an output of several shards, since it deletes sources each time that a shard is finished.",
            hint=_how_to_shard(plan, options),
        )
    if not is_known(plan, inputs):
        raise OutputError(
            "--consume does not work with these inputs: if the run is interrupted, a later run must be able to check "
            "that they are unchanged. That is impossible for tensors in memory, for addresses without a version, and "
            "for initial values that your own code draws.",
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
                f"{escape(file.uri)} was deleted by an interrupted run with --consume, which writes {other}.",
                hint="Run that command again.",
            )
        if path in kept:
            raise OutputError(
                f"{escape(file.uri)} belongs to the destination, and --consume deletes only files of sources.",
                hint="Leave out --consume.",
            )
    return SourceConsumer(plan, inputs, options.path, files=files, parts=steps_of_parts(plan, shape))


def _how_to_shard(plan: Plan, options: OutputOptions) -> str:
    """Return the hint of the error on an output without several shards; some outputs cannot have them."""
    writer = writer_of(options)
    if isinstance(writer.sharding, OneFile) or options.ranks.ranks:
        return f"Leave out --consume: the format {writer.name} does not write shards one after the other."
    if plan.target.weights:
        return "Leave out --consume: an adapter is one file."
    return "Write a folder of shards, with --max-shard-size smaller than the model."


class SourceConsumer:
    """Deletes shards of the sources, each as soon as all files of the output that need it are finished.

    ``files`` is {path of a shard: its open files}. ``parts`` is {name of a file of the output: its steps}.
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
        self._plan = plan
        self._unfinished = set(parts)
        self._paths: dict[str, set[str]] = {
            name: set(_read_by(steps, inputs)) & files.keys() for name, steps in parts.items()
        }
        self._waiting: dict[str, set[str]] = {path: set() for path in files}
        for name, paths in self._paths.items():
            for path in paths:
                self._waiting[path].add(name)
        for pair in plan.equal:  # every run, also one that continues, compares these tensors before it writes
            for path in (*_files_of(inputs, pair.source, pair.first), *_files_of(inputs, pair.source, pair.second)):
                if path in files:
                    self._waiting[path].add(END)

    @property
    def nbytes(self) -> int:
        """The size of all shards in bytes."""
        return sum(opened[0].size for opened in self._files.values())

    def nbytes_beside(self, path: str) -> int:
        """Return the size in bytes of the existing shards that are on the same file system as the output ``path``."""
        device = os.stat(os.path.dirname(os.path.abspath(path))).st_dev
        there = (os.stat(one) for one in self._files if os.path.exists(one))
        return sum(found.st_size for found in there if found.st_dev == device)

    @property
    def has_begun(self) -> bool:
        """Whether a shard was deleted, by this run or by an interrupted run."""
        return any(isinstance(opened[0], ConsumedFile) or opened[0].closed for opened in self._files.values())

    def check_kept(self, kept: Collection[str]) -> None:
        """Raise PlanError if an unfinished file of the output needs a shard that was deleted.

        ``kept`` are the names of the finished files. Raises OutputError if the output is already complete.
        """
        lost = [
            opened[0].uri
            for path, opened in self._files.items()
            if isinstance(opened[0], ConsumedFile) and not self._waiting[path] <= set(kept)
        ]
        if lost and not kept and _is_written_by(self._plan, self._output):
            raise OutputError(
                f"{escape(self._output)} is already complete: an earlier run with --consume wrote it, but was "
                f"interrupted before it deleted the last files of its sources: {listing(lost)}.",
                hint=f"Check the output with ckpt verify, then remove these files (*{CONSUMED}) and their index.",
                details=lost,
            )
        if lost:
            raise PlanError(
                f"finished shards of {escape(self._output)} are damaged or cannot be read, and an earlier run with "
                f"--consume has deleted the source files of their values: {listing(lost)}. This run has changed "
                "nothing.",
                hint="If the disk had a temporary error, run the command again; otherwise download these source "
                "files again.",
                details=lost,
            )

    def finished(self, names: Iterable[str], before: Callable[[], None]) -> None:
        """Record that the files ``names`` of the output are finished; delete the shards that no other file needs.

        ``before`` is called before shards are deleted. If all files are finished, nothing is deleted here: ``finish``
        deletes all remaining shards after the output is published. Raises OutputError if a shard cannot be deleted.
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
        """Record that files of the output are finished; yield the paths of the shards that no other file needs."""
        for name in names:
            self._unfinished.discard(name)
            for path in self._paths.pop(name, ()):
                self._waiting[path].discard(name)
                if not self._waiting[path]:
                    yield path

    def finish(self) -> tuple[str, ...]:
        """Delete all shards, the ``.consumed`` files, and indexes without remaining shards; return a note on this.

        Raises OutputError if a file cannot be deleted.
        """
        for path in self._files:
            delete(path)
        for folder in dict.fromkeys(map(os.path.dirname, self._files)):
            for index in (os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(INDEX)):
                shards = _shards(index)
                if not shards.isdisjoint(self._files) and not any(map(os.path.exists, shards)):
                    delete(index)
        return (f"consumed {count(len(self._files), 'file')} of the sources ({human_bytes(self.nbytes)})",)


def _is_written_by(plan: Plan, output: str) -> bool:
    """Return whether the folder ``output`` was written by the command of ``plan`` from the same sources.

    Before an interrupted run with ``--force``, the folder may have been written by another command.
    """
    try:
        recipe = parse_recipe(read_file(os.path.join(output, RECIPE_FILE), limits.RECIPE_BYTES).decode(), tensors=False)
    except (OSError, ValueError, CheckpointError):
        return False
    ours, theirs = ([[file.sha256 for file in one.files] for one in made.sources] for made in (plan, recipe))
    arguments = json.loads(json.dumps(dict(plan.arguments)))
    return (plan.verb, arguments, ours) == (recipe.verb, dict(recipe.arguments), theirs)


def _shards(index: str) -> set[str]:
    """Return the paths of the shards that an index file lists; an empty set if the index cannot be read."""
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
    """Yield the paths of the local files that contain the bytes of the tensor ``key``, which may be a derived tensor.

    ``place`` is the index of the source in ``inputs.sources``.
    """
    source = inputs.sources[place]
    info = source.get(key)
    for leaf in leaves(info) if info is not None else ():
        file = source.open_files().get(leaf.storage.file) if leaf.storage is not None else None
        if isinstance(file, LocalFile):
            yield os.path.realpath(file.path)
