"""Collects facts on a checkpoint that is not in a model's folder, without importing the modules that read folders.

These modules take long to import.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ...analysis.check.subject import Subject
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.shard_notes import consumed_notes
from ...checkpoint.zero_runs import PAGE, is_zero_run_note, zero_run_notes
from ...errors import ConfigError
from ...planning.transplant.by_place import EMBEDDING, HEAD, is_embedding
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape
from ..lora.adapter_files import adapter_of

__all__ = [
    "embeddings_of", "heads_of", "no_adapter", "notes_without_folder", "short_notes", "with_zero_runs",
    "without_folder",
]  # fmt: skip

_OF_FILES = frozenset((
    NoteKind.PART_OF_MODEL, NoteKind.UNLISTED_SHARDS, NoteKind.OTHER_SHARD, NoteKind.INDEX_TOTAL, NoteKind.UNWRITTEN,
    NoteKind.CUT_FILE, NoteKind.ZERO_ROWS, NoteKind.DTYPE_IN_HEADER, NoteKind.LOST_SCALES, NoteKind.SPLIT_TENSORS,
    NoteKind.WRONG_ZERO_POINTS, NoteKind.SINGLE_RANK, NoteKind.MIXED_LAYERS, NoteKind.LACKING_ONE,
    NoteKind.MISSING_COMPONENT, NoteKind.METADATA, NoteKind.INCOMPLETE_FILE,
))  # fmt: skip
"""The kinds of notes on a checkpoint's files and their bytes. All other notes say how the checkpoint was opened."""

_OF_PARTS = (NoteKind.PART_OF_MODEL, NoteKind.SINGLE_RANK, NoteKind.SPLIT_TENSORS, NoteKind.INCOMPLETE_FILE)
"""The kinds of notes that say that a file has only a part of a model."""


def without_folder(subject: Subject, checkpoint: Checkpoint) -> Subject:
    """Return ``subject`` with notes on its checkpoint, which is not in a model's folder."""
    from ..model_folder.codes.described_shapes import described_shape_notes
    from ..model_folder.layers.holes import gap_notes

    of_keys = () if checkpoint.elsewhere else (*gap_notes(list(checkpoint)), *described_shape_notes(checkpoint))
    if not any(note.kind in _OF_PARTS for note in checkpoint.notes):
        from .networks import network_notes  # imports the layouts of networks

        of_keys = (*of_keys, *network_notes(checkpoint))
    notes = (*notes_without_folder(checkpoint), *of_keys, *adapter_of(checkpoint)[1])
    return replace(subject, notes=tuple(short_notes(checkpoint, notes)))


def notes_without_folder(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield the notes on a checkpoint that need no other files of its folder.

    These notes are on incomplete or deleted files, on code in pickles, on quantised tensors, and on the metadata of a
    GGUF file.
    """
    yield from (note for note in checkpoint.notes if note.kind in _OF_FILES)
    yield from checkpoint.quantisation_notes
    yield from consumed_notes(checkpoint.open_files().values())
    if "safetensors" not in checkpoint.format:
        from .pickled_code import code_notes  # imports the scanner of pickles

        yield from code_notes(checkpoint)
    if checkpoint.header.stored:
        from ..gguf.outputs import source_notes

        yield from source_notes(checkpoint)


def with_zero_runs(subject: Subject, checkpoint: Checkpoint) -> Subject:
    """Return ``subject`` with notes on all tensors that have zeros because part of a file is missing.

    These notes replace the notes on zeros that the checkpoint got when it was opened. At that time, its values had not
    been read; here, every value has been measured.
    """
    partly = [
        key
        for key, info in checkpoint.items()
        if len(info.shape) > 1 and (one := subject.measured.get(key)) is not None and one.figures is not None
        and one.figures.zeros and one.figures.zeros * one.nbytes >= one.figures.number * PAGE
    ]  # fmt: skip
    if not partly:
        return subject
    others = [note for note in subject.notes if not is_zero_run_note(note)]
    found = short_notes(checkpoint, zero_run_notes(checkpoint, checkpoint.open_files(), partly))
    return replace(subject, notes=(*found, *others))


def short_notes(checkpoint: Checkpoint, notes: Iterable[Note]) -> list[Note]:
    """Return notes without duplicates, and without the path of the checkpoint in their text."""
    path = escape(checkpoint.path)
    cut = (note.reworded(note.removeprefix(f"{path}: ").replace(f"{path.rstrip('/')}/", "")) for note in notes)
    return list(dict.fromkeys(cut))


def no_adapter(path: str) -> ConfigError:
    """Return the error for ``--base`` with a checkpoint (at ``path``) that is not an adapter."""
    return ConfigError(
        f"--base is only for adapters, but {escape(path)} is not a LoRA adapter.", hint="Leave --base out."
    )


def embeddings_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the keys of the token embeddings."""
    return tuple(key for key in _matrices(checkpoint) if EMBEDDING.search(key) and is_embedding(key))


def heads_of(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the keys of the output layers over the vocabulary."""
    return tuple(key for key in _matrices(checkpoint) if HEAD.search(key))


def _matrices(checkpoint: Checkpoint) -> Iterator[str]:
    return (key for key, info in checkpoint.items() if len(info.shape) == 2)
