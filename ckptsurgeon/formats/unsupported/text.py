"""Recognises text files that were passed as a checkpoint, and makes the error for unsupported files."""

from __future__ import annotations

import re
import shlex
from typing import Any, NamedTuple

from ...errors import FormatError
from ...util.text import escape
from ..base.untrusted import parse_json

__all__ = ["ANEW", "UnreadableFile", "argument", "json_kind", "not_a_checkpoint", "text_kind"]

# The error for a file that none of the formats can read.


class UnreadableFile(NamedTuple):
    """A description of a file, such as "an ONNX model", and advice on what to do with it."""

    what: str
    advice: str = ""


def argument(name: str) -> str:
    """Return a name quoted for a shell command; characters that are unsafe in a terminal are escaped."""
    return escape(shlex.quote(name))


def not_a_checkpoint(uri: str, found: UnreadableFile | None, rule: str = "unknown format") -> FormatError:
    """Return the error for a file or folder that is not a checkpoint; ``found`` describes it (None: unknown).

    ``rule`` is the name of the violated rule.
    """
    if found is None:
        return FormatError(f"{escape(uri)} is not a checkpoint.", rule=rule)
    return FormatError(
        f"{escape(uri)} is not a checkpoint that ckpt can read: it is {found.what}.", hint=found.advice, rule=rule
    )


ANEW = "Fetch it again, from the address of the file itself."
"""The advice if the download damaged the file, or if a web page or an error message was downloaded instead."""
_OF_TEXT = f"Give the file with the weights. If a server sent this text in its place: {ANEW[0].lower()}{ANEW[1:]}"
_SHOWN = 120
"""How many characters of a server's answer are shown."""
_CONFIGURATIONS = {
    "peft_type": "the configuration of an adapter",
    "model_type": "the configuration of a model",
    "architectures": "the configuration of a model",
    "_diffusers_version": "a configuration of diffusers",
}
"""{entry of a JSON file: description of a file that has this entry}."""


def text_kind(head: bytes, size: int) -> UnreadableFile | None:
    """Return a description of a text file that begins with ``head`` and has ``size`` bytes; None for other files."""
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if begin.startswith(b"version https://git-lfs"):
        return UnreadableFile("a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull")
    if begin.startswith((b"<!doctype html", b"<html", b"<head")):
        return UnreadableFile(f"a web page{_element_text(head, b'title')}", ANEW)
    if begin.startswith((b"<?xml", b"<error")):
        return _xml(head)
    if begin.startswith((b"{", b"[")):
        return _json(head, size)
    return _plain(head, size)


def _element_text(head: bytes, *tags: bytes) -> str:
    """Return the texts of the first HTML or XML element with each of ``tags``, in parentheses; '' if there are none."""
    from html import unescape

    found = [re.search(rb"<%b>([^<]{1,500})<" % tag, head, re.IGNORECASE) for tag in tags]
    words = [" ".join(unescape(one[1].decode("utf-8", "replace")).split()) for one in found if one is not None]
    return f" ({escape(': '.join(words), _SHOWN)})" if any(words) else ""


def _xml(head: bytes) -> UnreadableFile:
    if re.search(rb"<net\s", head):
        return UnreadableFile("an OpenVINO model", "Use the checkpoint that it was converted from.")
    if re.search(rb"<error>", head, re.IGNORECASE):
        return UnreadableFile(f"an error message of a storage server{_element_text(head, b'Code', b'Message')}", ANEW)
    return UnreadableFile("an XML file", _OF_TEXT)


def _json(head: bytes, size: int) -> UnreadableFile | None:
    if size > len(head):
        return UnreadableFile("a JSON file", _OF_TEXT) if _is_text(head) else None
    try:
        return json_kind(parse_json(head.removeprefix(b"\xef\xbb\xbf")))
    except ValueError:
        return _plain(head, size)


def json_kind(data: Any) -> UnreadableFile:
    """Return a description of a JSON file with the value ``data``, and advice."""
    entries = data if isinstance(data, dict) else {}
    for entry, what in _CONFIGURATIONS.items():
        if entry in entries:
            return UnreadableFile(what, "Pass the folder that contains it, or the weights in that folder.")
    for entry in ("error", "errors", "message", "detail"):
        said = entries.get(entry)
        said = said.get("message") if isinstance(said, dict) else said
        if isinstance(said, str) and said:
            return UnreadableFile(f"the answer of a server: {escape(said.strip().rstrip('.'), _SHOWN)}", ANEW)
    return UnreadableFile("a JSON file", _OF_TEXT)


def _is_text(head: bytes) -> bool:
    """Return whether ``head`` is printable UTF-8 text; its last character may be incomplete."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and all(char.isprintable() or char in "\t\n\r" for char in text)


def _plain(head: bytes, size: int) -> UnreadableFile | None:
    if not _is_text(head):
        return None
    first = head.decode("utf-8", "replace").removeprefix("\ufeff").strip().splitlines()[0]
    return UnreadableFile(f"a text file that begins: {escape(first.rstrip('.'), 60)}", _OF_TEXT)
