"""Downloads files from web addresses into temp files; continues after a lost connection, and checks size and digest."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import OutputError, SourceError
from ...util.text import escape
from ..read.http.client import Address, RetryLimits, address_of, ask, connection_errors, content_length, status_error
from ..read.http.spool import FreeSpace
from ..write.staged_file import StagedFile
from .origin import FetchOrigin
from .placing import FileTransaction

if TYPE_CHECKING:
    import httpx2

    from ..read.base import Progress

__all__ = ["DownloadedFile", "download"]

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")


@dataclass(frozen=True)
class DownloadedFile:
    """A file that was downloaded completely: its temp file, its SHA-256, and its strong ETag or ''."""

    staged: StagedFile
    sha256: str
    etag: str


def download(
    origin: FetchOrigin,
    path: str,
    placing: FileTransaction,
    *,
    etag: str = "",
    sha256: str = "",
    progress: Progress | None = None,
) -> DownloadedFile | None:
    """Download the file at an address into a temp file, which ``placing`` later moves to ``path``.

    Returns None if the ETag of the file is still ``etag``. Raises SourceError if the file cannot be fetched completely,
    or does not match ``sha256``.
    """
    address = address_of(origin.path)
    patience, body = RetryLimits(address.shown), _Body(address, path, placing, progress)
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
    """Collects the bytes of a file that were received so far, over one or more requests."""

    def __init__(self, address: Address, path: str, placing: FileTransaction, progress: Progress | None) -> None:
        self.done = 0
        self._address, self._path, self._placing, self._progress = address, path, placing, progress
        self._staged: StagedFile | None = None
        self._size: int | None = None
        self._etag = ""
        self._digest = hashlib.sha256()
        self._room = FreeSpace(lambda: os.statvfs(os.path.dirname(os.path.abspath(path))))

    def wanted(self, etag: str) -> dict[str, str]:
        """Return the headers of the next request: those that ask only for what is missing.

        If a part of the file was received with an ETag, the headers ask only for the rest of the same file. If nothing
        was received yet, they ask for the file only if its ETag differs from ``etag``.
        """
        if self.done and self._etag:
            return {"Range": f"bytes={self.done}-", "If-Range": self._etag}
        return {"If-None-Match": etag} if etag and self._staged is None else {}

    def take(self, response: httpx2.Response) -> str:
        """Write the body of a response to the file; return '' if the file is complete, else the reason why it is not.

        Raises SourceError if the response does not match the request.
        """
        if response.status_code not in (200, 206):
            raise status_error(self._address, response)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(
                f"{self._shown}: the server compressed the answer without being asked to, so its bytes cannot be "
                "checked.",
                hint="Download the file in another way, and pass its path.",
            )
        if response.status_code == 206:
            self._check_goes_on(response)
        else:
            self._begin(response)
        whole = True
        try:
            for chunk in response.iter_raw():
                self._write(chunk)
        except connection_errors():
            whole = False
        if whole and self._size in (None, self.done):
            return ""
        size = "" if self._size is None else f"of {self._size} "
        return f"broke off: {self.done} {size}bytes were received"

    @property
    def _shown(self) -> str:
        return escape(self._address.shown)

    def _write(self, chunk: bytes) -> None:
        if self._size is not None and self.done + len(chunk) > self._size:
            raise SourceError(f"{self._shown} sent more than the {self._size} bytes that it announced.")
        assert self._staged is not None
        if self._size is None and not self._room.take(len(chunk)):
            raise OutputError(
                f"cannot write {escape(self._path)}: there is almost no space left.", hint="Make room on this disk."
            )
        self._staged.write(self.done, chunk)
        self._digest.update(chunk)
        self.done += len(chunk)
        if self._progress is not None:
            self._progress(self.done, self._size or self.done)

    def whole(self, sha256: str) -> DownloadedFile:
        """Flush the complete file to disk, and return it.

        Raises SourceError if the file is empty or does not match ``sha256``.
        """
        if not self.done:
            raise SourceError(f"{self._shown} is empty.")
        found = self._digest.hexdigest()
        if sha256 and found != sha256:
            raise SourceError(
                f"{self._shown} has the wrong content: its SHA-256 is {found}, not {sha256}.",
                hint="Compare the expected SHA-256 with the one that the publisher gives, or fetch the file again.",
            )
        assert self._staged is not None
        self._staged.flush(self._size)
        return DownloadedFile(self._staged, found, self._etag)

    def _begin(self, response: httpx2.Response) -> None:
        """Discard the bytes that were received before, and start at byte 0, since the response has the whole file."""
        self._size = content_length(response)
        etag = response.headers.get("ETag") or ""
        self._etag = "" if etag.startswith("W/") else etag
        self.done, self._digest = 0, hashlib.sha256()
        if self._staged is None:
            self._staged = self._placing.file(self._path, self._size)
        else:
            self._staged.clear()

    def _check_goes_on(self, response: httpx2.Response) -> None:
        """Raise SourceError if a partial response is of another file, or begins at a wrong byte (RFC 9110, 15.3.7)."""
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
                f"{self._shown}: the server was asked for the bytes from {self.done} on, but sent "
                f"{escape(said) or 'no range'}, or another version of the file."
            )
