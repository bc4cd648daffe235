"""Lists the inputs of a plan, closes them if planning fails, and describes them: names, fingerprints and notes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.opening import check_given, is_given, path_of
from ...checkpoint.other_entries import Extra
from ...destinations.hf.files import ALPHABET, FLAGS
from ...engine.inputs import PlanInputs
from ...errors import ConfigError, SourceError
from ...formats.base.header import FilePrint
from ...planning.plan.files import PlanCompanion, PlanSource, PlanTarget, SourceView
from ...planning.plan.plan import Plan
from ...planning.quantised_error import QuantisedError
from ...planning.target import Companion, TargetSpec
from ...storage.read.base import File
from ...storage.read.spec import SourceSpec, parse_spec
from ...storage.read.uri import open_source, shown
from ...util.notes import notes_about
from ...util.text import escape, listing
from ..model_folder.quantised import decoded_dtype, parts_elsewhere
from .argument_types import Sources
from .encoding import DEQUANTIZE, ENCODINGS, read_as

__all__ = [
    "KeptOpen",
    "check_decodable",
    "close_inputs",
    "close_plan",
    "extras_left",
    "file_print",
    "left_notes",
    "memory_print",
    "names_of",
    "notes_on",
    "plan_companion",
    "plan_source",
    "plan_target",
    "source_notes",
    "specs_of",
    "unwrap_notes",
    "view_of",
]

_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged|shadow)([._]|$)|average_model|avg_model", re.IGNORECASE)
"""Matches the dotted path of a state dict that is a moving average of a model's weights."""
BLOCK = 1 << 20
"""The number of bytes that are read from a file at a time."""


def specs_of(source: Sources) -> list[SourceSpec]:
    """Return a SourceSpec for each source: its file, the module to read and the module to replace.

    Raises ConfigError if there is no source.
    """
    if is_given(source) or isinstance(source, bytes) or not isinstance(source, Iterable):
        return [_spec(source)]
    found = list(source)
    if not found:
        raise ConfigError("no source given.", hint="Give at least one source.")
    return list(map(_spec, found))


def _spec(given: object) -> SourceSpec:
    if isinstance(given, (str, os.PathLike)):
        text = os.fspath(given)
        return parse_spec(text) if ":" in text else SourceSpec(text)
    check_given(given)
    return SourceSpec(path_of(given), given=given)


class KeptOpen:
    """A context manager that closes the checkpoints in ``opened`` and ``others`` if its block raises.

    Checkpoints may be added to both lists in the block. The first ``sources`` checkpoints in ``opened`` are sources; by
    default all are. If the block raises QuantisedError because a source cannot be decoded, the error of decoding this
    source is raised instead.

    This is a class, not a generator-based context manager: if a generator-based one were popped from an ``ExitStack``,
    the garbage collection of its generator would close the checkpoints.
    """

    def __init__(
        self, opened: list[Checkpoint], others: Sequence[Checkpoint] = (), *, sources: int | None = None
    ) -> None:
        self._opened, self._others, self._sources = opened, others, sources

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        try:
            if isinstance(error, QuantisedError):
                check_decodable(self._opened[: self._sources])
        finally:
            for checkpoint in (*self._opened, *self._others):
                checkpoint.close()


def check_decodable(sources: Iterable[Checkpoint]) -> None:
    """Raise PlanError for the first source whose codes cannot be decoded.

    ``read_as`` raises no error for such a source if the encoding is ``keep``.
    """
    for one in sources:
        read_as(one, ENCODINGS[1])


def unwrap_notes(opened: Sequence[Checkpoint], *, asked: bool) -> list[str]:
    """Return a note if --unwrap was ``asked`` for, but no input has keys with a wrapper such as ``module.``."""
    if not asked or any(one.stripped for one in opened):
        return []
    names = listing([one.path for one in opened], where="")
    return [f"--unwrap changes nothing: no keys of {names} have a wrapper such as module."]


