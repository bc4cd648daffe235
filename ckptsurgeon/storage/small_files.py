"""Reads untrusted files on this machine completely: only regular files, and only up to a limit of bytes.

A sparse file, for example, can have any size. A download may leave something else than the file: a Git LFS pointer, a
web page or an error message.
"""

from __future__ import annotations

import errno
import io
import os
import re
from importlib.machinery import SourceFileLoader
from typing import Any

from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import brief_repr, escape, human_bytes
from .descriptors import open_regular

__all__ = [
    "HEAD_BYTES",
    "SMALL_BYTES",
    "CodeLoader",
    "error_message",
    "is_of_system",
    "open_file",
    "read_file",
    "read_text",
    "stand_in",
]

SMALL_BYTES = 16 << 20
"""The usual limit for the size of a file in bytes; configurations that people write are smaller."""


def is_of_system(path: str) -> bool:
    """Return whether an absolute path is in a folder that the kernel fills: /proc, /sys or /dev, but not /dev/shm.

    In /dev/shm, users keep files of their own in memory.
    """
    return path.startswith(("/proc/", "/sys/", "/dev/")) and not path.startswith("/dev/shm/")


def open_file(path: str | os.PathLike[str]) -> io.BufferedReader:
    """Open a regular file to read its bytes; raises OSError."""
    return os.fdopen(open_regular(path), "rb")


def read_file(path: str | os.PathLike[str], most: int = SMALL_BYTES) -> bytes:
    """Return the bytes of a regular file; raises OSError, without reading it, if it has more than ``most`` bytes."""
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(most + 1) if size <= most else b""  # some system files, as in /proc, report size 0
    if size > most or len(data) > most:
        said = f"it has {human_bytes(max(size, len(data)))}, and at most {human_bytes(most)} are read"
        raise OSError(errno.EFBIG, said, os.fspath(path))
    return data


def read_text(path: str | os.PathLike[str], most: int = SMALL_BYTES) -> str:
    r"""Return the text of a regular file in UTF-8, its lines ending in ``\n``; raises OSError or UnicodeDecodeError."""
    return io.IncrementalNewlineDecoder(None, translate=True).decode(read_file(path, most).decode("utf-8"), final=True)


class CodeLoader(SourceFileLoader):
    """Imports a Python file of the user, which is read with the same checks as other small files."""

    def get_data(self, path: str) -> bytes:
        """Return the bytes of the file; raises OSError."""
        return read_file(path)


HEAD_BYTES = 1024
"""How many bytes at the beginning of a file ``stand_in`` needs."""
_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a Git LFS pointer: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
_PAGE = re.compile(rb"<!doctype html|<html[\s>].*</(title|head|body)>", re.IGNORECASE | re.DOTALL)
_MOST_FIELDS = 3
"""The most fields of an error message in JSON; a configuration with a field ``error`` has more."""


def stand_in(data: bytes) -> str:
    """Return a clause such as "it is an HTML page" for a Git LFS pointer, HTML or XML; "" for other content.

    ``data`` has the first bytes of the file.
    """
    head = data[:HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(_POINTER):
        return Note(NoteKind.UNREADABLE_FILE, "it is a Git LFS pointer, and git lfs pull fetches the file")
    if _PAGE.match(head):
        return "it is an HTML page"
    return "it is an XML document" if head.startswith(b"<?xml") else ""


def error_message(document: Any) -> str:
    """Return "it is an error message: …" if a JSON value is an error message of a server, "" otherwise."""
    said = document.get("error") if isinstance(document, dict) and len(document) <= _MOST_FIELDS else None
    return f"it is an error message: {escape(brief_repr(said, 60))}" if isinstance(said, str) else ""
