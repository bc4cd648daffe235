"""Reads a file on a web server in ranges; every response is checked against the request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....errors import SourceError
from ....util.text import escape, human_bytes
from ..base import Folder
from ..hugging_face.answers import digest_in_headers
from ..remote import BLOCK, RemoteFile
from .client import Address, RetryLimits, ask, connection_errors, content_length, offset, status_error
from .range_cache import kept_spool
from .spool import Spool

if TYPE_CHECKING:
    import httpx2

__all__ = ["HttpRanges", "open_http"]

_LONGEST_ETAG = 256
"""The most characters of an ETag: a longer ETag is not a digest, and must not get into plans and recipes."""
UNANNOUNCED = 1 << 30
"""The most bytes of a file of unknown size that are received, since the file may never end."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class HttpRanges:
    """A remote file at an address; ``size`` and ``etag`` are from the first response.

    ``modified`` is the Last-Modified date of that response, '' if ``etag`` is strong. ``around`` is a function that
    returns the file's folder. ``digest`` is the hub's digest of the file, '' if there is none.
    """

    address: Address
    name: str
    size: int
    etag: str
    modified: str
    around: Callable[[], Folder]
    digest: str = ""

    @property
    def uri(self) -> str:
        """The address without its secrets."""
        return self.address.shown

    @property
    def validator(self) -> str:
        """The commit, or a strong ETag: equal validators mean equal bytes. '' if there is neither."""
        return self.address.commit or (self.etag if _is_strong(self.etag) else "")

    def folder(self) -> Folder:
        """Return the folder that contains the file."""
        return self.around()

    def stream(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield ``nbytes`` bytes from ``offset`` on; if the connection is lost, the rest is requested over a new one.

        Raises SourceError if the server sends other bytes than were requested.
        """
        patience, done = RetryLimits(self.uri), 0
        while done < nbytes:
            begin, end = offset + done, offset + nbytes
            with ask(self.address, patience, Range=f"bytes={begin}-{end - 1}") as response:
                self._check(response, begin, end)
                why = "the answer ended too early"
                try:
                    for data in response.iter_raw():
                        done += len(data)
                        if done > nbytes:
                            raise SourceError(f"{escape(self.uri)}: the server sent more than it was asked for.")
                        yield data
                except connection_errors() as error:
                    why = str(error) or why
            if done < nbytes:
                patience.again(f"cannot be fetched: {why}", came=offset + done - begin)

    def _check(self, response: httpx2.Response, begin: int, end: int) -> None:
        """Raise SourceError if a response is not the requested range, or the content has changed."""
        if response.status_code not in (200, 206):
            raise status_error(self.address, response)
        _check_plain(self.address, response)
        headers = response.headers
        dated = "" if _is_strong(self.etag) else headers.get("Last-Modified", "")
        if headers.get("ETag", "") != self.etag or dated != self.modified:
            raise SourceError(f"{escape(self.uri)} has changed while it was being read.", hint="Start again.")
        said = _content_range(response)
        if said is None or said != (begin, end, self.size):
            got = "no range" if said is None else f"bytes {said[0]} to {said[1]} of {said[2]}"
            raise SourceError(
                f"{escape(self.uri)}: the server was asked for bytes {begin} to {end} of {self.size}, but sent {got}."
            )
        if headers.get("Content-Length", str(end - begin)) != str(end - begin):
            raise SourceError(
                f"{escape(self.uri)}: the server was asked for {end - begin} bytes, but announced "
                f"{escape(headers['Content-Length'])}."
            )


def open_http(address: Address, name: str, around: Callable[[], Folder]) -> RemoteFile:
    """Open a file at an address by requesting its first block; a server without range requests sends the whole file.

    ``around`` is a function that returns the file's folder. Raises SourceError if the file does not exist or cannot be
    fetched.
    """
    patience = RetryLimits(address.shown)
    while True:
        with ask(address, patience, Range=f"bytes=0-{BLOCK - 1}") as response:
            code, headers = response.status_code, response.headers
            etag = headers.get("ETag", "")
            modified = "" if _is_strong(etag) else headers.get("Last-Modified", "")
            digest = digest_in_headers((*response.history, response)[0].headers) if address.commit else ""
            if code == 416 and headers.get("Content-Range") == "bytes */0":
                return RemoteFile(HttpRanges(address, name, 0, etag, modified, around))
            if code == 206:
                return _ranged(
                    HttpRanges(address, name, _size(address, response), etag, modified, around, digest), response
                )
            if code != 200:
                raise status_error(address, response)
            _check_plain(address, response)
            spool = Spool(address.shown)
            try:
                size = _take_all(address, response, spool)
            except connection_errors() as error:
                spool.close()
                patience.again(f"broke off: {error}")
                continue
            except BaseException:
                spool.close()
                raise
            wire = HttpRanges(address, name, size, etag, modified, around, digest)
            return RemoteFile(wire, spool, is_sent_whole=True)


def _ranged(wire: HttpRanges, response: httpx2.Response) -> RemoteFile:
    """Return the remote file ``wire``; its first block is from ``response``, other blocks are fetched when needed."""
    length = min(BLOCK, wire.size)
    wire._check(response, 0, length)
    spool, at = _spool(wire), 0
    with suppress(*connection_errors()):
        for data in response.iter_raw():
            spool.write(at, data[: length - at])
            at += len(data[: length - at])
    return RemoteFile(wire, spool)


def _spool(wire: HttpRanges) -> Spool:
    """Return an empty local copy for the bytes of a remote file.

    If ``wire`` has a validator (a commit or a strong ETag) and this run fails, the next run can use the copy.
    """
    if not wire.validator:
        return Spool(wire.uri)
    return kept_spool(wire.uri, f"{wire.address.url}\n{wire.validator}\n{wire.size}")


def _take_all(address: Address, response: httpx2.Response, spool: Spool) -> int:
    """Write the whole body of a response into ``spool``; return its size.

    Raises SourceError if the Content-Length differs from this size.
    """
    size = content_length(response)
    spool.check_room(size or 0)
    at = 0
    for data in response.iter_raw():
        if size is None and at + len(data) > UNANNOUNCED:
            raise SourceError(
                f"the server of {escape(address.shown)} does not support range requests and does not report the file's "
                f"size: reading stopped after {human_bytes(at)}.",
                hint="Run ckpt fetch to download the whole file, if there is enough disk space.",
            )
        spool.write(at, data)
        at += len(data)
    if size not in (None, at):
        raise SourceError(
            f"the transfer of {escape(address.shown)} broke off: {at} of {size} bytes were received.", hint="Try again."
        )
    return at


def _is_strong(etag: str) -> bool:
    """Return whether an ETag is strong (RFC 9110, 8.8.1) and has an acceptable length."""
    return etag.startswith('"') and len(etag) <= _LONGEST_ETAG


def _size(address: Address, response: httpx2.Response) -> int:
    said = _content_range(response)
    if said is None:
        raise SourceError(f"{escape(address.shown)}: the server does not report the size of the file.")
    return said[2]


def _content_range(response: httpx2.Response) -> tuple[int, int, int] | None:
    """Return (begin, end, size of the whole file) from the Content-Range of a 206 response; None if it is missing."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code != 206 or found is None:
        return None
    begin, last, size = map(offset, found.groups())
    return None if begin is None or last is None or size is None else (begin, last + 1, size)


def _check_plain(address: Address, response: httpx2.Response) -> None:
    coding = response.headers.get("Content-Encoding", "identity").lower()
    if coding != "identity":
        raise SourceError(
            f"{escape(address.shown)}: the server compressed the file ({escape(coding)}) without being asked to, so "
            "ranges of its bytes cannot be read."
        )