def source_notes(opened: Sequence[Checkpoint], *, unwrap: bool) -> list[str]:
    """Return the notes on open inputs, and a note on their entries that are left out because they are not tensors."""
    names = list(dict.fromkeys(key for checkpoint in opened for key in extras_left(checkpoint)))
    notes = [note for one in opened for note in notes_on(one, len(opened))]
    notes += (*unwrap_notes(opened, asked=unwrap), *_root_notes(opened))
    return [*notes, *left_notes(names, opened)]


_CLASS = re.compile(r"\w+(?:\.\w+)+")
"""Matches the type of an entry that is an object of a class, or a class or function itself."""


def left_notes(names: Sequence[str], opened: Sequence[Checkpoint]) -> list[str]:
    """Return notes on the entries ``names`` of open inputs that are left out because they are not tensors.

    Objects, and classes and functions, have the name of their class. A list or tuple of tensors in the state dict has a
    note of its own, since the tensors may be weights.
    """
    lists = [f"{extra.key} ({extra.type})" for one in opened for extra in one.extras if _is_list_of_tensors(extra, one)]
    kinds = {extra.key: extra.type for one in opened for extra in one.extras if _CLASS.fullmatch(extra.type)}
    told = listing([f"{name} ({kinds[name]})" if name in kinds else name for name in names])
    notes = [f"left out: {told}; only tensors of the state dict are written"] if names else []
    if lists:
        said = listing(list(dict.fromkeys(lists)))
        notes.append(f"tensors in lists are not entries of a state dict, and are left out: {said}")
    return notes


def _is_list_of_tensors(extra: Extra, one: Checkpoint) -> bool:
    is_inside = not one.root or extra.key.startswith(f"{one.root}.")
    return is_inside and extra.type.startswith(("list ", "tuple ")) and extra.type.endswith(" in it")


def _root_notes(opened: Sequence[Checkpoint]) -> list[str]:
    """Return a note if some inputs are moving averages (EMA) of weights and others are not.

    The dotted path of the state dict, such as ``model.ema``, shows this.
    """
    roots = {one.root: one for one in opened}
    if len({_AVERAGED.search(root) is None for root in roots}) < 2:
        return []
    each = [f"{f'{escape(root)} of' if root else 'the top of'} {escape(one.path)}" for root, one in roots.items()]
    mixed = f"moving averages are mixed with other weights: {listing(each, where='')}"
    return [f"{mixed}; --root PATH reads the state dict at the same dotted path in each input"]


def notes_on(one: Checkpoint, of: int) -> list[str]:
    """Return the notes on an open input; each has the input's path, unless ``of``, the number of inputs, is 1."""
    notes = list[str](one.notes)
    if one.codes:
        from .sampled_scales import sampled_scale_notes

        notes += (*parts_elsewhere(one), *sampled_scale_notes(one))
    if one.header.stored:
        from ..gguf.outputs import source_notes as notes_on_gguf

        notes += notes_on_gguf(one.stored or one)
    return notes_about(one.path, notes) if of > 1 else notes


def extras_left(checkpoint: Checkpoint) -> list[str]:
    """Return the names of a checkpoint's entries that are not tensors, except those that ckpt reads for Coqui STT."""
    return [extra.key for extra in checkpoint.extras if extra.key not in (ALPHABET, FLAGS)]


def names_of(paths: Sequence[str]) -> list[str]:
    """Return a unique name for each path, for messages and recipes: the last one, two or three parts of the path.

    If even three parts are not unique, a number is appended. A name is never an absolute path, so that the same inputs
    have the same recipe in any folder.
    """
    names: list[str] = []
    for path in map(shown, paths):
        parts = os.path.normpath(path).strip(os.sep).split(os.sep) if "://" not in path else [path]
        tails = ["/".join(parts[-size:]) for size in range(1, min(len(parts), 3) + 1)]
        name = next((tail for tail in tails if tail not in names), "")
        number = 2
        while not name or name in names:
            name, number = f"{tails[0]} ({number})", number + 1
        names.append(name)
    return names


