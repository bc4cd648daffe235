"""Where a file is to come from: a folder on this machine, a web address, or a repository of the Hugging Face hub."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigError, SourceError
from ...util.text import brief_repr, escape, without_credentials
from ..read.hugging_face.address import hub_address
from ..read.uri import scheme_of, shown

__all__ = ["Origin", "origin_of", "split_path"]

_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_WEB = ("http:", "https:")


@dataclass(frozen=True)
class Origin:
    """One file of one source, or with no ``file`` all of it.

    ``kind`` is "local" for an absolute folder, "url" for a web address, "hub" for a repository, "store" for what fsspec
    reads; ``revision`` is what was asked of a hub.
    """

    kind: str
    source: str
    file: str
    revision: str = ""

    @property
    def path(self) -> str:
        """The source and the file as one path or address; an address has its credentials in it."""
        return f"{self.source.rstrip('/')}/{self.file}"

    @property
    def shown(self) -> str:
        """What messages and records call it: an address without credentials and without its query."""
        return shown(self.path) if self._is_address else self.path.rstrip("/")

    @property
    def sha256(self) -> str:
        """What tells it from other origins without saying its secrets: a digest of all but the credentials."""
        address = without_credentials(self.path) if self._is_address else self.path
        return hashlib.sha256("\n".join((self.kind, address, self.revision)).encode()).hexdigest()

    @property
    def _is_address(self) -> bool:
        return self.kind in ("url", "store")


def split_path(path: Any) -> tuple[Any, str]:
    """Return the source and the file name of a path, as SpeechBrain's ``Pretrainer.split_path``.

    A FetchSource keeps what it says of where to fetch from.
    """
    if isinstance(path, tuple) and len(path) == 2:
        source, file = split_path(path[1])
        return (path._replace(path=source) if hasattr(path, "_replace") else (path[0], source)), file
    text = _text(path, "a path")
    if "/" not in text:
        return "./", text
    source, _, file = text.rpartition("/")
    return source or "/", file


def origin_of(source: Any, file: str, *, revision: str | None = None) -> Origin:
    """Return where a file of a source is to be had; raises SourceError for a folder that is not there.

    A folder that exists is local, ``http(s):`` is an address, ``hf://org/repo[@revision]`` and the rest repositories of
    the hub: except what can only be a path, which is never looked for there. ``source`` may be a FetchSource, a pair
    that says which it is.
    """
    if not file:
        raise ConfigError(f"{brief_repr(source)} names a folder, not a file.", hint="Put the file's name behind it.")
    asked, text = _asked(source)
    if asked == "local" or (not asked and os.path.isdir(text)):
        if not os.path.isdir(text):
            raise _no_folder(text)
        return Origin("local", os.path.abspath(text), file)
    if not asked and scheme_of(text) == "hf":
        found = hub_address(f"{text}/{file}")
        return Origin("hub", found.repository, found.path, found.revision or revision or "")
    if asked == "url" or (not asked and text.lower().startswith(_WEB)):
        return Origin("url", text, file)
    if not asked and (_is_path(text) or "://" in text):
        raise _no_folder(text)
    if not _REPOSITORY.fullmatch(text):
        raise ConfigError(f"{brief_repr(text)} is no name of a hub repository.", hint="It is written owner/name.")
    return Origin("hub", text, file, revision or "")


def _asked(source: Any) -> tuple[str, str]:
    """Return what a FetchSource says it is, '' where nothing does, and the source as text."""
    kinds = {"LOCAL": "local", "HUGGING_FACE": "hub", "URI": "url"}
    if not isinstance(source, tuple):
        return "", _text(source, "a source")
    name = getattr(source[0], "name", source[0]) if len(source) == 2 else None
    if not isinstance(name, str) or name.upper() not in kinds:
        raise ConfigError(
            f"{brief_repr(source)} is no source.", hint=f"A FetchSource says {', '.join(kinds)} and where."
        )
    return kinds[name.upper()], _text(source[1], "a source")


def _text(value: Any, what: str) -> str:
    try:
        text = os.fspath(value)
    except TypeError:
        text = b""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{brief_repr(value)} is not {what}.", hint="Name a folder, a repository or an address.")
    return text


def _is_path(text: str) -> bool:
    """Whether a text can only be meant as a path: by its form, or because its beginning lies here."""
    head = text.partition("/")[0]
    return (
        text.startswith(("/", ".", "~"))
        or text.endswith("/")
        or text.count("/") > 1
        or "\\" in text
        or os.path.exists(text)
        or ("/" in text and os.path.isdir(head))
    )


def _no_folder(text: str) -> SourceError:
    """Return the error for a folder that is not there, with the nearest that is."""
    if "://" in text:
        return SourceError(f"{escape(text)} is neither a folder nor an http(s) address.")
    if os.path.exists(text):
        return SourceError(f"{escape(text)} is a file; a source is the folder that it lies in.")
    parent, name = os.path.split(os.path.abspath(os.path.expanduser(text)))
    near = difflib.get_close_matches(name, _folders(parent), n=1)
    home = " ~ is not expanded." if text.startswith("~") else ""
    hint = f"Did you mean {escape(os.path.join(os.path.dirname(text.rstrip('/')), near[0]))}?" if near else ""
    return SourceError(
        f"there is no folder {escape(text)}; it looks like a path, so it was not looked for on the hub.{home}",
        hint=hint,
    )


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []
