"""Opens a URI with the source that knows its scheme, and reads small files whole."""

from __future__ import annotations

import os
import re
from contextlib import closing
from typing import Protocol, cast
from urllib.parse import urlsplit

from ...errors import ConfigError, SourceError
from ...util.registry import discover
from ...util.text import escape, human_bytes, without_secrets
from ..small_files import SMALL_BYTES
from .base import File, Source

__all__ = ["SMALL_BYTES", "check_address", "open_source", "read_small", "scheme_of", "shown"]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|([A-Za-z][A-Za-z0-9+-]+)::(?=[^/]*://)")
"""The second is that of a chain as fsspec writes it: ``simplecache::s3://…``."""


class _Opener(Protocol):
    schemes: tuple[str, ...]

    def open(self, uri: str) -> Source: ...


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI, empty for a path."""
    found = _SCHEME.match(uri)
    return (found[1] or found[2]).lower() if found else ""


def shown(uri: str) -> str:
    """Return a URI as messages and records have it: an address without its credentials, query and fragment."""
    return without_secrets(uri).replace("?…", "") if scheme_of(uri) else uri


def check_address(uri: str) -> None:
    """Raise ConfigError for a web address that is none."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError:  # whose words may have a part of a password that holds a slash
        raise ConfigError(f"{escape(shown(uri))} is no address: its host or port is none.") from None
    if not host:
        raise ConfigError(f"{escape(shown(uri))} names no host.", hint="Write https://host/path.")


def open_source(uri: str | os.PathLike[str]) -> Source:
    """Open a path or URI for reading.

    A source whose scheme is ``*`` has those that no other has. Raises SourceError when it is missing or no regular
    file, ConfigError when nothing reads its scheme.
    """
    text = os.fspath(uri)
    scheme = scheme_of(text)
    openers = cast("list[_Opener]", list(discover("ckptsurgeon.storage.read", "SOURCE").values()))
    found = [one for name in (scheme, "*") for one in openers if name in one.schemes]
    return found[0].open(text)


# Small files, read whole: configurations and token lists, of this machine or at an address.


def read_small(path: str, most: int = SMALL_BYTES) -> bytes:
    """Return the bytes of a file of at most that size; raises SourceError if it is missing, larger or not regular."""
    source = open_source(path)
    if not isinstance(source, File):
        raise SourceError(f"{escape(path)} is a folder.")
    with closing(source) as file:
        if file.size > most:
            raise SourceError(f"{escape(path)} has {human_bytes(file.size)}; at most {human_bytes(most)} are read.")
        return file.read(0, file.size)
