"""Finds the format of a file or folder by its content and reads its header."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from ..errors import CheckpointError, FormatError, UnsafeError
from ..storage.read.base import File, Folder, Source
from ..storage.read.local import link_of
from ..util.text import escape, listing
from ._archive import Member, archive_folder, of_archive
from ._choosing import choose, note_of, only_pickle
from .base.format_table import TRACKER, formats_for, has_weights, is_weights
from .base.header import Format, Header, no_collection
from .base.sharded_writer import folder_frame, folder_recipe
from .base.unpacked import GZIP
from .torch.tar import is_tar
from .torch.tar import names_in as names_in_tar
from .unsupported.files import HEAD, foreign, in_tar, in_zip
from .unsupported.folders import PIPELINE, folder_kind, lost_step
from .unsupported.text import not_a_checkpoint
from .zip.archive import names_in as names_in_zip

__all__ = ["open_header", "read_header"]

_HEAD = 512
"""The number of bytes of a file that are read to find its format."""


def read_header(source: Source, name: str = "") -> Header:
    """Return the header of a checkpoint in any format.

    ``name`` is the path of the file within the checkpoint, which is stored in each Storage; '' if the file is the whole
    checkpoint. Raises FormatError if the source is not a checkpoint, or is a damaged one.
    """
    if isinstance(source, Member) and not name:
        return of_archive(read_header(source, source.path), source.folder())
    if isinstance(source, File):
        if source.size == 0:
            raise FormatError(f"{escape(source.uri)} is empty.", hint="Fetch or save this file again.", rule="empty")
        head = source.read(0, min(_HEAD, source.size))
        for fmt in formats_for(source, head):
            if fmt.sniff(source, head):
                with no_collection():
                    header = _read(fmt, source, name, head)
                return replace(header, notes=(*_source_notes(source), *header.notes))
        folder = archive_folder(source, head) if head.startswith(GZIP) else None  # a compressed NeMo model
        if folder is not None:
            return of_archive(read_header(folder), folder)
        raise not_a_checkpoint(
            source.uri, foreign(source.read(0, min(HEAD, source.size)), _argument(source), source.size)
        )
    for fmt in formats_for(source):
        if fmt.sniff(source, b""):
            _check_alone(fmt, source)
            with no_collection():
                return _read(fmt, source, name)
    return _read_folder(source)


def open_header(file: File, name: str) -> Header:
    """Return the header of a file that was just opened, as ``read_header`` does; the file is closed if this fails."""
    try:
        return read_header(file, name)
    except BaseException:
        file.close()
        raise


def _source_notes(file: File) -> tuple[str, ...]:
    if not file.remote:
        return _link_note(file)
    from ..storage.read.remote import notes_of

    return notes_of(file)


def _link_note(file: File) -> tuple[str, ...]:
    """Return (note,) with the target of ``file`` if this file is a link to a checkpoint; else ().

    The user should know: a run's best.pth, for example, may link to another epoch tomorrow. Links to blobs of the
    Hugging Face cache get no note.
    """
    target = link_of(file)
    if not is_weights(target):
        return ()
    return (f"{escape(file.name)} is a link to {escape(target)}",)


def _check_alone(fmt: Format, folder: Folder) -> None:
    """Raise FormatError if a checkpoint folder also contains a file that is a checkpoint of its own.

    ``fmt`` is the format of the folder.
    """
    others = [name for name in folder.names() if has_weights([name])]
    if others:
        raise FormatError(
            f"{escape(folder.uri)} is a checkpoint ({fmt.name}), but also contains {listing(others)}; "
            "one of them may be out of date.",
            hint="Pass the path of the file to read it, or remove the file to read the folder.",
            rule="several checkpoints",
        )


def _read(fmt: Format, source: Source, name: str, head: bytes = b"") -> Header:
    try:
        return fmt.read(source, name)
    except (RecursionError, MemoryError) as error:  # normally, a limit in limits.py is exceeded first
        why = "memory" if isinstance(error, MemoryError) else "stack"
        raise UnsafeError(
            f"reading {escape(source.uri)} needs more {why} than is available.", rule="resources"
        ) from None
    except UnsafeError:
        raise
    except FormatError as error:
        if not isinstance(source, File):
            raise
        folder = archive_folder(source, head)
        if folder is None:
            raise _more_precise(source, head, error) from error.__cause__
        return of_archive(read_header(folder), folder)


def _more_precise(source: File, head: bytes, error: FormatError) -> FormatError:
    """Return an error that names the kind of the archive ``source`` if its members show the kind; else ``error``."""
    with suppress(CheckpointError):
        found = in_zip(names_in_zip(source), _argument(source)) if head.startswith(b"PK") else None
        found = in_tar(names_in_tar(source), _argument(source)) if is_tar(head) else found
        if found is not None:
            return not_a_checkpoint(source.uri, found, error.rule)
    return error


def _read_folder(folder: Folder) -> Header:
    """Return the header of a folder's checkpoint: its index, its only candidate, or a file with a well-known name.

    Raises FormatError if the folder has no checkpoint, or a damaged one.
    """
    names = folder.names()
    try:
        choice = choose(folder, names)
    except FormatError as error:
        found = folder_kind(folder, names) if error.rule == "no checkpoint" and not error.details else None
        raise not_a_checkpoint(folder.uri, found, error.rule) if found is not None else error from None
    name = choice.name
    try:
        header = read_header(choice.file or folder.file(name), name)
    except FormatError as error:
        found = folder_kind(folder, names) if only_pickle([name]) and error.rule == "no state dict" else None
        raise not_a_checkpoint(folder.uri, found, error.rule) if found is not None else error from None
    notes = note_of(choice, {file.name for file in header.files})
    lost = lost_step(folder, names, folder.folders()) if not {TRACKER, "latest"}.isdisjoint(names) else None
    if lost is not None:
        notes.append(f"only the weights in the folder itself were read: it is {lost.what}")
    elif "latest" in names:
        notes.append(
            "the file latest refers to a folder of training states, which was not read: pass the path of that folder "
            "to read it"
        )
    if PIPELINE in names:
        notes.append(f"the folder is also a diffusers pipeline ({PIPELINE}), whose components are in subfolders")
    header = replace(header, notes=(*notes, *header.notes))
    recipe = folder_recipe(folder) if header.recipe is None else None
    if recipe is None:
        return header
    inner = header.frame
    return replace(header, recipe=recipe, frame=lambda: folder_frame(folder, {name: inner()}))


def _argument(file: File) -> str:
    """Return the name of a file for a shell command: its path, or for a remote file its name after a download."""
    return file.name if file.remote else file.uri
