"""Reads SpeechBrain's checkpoint folders: ``save/CKPT+<time or name>/`` with ``CKPT.yaml`` and ``<recoverable>.ckpt``.

A recoverable is an object that SpeechBrain saves in its own file. Files of ``torch.save`` are read as state dicts,
other files as plain entries. Follows ``speechbrain/utils/checkpoints.py`` (1.1.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, FormatError, SourceError
from ..storage.read.base import File, Folder, Source
from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import escape, listing
from ._open import read_header
from .base.format_table import has_weights
from .base.header import FilePrint, Header
from .pickle.values import GlobalName, OpaqueResult

__all__ = ["FORMAT"]

_META = "CKPT.yaml"
_FOLDER = "CKPT+"
_SUFFIX = ".ckpt"
_META_BYTES = 1 << 20
_MODEL = "model.ckpt"
_POINTER = b"version https://git-lfs"
_TEXT_BYTES = 1 << 20
_SHOWN_BYTES = 200
"""The most bytes of a text file that are read, and the size in bytes of the largest text file that is shown."""
_NO_METRICS = ("unixtime", "end-of-epoch")


class _SpeechBrain:
    name = "speechbrain checkpoint"
    magic: tuple[bytes, ...] = ()

    def sniff(self, source: Source, head: bytes) -> bool:
        """Return whether a folder has ``CKPT.yaml``, or has a subfolder with ``CKPT.yaml``."""
        if not isinstance(source, Folder):
            return False
        names = source.names()
        return _META in names or (not has_weights(names) and bool(_saved(source)))

    def read(self, source: Source, name: str = "") -> Header:
        """Return one header for all files of a checkpoint; raises FormatError if the folder has several checkpoints."""
        assert isinstance(source, Folder)
        if _META in source.names():
            return _read(source, "")
        saved = _saved(source)
        if len(saved) > 1:
            raise _several(source, saved)
        return _read(source, saved[0])


def _saved(folder: Folder) -> list[str]:
    """Return the names of the subfolders that are checkpoints, in a folder such as ``save``."""
    found = []
    for name in folder.folders():
        if name.startswith(_FOLDER):
            with suppress(FormatError, SourceError):
                folder.file(f"{name}/{_META}").close()
                found.append(name)
    return found


def _several(folder: Folder, saved: list[str]) -> FormatError:
    """Return the error for a folder with several checkpoints; its message lists the metrics of each checkpoint."""
    read = {name: _meta(folder, name) for name in saved}
    metas = {name: meta.entries for name, meta in read.items()}
    times = {name: _number(meta.get("unixtime")) for name, meta in metas.items()}
    last = max(saved, key=times.__getitem__)
    are_known = float("-inf") not in times.values()
    is_known = are_known and list(times.values()).count(times[last]) == 1
    told = [f"{name} ({_told(one, last=name == last and is_known)})" for name, one in read.items()]
    return FormatError(
        f"{escape(folder.uri)} has several checkpoints: {listing(told)}.",
        hint=f"Pass the folder of one checkpoint, for example {escape(folder.uri.rstrip('/'))}/{escape(last)}.",
        details=told,
        rule="several checkpoints",
    )


def _told(meta: _Meta, *, last: bool) -> str:
    """Return a text on a checkpoint for a message: its metrics; ``last`` is true if it is known to be the newest."""
    unread = meta.notes and not meta.entries
    return f"its {_META} cannot be read" if unread else _worth(meta.entries, last=last)


def _worth(meta: Mapping[str, Any], *, last: bool) -> str:
    words = [f"{key} {value}" for key, value in meta.items() if key not in _NO_METRICS and _is_plain(value)]
    words += ["within an epoch"] if meta.get("end-of-epoch") is False else []
    return ", ".join([*words, *(["the most recent"] if last else [])]) or "no metrics"


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, str) and len(value) < 40)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("-inf")


@dataclass(frozen=True)
class _Meta:
    """The content of ``CKPT.yaml``, and the file's fingerprint; if it could not be read, a note says why."""

    entries: Mapping[str, Any]
    file: FilePrint
    notes: tuple[str, ...] = ()


