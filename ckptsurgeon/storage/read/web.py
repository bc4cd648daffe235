"""Reads files at ``https://`` and ``http://`` addresses; only the bytes that are read are fetched."""

from __future__ import annotations

from urllib.parse import quote, unquote, urlsplit, urlunsplit

from ...errors import SourceError
from ...util.text import escape
from .base import Folder, Source
from .http.client import address_of
from .http.ranges import open_http
from .remote import RemoteFile
from .uri import check_address, check_name, file_address, shown

__all__ = ["SOURCE", "WebFolder"]


class WebFolder(Folder):
    """The folder of a file on a web server; it cannot be listed, but its files can be opened by name."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.uri = shown(url)
        self.name = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2])

    def names(self) -> list[str]:
        """Return an empty list: a web server cannot be listed."""
        return []

    def folders(self) -> list[str]:
        """Return an empty list: a web server cannot be listed."""
        return []

    def file(self, name: str) -> RemoteFile:
        """Open a file of the folder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        parts = urlsplit(self._url)
        return _open(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}")))

    def inside(self, name: str) -> WebFolder:
        """Return a subfolder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        parts = urlsplit(self._url)
        return WebFolder(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}")))


class _Web:
    schemes = ("http", "https")

    def open(self, uri: str) -> Source:
        return _open(file_address(uri))


def _open(url: str) -> RemoteFile:
    check_address(url)
    parts = urlsplit(url)
    name = unquote(parts.path.rpartition("/")[2])
    if not name:
        raise SourceError(
            f"{escape(shown(url))} is a folder on a web server, which cannot be listed.", hint="Add a file name."
        )
    folder = urlunsplit(parts._replace(path=parts.path.rpartition("/")[0], fragment=""))
    return open_http(address_of(url), name, lambda: WebFolder(folder))


SOURCE = _Web()
