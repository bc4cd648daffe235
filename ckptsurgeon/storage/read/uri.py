"""Opens a URI with the reader for its scheme, reads small files completely, and checks names and links of files."""

from __future__ import annotations

import os
import re
from contextlib import closing
from typing import Protocol, cast
from urllib.parse import urlsplit

from ...errors import ConfigError, FormatError, SourceError
from ...util.registry import discover, plugin
from ...util.text import escape, human_bytes, without_secrets
from ..small_files import SMALL_BYTES
from .base import File, Source

__all__ = [
    "SMALL_BYTES",
    "check_address",
    "check_name",
    "file_address",
    "leads_out",
    "open_source",
    "page_notes",
    "read_small",
    "scheme_of",
    "shown",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://|([A-Za-z][A-Za-z0-9+-]+)::(?=[^/]*://)")
"""Matches a scheme; the second form begins a chain of addresses in fsspec's notation: ``simplecache::s3://…``."""


_PACKAGE = "ckptsurgeon.storage.read"
MODULES = {"": "local", "file": "local", "hf": "hub", "http": "web", "https": "web"}
"""{scheme: module that reads it}; for all other schemes, the lists ``schemes`` of all modules are searched."""


class _Opener(Protocol):
    schemes: tuple[str, ...]

    def open(self, uri: str) -> Source: ...


def scheme_of(uri: str) -> str:
    """Return the scheme of a URI; '' for a path."""
    found = _SCHEME.match(uri)
    return (found[1] or found[2]).lower() if found else ""


def shown(uri: str) -> str:
    """Return a URI for messages and records: an address without its credentials, query and fragment."""
    return without_secrets(uri).replace("?…", "") if scheme_of(uri) else uri


def check_address(uri: str) -> None:
    """Raise ConfigError for an invalid web address."""
    try:
        parts = urlsplit(uri)
        host = parts.hostname
        _ = parts.port
    except ValueError:  # the error's text may contain part of a password with a slash
        raise ConfigError(f"{escape(shown(uri))} is not a valid address: its host or port is invalid.") from None
    if not host:
        raise ConfigError(f"{escape(shown(uri))} has no host.", hint="Write https://host/path.")


_PAGE = re.compile(r"(/(?:datasets/|spaces/)?[^/]+/[^/]+)/blob/(?=[^/]+/.)")
"""Matches the path of the web page that shows a file on the Hugging Face hub."""
_HUBS = ("huggingface.co", "www.huggingface.co", "hf.co", "hf-mirror.com")


def file_address(uri: str) -> str:
    """Return the address of a file if ``uri`` is the web page of the file on the Hugging Face hub; otherwise ``uri``.

    ``https://huggingface.co/org/repo/blob/main/x.pth`` is the page, ``…/resolve/main/x.pth`` the file. The variable
    ``HF_ENDPOINT`` sets the address of another hub, as in huggingface_hub.
    """
    if scheme_of(uri) not in ("http", "https"):
        return uri
    try:
        parts = urlsplit(uri)
        hubs = (*_HUBS, urlsplit(os.environ.get("HF_ENDPOINT", "")).netloc)
        page = _PAGE.match(parts.path) if parts.netloc.rpartition("@")[2] in hubs else None
    except ValueError:
        return uri
    return parts._replace(path=f"{page[1]}/resolve/{parts.path[page.end() :]}").geturl() if page is not None else uri


def page_notes(uri: str) -> tuple[str, ...]:
    """Return a note if ``uri`` is the web page of a file on the hub: the file is used instead of the page."""
    address = file_address(uri)
    if address == uri:
        return ()
    return (f"{escape(shown(uri))} is a web page: the file {escape(shown(address))} is used instead",)


def open_source(uri: str | os.PathLike[str]) -> Source:
    """Open a path or URI for reading.

    fsspec reads the schemes for which ckptsurgeon has no reader. Raises SourceError if the file is missing or not
    regular, ConfigError if no reader knows the scheme.
    """
    text = os.fspath(uri)
    scheme = scheme_of(text)
    if scheme in MODULES:  # no other reader is imported
        return cast("_Opener", plugin(_PACKAGE, MODULES[scheme], "SOURCE")).open(text)
    openers = cast("list[_Opener]", list(discover(_PACKAGE, "SOURCE").values()))
    found = [one for name in (scheme, "*") for one in openers if name in one.schemes]
    return found[0].open(text)


# Small files that are read completely: configurations and token lists, on this machine or at an address.


def read_small(path: str, most: int = SMALL_BYTES) -> bytes:
    """Return the bytes of a file; raises SourceError if it is missing, not regular, or has more than ``most`` bytes."""
    source = open_source(path)
    if not isinstance(source, File):
        raise SourceError(f"{escape(path)} is a folder.")
    with closing(source) as file:
        if file.size > most:
            raise SourceError(
                f"{escape(path)} has {human_bytes(file.size)}, more than the limit of {human_bytes(most)}."
            )
        return file.read(0, file.size)


# Checks the names of files in a folder that an index or manifest lists.


def check_name(uri: str, name: str) -> None:
    """Raise FormatError if ``name`` is not a path inside the folder ``uri``."""
    if not name or name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
        raise FormatError(f"the folder {escape(uri)} refers to a file outside of it: {escape(name)}.", rule="outside")


# Links: a file next to the weights belongs to the model only if it is really in the model's folder.

_LOCAL = ("", "file", "local")
_CACHED = re.compile(r"(.+/(?:models|datasets|spaces)--[^/]+)/snapshots/[^/]+(?:/.+)?")
_BLOB = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""Matches the name of a blob in the hub's cache: a digest."""


def leads_out(path: str, folder: str = "") -> bool:
    """Return whether a file is a link that leads out of ``folder``, by default the folder in which the file is.

    The folder itself may be a link, since the user chose the folder. For a file in the hub's cache, a link to a blob of
    the same repository does not count as leading out.
    """
    if scheme_of(path) not in _LOCAL:
        return False
    path = path.partition("://")[2] or path
    if not os.path.islink(path):
        return False
    folder = folder.partition("://")[2] or folder or os.path.dirname(path)
    folder, file = os.path.realpath(folder or os.curdir), os.path.realpath(path)
    if file.startswith(os.path.join(folder, "")):
        return False
    cached = _CACHED.fullmatch(folder)
    blobs, name = os.path.split(file)
    return cached is None or blobs != f"{cached[1]}/blobs" or not _BLOB.fullmatch(name)
