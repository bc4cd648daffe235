"""``diff``: compares two checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from ..analysis.compare.compare import compare, compare_outlines
from ..analysis.compare.outline import Outline, beside, outline_from_plain, outline_of
from ..analysis.compare.results import Difference, Tolerance
from ..analysis.fits.compare import tied_keys
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.opening import open_checkpoint, place_of
from ..checkpoint.zero_notes import seen_zero_notes
from ..destinations._load import is_configuration, load_target
from ..errors import CheckpointError, ConfigError
from ..formats.base.header import no_collection
from ..storage.read.uri import shown
from ..tensors.info import TensorInfo
from ..util.note_kind import NoteKind
from ..util.notes import Note, with_prefix
from ..util.text import escape
from .inputs.argument_types import CheckpointLike, Path, Patterns, Progress, checked
from .inputs.dequantising import weights_of
from .inputs.older_names import older_name_notes

__all__ = ["diff", "folder_differences", "folder_notes", "notes_of_some"]

LARGE = 4 << 20
"""The headers of files of at least this size in bytes are read in two processes; for small files, that is slower."""


@checked
def diff(
    first: CheckpointLike,
    second: CheckpointLike,
    *,
    values: bool = False,
    rtol: float = 0.0,
    atol: float = 0.0,
    renames: bool = False,
    include: Patterns = (),
    exclude: Patterns = (),
    root: str | None = None,
    progress: Progress | None = None,
) -> Difference:
    """Compare two checkpoints tensor by tensor, whatever their formats, shards, wrappers and dtypes.

    Reads only headers, unless ``values`` is set. With ``values``, the differences are measured, and a tensor is changed
    if any element differs by more than ``atol`` + ``rtol`` * abs(element of ``second``). Quantised tensors are compared
    byte by byte. If they differ, or if one checkpoint has the weight in another encoding or not quantised, the decoded
    weights are compared; the field ``decoded`` of the result names these weights. ``renames`` also compares the values,
    and finds tensors with the same content under other names, even if two tensors exchanged their names. The result
    then has the rules that rename these tensors. ``include`` and ``exclude`` select the keys to compare; ``root`` is
    the dotted path of the state dict in both. ``second`` may be a configuration: then the keys, shapes and dtypes of
    its model are compared.

    Raises ConfigError for an invalid tolerance, and for a configuration that cannot be compared. Raises PatternError
    for a pattern that matches nothing, PlanError if the patterns leave no key, the errors of ``open_checkpoint``, and
    FormatError if a record that is read fails its checksum.
    """
    for name, value in (("--rtol", rtol), ("--atol", atol)):
        if not (value >= 0 and math.isfinite(value)):
            raise ConfigError(f"{name} {value} is not a valid tolerance.", hint="Use a number of zero or more.")
    if (rtol or atol) and not (values or renames):
        raise ConfigError(
            "--rtol and --atol need --values or --renames, because headers have no values.",
            hint="Add --values, or leave --rtol and --atol out.",
        )
    _check_order(first, second)
    if isinstance(second, (str, os.PathLike)) and is_configuration(os.fspath(second)):
        if values or renames:
            option = "--values" if values else "--renames"
            raise ConfigError(
                f"{option} compares values, and a configuration such as {escape(os.fspath(second))} has none.",
                hint=f"Leave {option} out, or give a checkpoint instead of the configuration; ckpt fits proposes rules "
                "from names and shapes.",
            )
        return _of_configuration(first, os.fspath(second), root, include, exclude)
    if not (values or renames) and _is_large(first) and _is_large(second):
        found = _of_large(place_of(first), place_of(second), root, include, exclude)
        return replace(found, notes=(*found.notes, *folder_differences(first, second)))
    return _compared(
        first, second, values=values, tolerance=Tolerance(rtol, atol), renames=renames, include=include,
        exclude=exclude, root=root, progress=progress,
    )  # fmt: skip


def _check_order(first: CheckpointLike, second: CheckpointLike) -> None:
    """Raise ConfigError if the path ``first`` is a configuration: only ``second`` may be one."""
    here, there = ("" if isinstance(one, Checkpoint) else place_of(one) for one in (first, second))
    if here and there and is_configuration(here) and os.path.isfile(here):
        if is_configuration(there) and os.path.isfile(there):
            raise ConfigError(
                f"both inputs, {escape(here)} and {escape(there)}, are configurations, which have no tensors.",
                hint="Give the folders of the models, whose weights and configurations are compared, or one checkpoint "
                "before a configuration.",
            )
        raise ConfigError(
            f"the first input, {escape(here)}, is a configuration; only the second may be a configuration.",
            hint=f"Name the checkpoint first: ckpt diff {escape(there)} {escape(here)}.",
        )


def _of_configuration(
    first: CheckpointLike, second: str, root: str | None, include: Patterns, exclude: Patterns
) -> Difference:
    """Compare the header of ``first`` with the tensors of the model that the configuration ``second`` describes.

    Tied keys that the model's library restores when loading may be missing in ``first``.
    """
    from .inputs.fitting_notes import checkpoint_notes, destination_notes  # this imports the modules that read folders

    target = load_target(second)
    with open_checkpoint(first, root, called="first") as checkpoint:
        here = outline_of(checkpoint)
        untold = dict(tied_keys(here.tensors, target))
        wanted = {key: info for key, info in target.tensors.items() if key not in untold}
        there = Outline(shown(second), wanted, target.notes)
        found = compare_outlines(here, there, include=include, exclude=exclude)
        notes = dict.fromkeys((*found.notes, *checkpoint_notes(checkpoint), *destination_notes(second, target)))
        return replace(found, has_values=False, notes=tuple(notes))


def folder_differences(first: CheckpointLike, second: CheckpointLike) -> list[str]:
    """Return notes on the differences between the configurations and tokenisers of two models.

    The files in the folders of the models are compared, even if a model is given as a single file in its folder. For a
    GGUF file, its metadata are compared instead. There are no notes on checkpoints in memory.
    """
    if not (place_of(first) and place_of(second)):
        return []
    from .folder_differences import folder_difference_notes, folder_of
    from .model_folder.config_differences import generation_differences

    names, notes = [shown(place_of(one)) for one in (first, second)], list[str]()
    with suppress(CheckpointError), ExitStack() as stack:
        here, there = folder_of(first, stack), folder_of(second, stack)
        notes += folder_difference_notes(names[0], here, names[1], there)
        notes += generation_differences(names[0], here, names[1], there)
    return notes


def _compared(
    first: CheckpointLike,
    second: CheckpointLike,
    *,
    values: bool,
    tolerance: Tolerance,
    renames: bool,
    include: Patterns,
    exclude: Patterns,
    root: str | None,
    progress: Progress | None,
) -> Difference:
    with open_checkpoint(first, root, called="first") as a, open_checkpoint(second, root, called="second") as b:
        found = compare(
            a, b, values=values, tolerance=tolerance, renames=renames, include=include, exclude=exclude,
            weights=(weights_of(a), weights_of(b)), progress=progress,
        )  # fmt: skip
        odd = _on_scales(a, b)
        alone = notes_of_some((a.path, folder_notes(a)), (b.path, folder_notes(b)))
        notes = [*alone, *odd, *seen_zero_notes((a, b), said=found.notes), *folder_differences(a, b)]
        notes += older_name_notes((first, second), root)
        notes += _layout_notes(found, (a.path, a), (b.path, b))
    return replace(found, notes=tuple(dict.fromkeys((*found.notes, *notes)))) if notes else found


def _layout_notes(found: Difference, *models: tuple[str, Mapping[str, TensorInfo]]) -> list[str]:
    """Return a note if two checkpoints without a common key store the same kind of network in different layouts."""
    if not (found.added and found.removed) or found.same or found.changed or found.reshaped or found.retyped:
        return []
    from ..planning.layouts.differing import differing_layouts_hint  # this imports all layouts

    hint = differing_layouts_hint(models)
    return [f"the names differ, since {hint.rstrip('.')}"] if hint else []


def _on_scales(*opened: Checkpoint) -> list[str]:
    """Return the notes on implausible scales that were found when quantised tensors of the checkpoints were decoded.

    If there are none for a checkpoint, a sample of its quantised tensors is decoded, and the notes are on this sample.
    """
    from .inputs.sampled_scales import odd_scale_notes_on

    return [note for one in opened if one.codes for note in odd_scale_notes_on(one)]


def notes_of_some(*found: tuple[str, Sequence[str]]) -> list[str]:
    """Return the notes of ``ckpt inspect`` that do not apply to all of several checkpoints, each with its path.

    ``found`` are the checkpoints, each as (path, notes).
    """
    return [
        with_prefix(f"{escape(path)}: ", note)
        for path, own in found
        for note in own
        if not all(note in other for _, other in found)
    ]


def folder_notes(one: Checkpoint) -> list[Note]:
    """Return the notes of ``ckpt inspect`` on the files in a checkpoint's folder, and on a GGUF file's metadata."""
    from .model_folder.checks import contradictions

    return [*contradictions(one), *_on_gguf(one)]


def _on_gguf(one: Checkpoint) -> tuple[Note, ...]:
    """Return the notes on the metadata of a GGUF file."""
    if not one.header.stored:
        return ()
    from .gguf.outputs import source_notes

    return source_notes(one)


def _is_large(given: CheckpointLike) -> bool:
    """Return whether a checkpoint is a large file that is not open yet, whose header may take long to read."""
    path = "" if isinstance(given, Checkpoint) else place_of(given)
    return os.path.isfile(path) and os.path.getsize(path) >= LARGE


def _of_large(first: Path, second: Path, root: str | None, include: Patterns, exclude: Patterns) -> Difference:
    """Compare the headers of two large files; another process reads the second header."""
    with no_collection(), beside(lambda: _plain(*_outline(second, root))) as other:
        here, own = _outline(first, root)
        plain = other()
        there, theirs = _from_plain(plain) if plain is not None else _outline(second, root)
        found = compare_outlines(here, there, include=include, exclude=exclude)
        notes = [*notes_of_some((here.path, own), (there.path, theirs))]
        notes += _layout_notes(found, (here.path, here.tensors), (there.path, there.tensors))
        return replace(found, notes=(*found.notes, *notes))


def _outline(path: Path, root: str | None) -> tuple[Outline, Sequence[str]]:
    """Return the outline of a checkpoint, and the notes on its folder and its metadata."""
    with open_checkpoint(path, root) as checkpoint:
        found = outline_of(checkpoint)
        return replace(found, notes=(*found.notes, *_on_scales(checkpoint))), folder_notes(checkpoint)


def _plain(outline: Outline, notes: Sequence[str]) -> Any:
    """Return the result of ``_outline`` as plain data, which another process can pass on."""
    kinds = [[(_kind(one), str(one)) for one in some] for some in (outline.notes, notes)]
    return replace(outline, notes=()).to_plain(), *kinds


def _kind(note: str) -> str:
    return note.kind.name if isinstance(note, Note) else ""


def _from_plain(data: Any) -> tuple[Outline, Sequence[str]]:
    plain, *given = data
    said, own = ([Note(NoteKind[kind], text) if kind else text for kind, text in some] for some in given)
    return replace(outline_from_plain(plain), notes=tuple(said)), own