def plan_source(name: str, checkpoint: Checkpoint, role: str = "source", operations: Sequence[Any] = ()) -> PlanSource:
    """Return the description of an open checkpoint for a plan, with the operations that made its tensors.

    ``role`` is "source", "destination" or another kind of input. If no operations are given and the checkpoint was
    decoded by ``read_as``, the operation that decodes all tensors is recorded.
    """
    said = (checkpoint.root, checkpoint.stripped)
    made = tuple(map(dict, operations or ([DEQUANTIZE] if checkpoint.stored is not None else ())))
    if checkpoint.in_memory:
        return PlanSource(name, "", *said, (memory_print(checkpoint),), role, made, memory=True)
    return PlanSource(name, checkpoint.path, *said, checkpoint.files, role, made)


def memory_print(checkpoint: Checkpoint) -> FilePrint:
    """Return the fingerprint of tensors in memory: their total size, and a digest of their keys, dtypes and shapes."""
    rows = sorted([key, info.dtype, info.shape] for key, info in checkpoint.items())
    digest = hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()
    return FilePrint("", sum(info.nbytes for info in checkpoint.values()), digest)


def view_of(source: PlanSource, checkpoint: Checkpoint) -> SourceView:
    """Return an open checkpoint in the form that planners read: description, tensors, ties, quantised weights."""
    dtype = decoded_dtype(checkpoint) if checkpoint.stored is not None else ""
    return SourceView(source, checkpoint, codes=checkpoint.codes, decoded_dtype=dtype)


def plan_target(target: TargetSpec) -> PlanTarget:
    """Return the description of a destination for a plan."""
    files, companions = target_files(target), tuple(map(plan_companion, target.companions))
    implied = tuple(key for key in target.tensors if key in target.implied)
    return PlanTarget(
        target.kind, target.name, target.config, files, companions, implied, lists=target.lists
    )  # fmt: skip


def plan_companion(one: Companion) -> PlanCompanion:
    """Return a plan's description of a file that the output folder gets besides weights, such as a config.json.

    A file that is copied is read later, when its size or checksum is needed.
    """
    if one.path:
        return PlanCompanion.copy_of(one.name, one.path, partial(_size_and_digest, one.path))
    data = one.text.encode()
    return PlanCompanion(one.name, len(data), hashlib.sha256(data).hexdigest(), text=one.text)


def _size_and_digest(path: str) -> tuple[int, str]:
    found = file_print(path)
    return found.size, found.sha256


def target_files(target: TargetSpec) -> tuple[FilePrint, ...]:
    """Return the fingerprints of a destination's configuration and of the files that the configuration refers to.

    Files that are only copied to the output are left out.
    """
    copied = {one.path for one in target.companions} - {target.config, *target.lists}
    paths = [path for path in (target.config, *target.files) if path and path not in copied]
    return tuple(file_print(path) for path in paths)


def file_print(path: str) -> FilePrint:
    """Read a whole file and return its fingerprint (size, SHA-256, modification time).

    Raises SourceError if the file cannot be read.
    """
    source = open_source(path)
    if not isinstance(source, File):
        raise SourceError(f"{escape(path)} is a folder, not a file.")
    digest = hashlib.sha256()
    with closing(source) as file:
        for begin in range(0, file.size, BLOCK):
            digest.update(file.read(begin, min(BLOCK, file.size - begin)))
    return FilePrint(path, source.size, digest.hexdigest(), source.mtime_ns, source.validator)


def close_inputs(inputs: PlanInputs) -> None:
    """Close the files of a plan's sources; sources in memory stay open, because they cannot be opened again."""
    for source in inputs.sources:
        if not source.in_memory:
            source.close()


def close_plan(plan: Plan) -> None:
    """Close the files that a plan keeps open for ``apply``."""
    if isinstance(plan.inputs, PlanInputs):
        close_inputs(plan.inputs)
