"""Recognises content that was downloaded instead of a file: a Git LFS pointer, a web page, or an error message."""

from __future__ import annotations

import re
from typing import Any

from ..util.note_kind import NoteKind
from ..util.notes import Note
from ..util.text import brief_repr, escape

__all__ = ["HEAD_BYTES", "error_message", "stand_in"]

HEAD_BYTES = 1024
"""How many bytes at the beginning of a file ``stand_in`` needs."""
_POINTER = b"version https://git-lfs.github.com/spec/"
"""The beginning of a Git LFS pointer: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
_PAGE = re.compile(rb"<!doctype html|<html[\s>].*</(title|head|body)>", re.IGNORECASE | re.DOTALL)
_FEW = 3
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
    said = document.get("error") if isinstance(document, dict) and len(document) <= _FEW else None
    return f"it is an error message: {escape(brief_repr(said, 60))}" if isinstance(said, str) else ""
