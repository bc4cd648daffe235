"""Warns of code that loading a checkpoint's own files with pickle would import or call, apart from torch's."""

from __future__ import annotations

from collections.abc import Iterator

from ...analysis.scan.findings import Verdict
from ...analysis.scan.judge import look_at
from ...checkpoint.checkpoint import Checkpoint
from ...formats.base.header import no_collection
from ...storage.read.base import File
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import escape, listing

__all__ = ["code_notes"]

SHOWN = 3


def code_notes(checkpoint: Checkpoint) -> Iterator[Note]:
    """Yield a note for each file of a checkpoint that ``ckpt scan`` calls unknown code; nothing is run.

    Files are judged by their content: a pickle may have any name. Other files in the folder are not scanned.
    """
    if checkpoint.in_memory:
        return
    for file in checkpoint.open_files().values():
        yield from _of_file(file)


def _of_file(file: File) -> Iterator[Note]:
    with no_collection():
        found = look_at(file.name, file).found
    uses = [use for one in found for use in one.uses if use.verdict == Verdict.CODE]
    called = [use for use in uses if use.called]
    names = dict.fromkeys(f"{use.module}.{use.name}" for use in called or uses)
    if names:
        does = "call" if called else "import"
        named = listing([escape(one) for one in names], SHOWN, where="")
        said = f"loading {escape(file.name)} with pickle would {does} {named}, which no tensor needs"
        yield Note(NoteKind.PICKLED_CODE, said)
