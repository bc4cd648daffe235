"""Files from web addresses: streamed into a temp file, resumed where they broke off, held against what was said."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import OutputError, SourceError
from ...util.text import escape
from ..read.http.client import Address, Patience, address_of, announced, ask, broken, refusal
from ..read.http.spool import Room
from ..write.staging import StagedFile
from .origin import Origin
from .placing import Placing

if TYPE_CHECKING:
    import httpx2

    from ..read.base import Progress

__all__ = ["Downloaded", "download"]

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


@dataclass(frozen=True)
class Downloaded:
    """A file that came whole: where it is until it is put in place, and the strong ETag that it has, or ''."""

    staged: StagedFile
    sha256: str
    etag: str


def download(
    origin: Origin, path: str, placing: Placing, *, etag: str = "", sha256: str = "", progress: Progress | None = None
) -> Downloaded | None:
    """Fetch an address into a temp file for ``path``; None where it still has the ``etag`` that is known.

    Raises SourceError where it cannot be had whole, or is not what ``sha256`` says.
    """
    address = address_of(origin.path)
    patience, body = Patience(address.shown), _Body(address, path, placing, progress)
    while True:
        begin, headers = body.done, body.wanted(etag)
        with ask(address, patience, **headers) as response:
            if response.status_code == 304 and "If-None-Match" in headers:
                return None
            why = body.take(response)
        if not why:
            return body.whole(sha256)
        patience.again(why, came=body.done - begin)


class _Body:
    """What has come of a file so far."""

    def __init__(self, address: Address, path: str, placing: Placing, progress: Progress | None) -> None:
        self.done = 0
        self._address, self._path, self._placing, self._progress = address, path, placing, progress
        self._staged: StagedFile | None = None
        self._size: int | None = None
        self._etag = ""
        self._digest = hashlib.sha256()
        self._room = Room(lambda: os.statvfs(os.path.dirname(os.path.abspath(path))))

    def wanted(self, etag: str) -> dict[str, str]:
        """Return the headers of the next request: for the rest, where it can be told to be of the same file."""
        if self.done and self._etag:
            return {"Range": f"bytes={self.done}-", "If-Range": self._etag}
        return {"If-None-Match": etag} if etag and self._staged is None else {}

    def take(self, response: httpx2.Response) -> str:
        """Write what an answer brings; returns why it is not all, '' where it is.

        Raises SourceError where it is not what was asked for.
        """
        if response.status_code not in (200, 206):
            raise refusal(self._address, response)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(f"{self._shown} comes compressed, which was not asked for.")
        if response.status_code == 206:
            self._check_goes_on(response)
        else:
            self._begin(response)
        whole = True
        try:
            for chunk in response.iter_raw():
                self._write(chunk)
        except broken():
            whole = False
        if whole and self._size in (None, self.done):
            return ""
        size = "" if self._size is None else f"of {self._size} "
        return f"broke off: {self.done} {size}bytes came"

    @property
    def _shown(self) -> str:
        return escape(self._address.shown)

    def _write(self, chunk: bytes) -> None:
        if self._size is not None and self.done + len(chunk) > self._size:
            raise SourceError(f"{self._shown} sent more than the {self._size} bytes that it announced.")
        assert self._staged is not None
        if self._size is None and not self._room.take(len(chunk)):
            raise OutputError(f"cannot write {escape(self._path)}: there is hardly any space left.")
        self._staged.write(self.done, chunk)
        self._digest.update(chunk)
        self.done += len(chunk)
        if self._progress is not None:
            self._progress(self.done, self._size or self.done)

    def whole(self, sha256: str) -> Downloaded:
        """Return the file, on disk; raises SourceError where it is empty or not the one that was meant."""
        if not self.done:
            raise SourceError(f"{self._shown} is empty.")
        found = self._digest.hexdigest()
        if sha256 and found != sha256:
            raise SourceError(f"{self._shown} is not what was asked for: its SHA-256 is {found}, not {sha256}.")
        assert self._staged is not None
        self._staged.flush(self._size)
        return Downloaded(self._staged, found, self._etag)

    def _begin(self, response: httpx2.Response) -> None:
        """Take an answer from its first byte on; what came before it is forgotten."""
        self._size = announced(response)
        etag = response.headers.get("ETag") or ""
        self._etag = "" if etag.startswith("W/") else etag
        self.done, self._digest = 0, hashlib.sha256()
        if self._staged is None:
            self._staged = self._placing.file(self._path, self._size)
        else:
            self._staged.clear()

    def _check_goes_on(self, response: httpx2.Response) -> None:
        """Raise SourceError unless a partial answer has the rest of the same file (RFC 9110, 15.3.7)."""
        said = response.headers.get("Content-Range") or ""
        found = _RANGE.fullmatch(said)
        begin, end, size = (int(part) for part in found.groups()) if found else (-1, -1, -1)
        self._size = size if self._size is None else self._size
        if (
            not self.done or (begin, end, size) != (self.done, self._size - 1, self._size)
            or response.headers.get("Content-Length") not in (None, str(size - begin))
            or response.headers.get("ETag") not in (None, self._etag)
        ):  # fmt: skip
            raise SourceError(
                f"{self._shown} was asked for the bytes from {self.done} on, and answers with "
                f"{escape(said) or 'no range'}, or of another version."
            )
