"""Describes the open inputs of a plan: names, fingerprints and notes."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.extras import Extra
from ...destinations.hf.files import ALPHABET, FLAGS
from ...engine.inputs import PlanInputs
from ...errors import SourceError
from ...formats.base.header import FilePrint
from ...planning.plan.files import PlanCompanion, PlanSource, PlanTarget
from ...planning.plan.plan import Plan
from ...planning.target import Companion, TargetSpec
from ...storage.read.base import File
from ...storage.read.local import ConsumedFile, LocalFile
from ...storage.read.uri import open_source, shown
from ...util.notes import notes_about
from ...util.text import escape, listing
from ..model_folder.quantised import decoded_dtype, parts_elsewhere
from .encoding import DEQUANTIZE

if TYPE_CHECKING:
    from ...planning.transplant.select import SourceView

__all__ = [
    "base_notes",
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
    "twice_notes",
    "unwrap_notes",
    "view_of",
]

# Notes on inputs that are given twice, and so have too much influence on the result.

_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged|shadow)([._]|$)|average_model|avg_model", re.IGNORECASE)
"""Matches the dotted path of a state dict that is a moving average of a model's weights."""
LARGEST = 256 << 20
"""The largest file, in bytes, whose contents are compared to find copies of the same checkpoint."""
SAMPLE = 1 << 16
"""The number of bytes at the end of each file that are compared before whole files are."""
BLOCK = 1 << 20
"""The number of bytes that are read from a file at a time."""


def twice_notes(opened: Sequence[Checkpoint]) -> list[str]:
    """Return notes on inputs that are the same file, or copies of one file.

    Whole files are compared only if their sizes, fingerprints and last bytes are equal.
    """
    first: dict[Hashable, Checkpoint] = {}
    notes = []
    for one in opened:
        if one.in_memory:
            continue
        found = first.setdefault(_outline(one), one)
        name = escape(one.path)
        if found is not one and found.path == one.path:
            notes.append(f"{name} is given twice, so its weights count twice")
        elif found is not one and _is_copy(found, one):
            said = f"{name} has the same weights as {escape(found.path)}, so these weights count twice"
            notes += _decoded_otherwise(found, one) or [said]
    return notes


def _decoded_otherwise(one: Checkpoint, copy: Checkpoint) -> list[str]:
    """Return notes on quantisation settings with which a checkpoint and its copy decode equal codes differently."""
    if _settings(one) == _settings(copy):
        return []
    from ...analysis.compare.compare import decoding_differences
    from ...analysis.compare.outline import outline_of

    return decoding_differences(outline_of(one.stored or one), outline_of(copy.stored or copy))


def base_notes(base: Checkpoint, models: Sequence[Checkpoint]) -> list[str]:
    """Return notes on models that are the base itself, or copies of it, so that their change from the base is zero."""
    if base.in_memory:
        return []
    outline, zero = _outline(base), "its change from the base is zero, so it only makes the merged change smaller"
    notes = []
    for one in models:
        if one.in_memory or _outline(one) != outline:
            continue
        if one.path == base.path:
            notes.append(f"{escape(one.path)} is both the base and a model: {zero}")
        elif _settings(one) == _settings(base) and _is_copy(base, one):
            notes.append(f"{escape(one.path)} has the same weights as the base {escape(base.path)}: {zero}")
    return notes


def _settings(one: Checkpoint) -> Mapping[str, Any]:
    """Return the quantisation settings of a checkpoint: with other settings, equal codes decode to other weights."""
    return (one.stored or one).quantisation


def _outline(one: Checkpoint) -> Hashable:
    """Return a value that is equal for two checkpoints if they may be copies of each other.

    If a file is remote or deleted after use (``consume``), the value is the path and the root (the dotted path of the
    state dict). If a file is larger than ``LARGEST``, it is the real paths of the files and the root.
    """
    files = one.open_files()
    if any(isinstance(file, ConsumedFile) for file in files.values()):  # only its header can be read
        return one.path, one.root
    if "://" in one.path or any(each.name not in files for each in one.files):
        return one.path, one.root
    if any(each.size > LARGEST for each in one.files):
        return one.root, tuple(_real_path(files[each.name]) for each in one.files)
    ends = [files[each.name].read(max(0, each.size - SAMPLE), min(SAMPLE, each.size)) for each in one.files]
    return one.root, tuple((each.size, each.sha256) for each in one.files), tuple(map(bytes, ends))


def _real_path(file: File) -> str:
    return os.path.realpath(file.path if isinstance(file, LocalFile) else file.uri)


def _is_copy(one: Checkpoint, other: Checkpoint) -> bool:
    ours, theirs = one.open_files(), other.open_files()
    return all(_holds(ours[a.name], theirs[b.name]) for a, b in zip(one.files, other.files, strict=True))


def _holds(one: File, other: File) -> bool:
    """Return whether two files of the same size have the same contents."""
    if _real_path(one) == _real_path(other):
        return True
    places = range(0, one.size, BLOCK)
    return all(one.read(at, min(BLOCK, one.size - at)) == other.read(at, min(BLOCK, one.size - at)) for at in places)


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


def left_notes(names: Sequence[str], opened: Sequence[Checkpoint]) -> list[str]:
    """Return notes on the entries ``names`` of open inputs that are left out because they are not tensors.

    A list or tuple of tensors in the state dict has a note of its own, since the tensors may be weights.
    """
    lists = [f"{extra.key} ({extra.type})" for one in opened for extra in one.extras if _is_list_of_tensors(extra, one)]
    notes = [f"left out: {listing(names)}"] if names else []
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
    notes = [*one.notes, *parts_elsewhere(one)]
    if one.codes:
        from .sampled_scales import sampled_scale_notes

        notes += sampled_scale_notes(one)
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
    from ...planning.transplant.select import SourceView

    return SourceView(source, checkpoint, codes=checkpoint.codes, decoded_dtype=decoded_dtype(checkpoint))


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
