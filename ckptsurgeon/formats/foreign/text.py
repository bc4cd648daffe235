"""What a text is that stands where a checkpoint should be, and what is said of anything that is not read."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

from ...errors import FormatError
from ...util.text import escape
from ..base.untrusted import parse_json

__all__ = ["Foreign", "argument", "json_kind", "refused", "text_kind"]

# What is said of something that no format here reads.


class Foreign(NamedTuple):
    """What something is, and what to do with it."""

    what: str
    advice: str = ""


def argument(name: str) -> str:
    """Return a name as a shell takes it, safe for a terminal."""
    return escape(shlex.quote(name))


def refused(uri: str, found: Foreign | None, rule: str = "unknown format") -> FormatError:
    """Return the error for a file or folder that is no checkpoint."""
    if found is None:
        return FormatError(f"{escape(uri)} is not a checkpoint.", rule=rule)
    return FormatError(
        f"{escape(uri)} is not a checkpoint that ckpt reads: it is {found.what}.", hint=found.advice, rule=rule
    )


_ANEW = "Fetch it anew, from an address that gives the file itself."
_SHOWN = 120
"""Characters of what a server says that are shown."""
_CONFIGURATIONS = {
    "peft_type": "the configuration of an adapter",
    "model_type": "the configuration of a model",
    "architectures": "the configuration of a model",
    "_diffusers_version": "a configuration of diffusers",
}
"""Of whose entries these are."""


def text_kind(head: bytes, size: int) -> Foreign | None:
    """Return what a text is whose first bytes these are, of ``size`` in all; None for what is no text."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if begin.startswith(b"version https://git-lfs"):
        return Foreign("a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull")
    if begin.startswith((b"<!doctype html", b"<html", b"<head")):
        return Foreign(f"a web page{_said(head, b'title')}", _ANEW)
    if begin.startswith((b"<?xml", b"<error")):
        return _xml(head)
    if begin.startswith((b"{", b"[")):
        return _json(head, size)
    return _plain(head, size)


def _said(head: bytes, *tags: bytes) -> str:
    """Return what the first of some elements hold, in parentheses."""
    from html import unescape

    found = [re.search(rb"<%b>([^<]{1,500})<" % tag, head, re.IGNORECASE) for tag in tags]
    words = [" ".join(unescape(one[1].decode("utf-8", "replace")).split()) for one in found if one is not None]
    return f" ({escape(': '.join(words), _SHOWN)})" if any(words) else ""


def _xml(head: bytes) -> Foreign:
    if re.search(rb"<net\s", head):
        return Foreign("an OpenVINO model", "Name the checkpoint that it was converted from.")
    if re.search(rb"<error>", head, re.IGNORECASE):
        return Foreign(f"the error of a storage server{_said(head, b'Code', b'Message')}", _ANEW)
    return Foreign("an XML text")


def _json(head: bytes, size: int) -> Foreign | None:
    if size > len(head):
        return Foreign("a JSON text") if _is_text(head) else None
    try:
        return json_kind(parse_json(head.removeprefix(b"\xef\xbb\xbf")))
    except ValueError:
        return _plain(head, size)


def json_kind(data: Any) -> Foreign:
    """Return what a JSON text is that holds ``data``."""
    entries = data if isinstance(data, dict) else {}
    for entry, what in _CONFIGURATIONS.items():
        if entry in entries:
            return Foreign(what, "Name the folder that holds it, or the weights beside it.")
    for entry in ("error", "errors", "message", "detail"):
        said = entries.get(entry)
        said = said.get("message") if isinstance(said, dict) else said
        if isinstance(said, str) and said:
            return Foreign(f"the answer of a server, which says: {escape(said.strip().rstrip('.'), _SHOWN)}", _ANEW)
    return Foreign("a JSON text")


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 that people read; at their end a character may be cut."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and all(char.isprintable() or char in "\t\n\r" for char in text)


def _plain(head: bytes, size: int) -> Foreign | None:
    if not _is_text(head):
        return None
    first = head.decode("utf-8", "replace").removeprefix("\ufeff").strip().splitlines()[0]
    return Foreign(f"a text, which begins: {escape(first, 60)}")
