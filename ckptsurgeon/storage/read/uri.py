"""Opens a URI with the source that knows its scheme. A source is one file in this folder."""

from __future__ import annotations

import os
import re
from typing import Protocol, cast
from urllib.parse import urlsplit

from ...errors import ConfigError
from ...util.registry import discover
from ...util.text import escape, without_secrets
from .base import Source

__all__ = ["check_address", "open_source", "scheme_of", "shown"]

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