def _meta(folder: Folder, inner: str) -> _Meta:
    from ..storage.yaml_text import read_yaml  # imports yaml, which most commands do without

    name = f"{inner}/{_META}" if inner else _META
    with closing(folder.file(name)) as file:
        raw = file.read(0, min(file.size, _META_BYTES))
        header = FilePrint.of(file, hashlib.sha256(raw).hexdigest(), name)
    if header.size > len(raw):
        return _Meta({}, header, (f"{escape(name)} cannot be read: it has over {_META_BYTES:,} bytes",))
    try:
        read = read_yaml(raw.decode("utf-8"), name, unknown=_unread)
    except UnicodeDecodeError:
        return _Meta({}, header, (Note(NoteKind.UNREADABLE_FILE, f"{escape(name)} cannot be read: it is not UTF-8"),))
    except ConfigError as error:
        return _Meta({}, header, (f"{escape(name)} cannot be read: {error.said}",))
    if not isinstance(read, dict):
        return _Meta({}, header, (f"{escape(name)} cannot be read: it is not a mapping",))
    unread = [f"{escape(str(key))} ({value!r})" for key, value in read.items() if isinstance(value, OpaqueResult)]
    note = f"{escape(name)} has Python objects, which are not rebuilt: {listing(unread, 6, where='')}"
    return _Meta({str(key): value for key, value in read.items()}, header, (note,) if unread else ())


def _unread(tag: str) -> OpaqueResult:
    """Return a stand-in for a Python object in ``CKPT.yaml``, such as a tensor; ``tag`` contains its class name."""
    module, _, name = tag.rpartition(":")[2].rpartition(".")
    return OpaqueResult(GlobalName(module, name))


def _read(folder: Folder, inner: str) -> Header:
    """Return the header of the checkpoint in ``folder``, or in its subfolder ``inner`` if that is not ''."""
    meta = _meta(folder, inner)
    recoverables: dict[str, Any] = {}
    files, handles = [meta.file], dict[str, File]()
    with ExitStack() as stack:
        for name in _files(folder, inner):
            file = folder.file(f"{inner}/{name}" if inner else name)
            stack.callback(file.close)
            header = _header(file, f"{inner}/{name}" if inner else name)
            recoverables[name.removesuffix(_SUFFIX)] = header.tree if header else _text(file, name)
            files.extend(header.files if header else [])
            handles.update(header.handles if header else {})
            if header is None:
                file.close()
        stack.pop_all()
    beside = {(f"{_META} {key}" if key in recoverables else key): value for key, value in meta.entries.items()}
    notes = (f"read {escape(inner)}, the only checkpoint in {escape(folder.uri)}",) if inner else ()
    return Header(
        format=FORMAT.name,
        tree={**beside, **recoverables},
        files=tuple(files),
        handles=handles,
        notes=(*notes, *meta.notes),
    )


def _files(folder: Folder, inner: str) -> list[str]:
    if not inner:
        return [name for name in folder.names() if name.endswith(_SUFFIX)]
    with closing(folder.file(f"{inner}/{_META}")) as file:
        return [name for name in file.folder().names() if name.endswith(_SUFFIX)]


def _header(file: File, name: str) -> Header | None:
    """Return the header of a file of ``torch.save``; None for another kind of file, such as a counter's text."""
    try:
        return read_header(file, name)
    except FormatError as error:
        if error.rule in ("unknown format", "empty"):
            return None
        raise


def _text(file: File, name: str) -> Any:
    """Return the text in a file that ``torch.save`` did not write, such as a counter.

    A stand-in is returned if the file is long or binary.

    Raises FormatError if this is the file of the model, which must be from ``torch.save``: otherwise a missing model
    would go unnoticed. Also raises FormatError if the file is empty, all zeros or a Git LFS pointer.
    """
    raw = file.read(0, min(file.size, _TEXT_BYTES))
    if name == _MODEL or not raw.strip(b"\0") or raw.startswith(_POINTER):
        what = "not a checkpoint" if name == _MODEL else "neither a checkpoint nor a text file of SpeechBrain"
        raise FormatError(
            f"{escape(file.uri)} is {what if raw else 'empty'}.",
            hint="Fetch the file again, or remove it from the folder to read the other files.",
            rule="broken recoverable",
        )
    if file.size <= _SHOWN_BYTES:
        with suppress(UnicodeDecodeError):
            return raw.decode("utf-8")
    return OpaqueResult(GlobalName(name.removesuffix(_SUFFIX), _SUFFIX[1:]))


FORMAT = _SpeechBrain()
