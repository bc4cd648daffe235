"""Opens a URI with the source that knows its scheme. A source is one file in this folder."""

from __future__ import annotations

import os
import re
from typing import Protocol, cast
from urllib.parse import urlsplit, urlunsplit

from ..errors import ConfigError
from ..registry import discover
from ..text import escape
from .base import Source

__all__ = ["check_address", "open_source", "scheme_of", "shown", "without_queries"]

WEB = ("http", "https")
_QUERY = re.compile(r"(?<=\S)\?[^\s'\">]+")
_USER = re.compile(r"(?<=://)[^\s/'\"<>]*@")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class _Opener(Protocol):
    schemes: tuple[str, ...]

    def open(self, uri: str) -> Source: ...


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI, empty for a path."""
    found = _SCHEME.match(uri)
    return found.group(1).lower() if found else ""


def shown(uri: str) -> str:
    """Return a URI as messages and records have it; an address without its credentials, query and fragment."""
    if not scheme_of(uri):
        return uri
    try:
        parts = urlsplit(uri)
    except ValueError:  # what is no address may still hold a password
        return f"{scheme_of(uri)}://…"
    fragment = "" if parts.scheme in WEB else parts.fragment  # a store's names may have a # in them
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", fragment))


def check_address(uri: str) -> None:
    """Raise ConfigError for a web address that is none."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError as error:
        raise ConfigError(f"{escape(shown(uri))} is no address: {escape(str(error))}.") from None
    if not host:
        raise ConfigError(f"{escape(shown(uri))} names no host.", hint="Write https://host/path.")


def without_queries(text: str) -> str:
    """Return a text without the credentials and queries of addresses in it: those of a content network are signed."""
    return _USER.sub("", _QUERY.sub("?…", text))


def open_source(uri: str | os.PathLike[str]) -> Source:
    """Open a path or URI for reading.

    A source whose scheme is ``*`` has those that no other has. Raises SourceError when it is missing or no regular
    file, ConfigError when nothing reads its scheme.
    """
    text = os.fspath(uri)
    scheme = scheme_of(text)
    openers = cast("list[_Opener]", list(discover("ckptsurgeon.sources", "SOURCE").values()))
    found = [one for name in (scheme, "*") for one in openers if name in one.schemes]
    return found[0].open(text)
