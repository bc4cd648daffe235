"""Files from web addresses: streamed into a temp file, resumed where they broke off, held against what was said."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..engine import StagedFile
from ..errors import SourceError
from ..text import escape
from .origin import Origin
from .placing import Placing
from .web import InterruptedDownloadError, chunks, response

if TYPE_CHECKING:
    from ..engine import Progress

__all__ = ["Downloaded", "download"]

TRIES = 3
"""How often a request is made again that brought nothing new."""
PAUSE_S = 1.0
"""Before the first of them, where the server does not say; twice that before each further one."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


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
    body, tries, furthest = _Body(origin, path, placing, progress), 0, 0
    while True:
        try:
            with response(origin, body.wanted(etag)) as answer:
                if answer.status == 304:
                    return None
                body.take(answer)
            return body.whole(sha256)
        except InterruptedDownloadError as error:
            tries, furthest = (1 if body.done > furthest else tries + 1), max(furthest, body.done)
            if tries > TRIES:
                raise SourceError(error.message, hint=error.hint) from None
            time.sleep(PAUSE_S * 2 ** (tries - 1) if error.wait_s is None else error.wait_s)


class _Body:
    """What has come of a file so far."""

    def __init__(self, origin: Origin, path: str, placing: Placing, progress: Progress | None) -> None:
        self.done = 0
        self._origin, self._path, self._placing, self._progress = origin, path, placing, progress
        self._staged: StagedFile | None = None
        self._size: int | None = None
        self._etag = ""
        self._digest = hashlib.sha256()

    def wanted(self, etag: str) -> dict[str, str]:
        """Return the headers of the next request: for the rest, where it can be told to be of the same file."""
        if self.done and self._etag:
            return {"Range": f"bytes={self.done}-", "If-Range": self._etag}
        return {"If-None-Match": etag} if etag and self._staged is None else {}

    def take(self, answer: Any) -> None:
        """Write what an answer brings; raises SourceError where it is not what was asked for, or ends too soon."""
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise SourceError(f"{escape(self._origin.shown)} comes compressed, which was not asked for.")
        if answer.status == 206:
            self._check_goes_on(answer)
        else:
            self._begin(answer)
        assert self._staged is not None
        for chunk in chunks(self._origin, answer):
            if self._size is not None and self.done + len(chunk) > self._size:
                raise SourceError(
                    f"{escape(self._origin.shown)} sent more than the {self._size} bytes that it announced."
                )
            self._staged.write(self.done, chunk)
            self._digest.update(chunk)
            self.done += len(chunk)
            if self._progress is not None:
                self._progress(self.done, self._size or self.done)
        if self._size is not None and self.done != self._size:
            shown = escape(self._origin.shown)
            raise InterruptedDownloadError(f"{shown} broke off: {self.done} of {self._size} bytes came.")

    def whole(self, sha256: str) -> Downloaded:
        """Return the file, on disk; raises SourceError where it is empty or not the one that was meant."""
        if not self.done:
            raise SourceError(f"{escape(self._origin.shown)} is empty.")
        found = self._digest.hexdigest()
        if sha256 and found != sha256:
            raise SourceError(
                f"{escape(self._origin.shown)} is not what was asked for: its SHA-256 is {found}, not {sha256}."
            )
        assert self._staged is not None
        self._staged.flush(self._size)
        return Downloaded(self._staged, found, self._etag)

    def _begin(self, answer: Any) -> None:
        """Take an answer from its first byte on; what came before it is forgotten."""
        said = answer.headers.get("Content-Length")
        self._size = int(said) if said is not None and said.isascii() and said.isdigit() else None
        etag = answer.headers.get("ETag") or ""
        self._etag = "" if etag.startswith("W/") else etag
        self.done, self._digest = 0, hashlib.sha256()
        if self._staged is None:
            self._staged = self._placing.file(self._path, self._size)
        else:
            os.ftruncate(self._staged.fd, 0)

    def _check_goes_on(self, answer: Any) -> None:
        """Raise SourceError unless a partial answer has the rest of the same file (RFC 9110, 15.3.7)."""
        said = answer.headers.get("Content-Range") or ""
        found = _RANGE.fullmatch(said)
        begin, end, size = (int(part) for part in found.groups()) if found else (-1, -1, -1)
        self._size = size if self._size is None else self._size
        if (
            not self.done or (begin, end, size) != (self.done, self._size - 1, self._size)
            or answer.headers.get("Content-Length") not in (None, str(size - begin))
            or answer.headers.get("ETag") not in (None, self._etag)
        ):  # fmt: skip
            raise SourceError(
                f"{escape(self._origin.shown)} was asked for the bytes from {self.done} on, and answers with "
                f"{escape(said) or 'no range'}, or of another version."
            )
