"""Files from web addresses: streamed into a temp file, held against the length that the server said."""

from __future__ import annotations

import base64
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from ..engine import StagedFile
from ..errors import SourceError
from ..text import escape
from ..version import __version__
from .origin import Origin
from .placing import Placing

__all__ = ["download"]

TIMEOUT = 60.0
"""Seconds without a byte after which a server is given up."""
CHUNK = 1 << 20


def download(origin: Origin, path: str, placing: Placing) -> tuple[StagedFile, str]:
    """Fetch an address into a temp file for ``path``; returns it and the SHA-256 of its bytes.

    Raises SourceError where it cannot be had whole.
    """
    with _response(origin) as response:
        said = response.headers.get("Content-Length")
        size = int(said) if said is not None and said.isdigit() else None
        staged = placing.file(path, size)
        digest, done = hashlib.sha256(), 0
        for chunk in _chunks(origin, response):
            if size is not None and done + len(chunk) > size:
                raise SourceError(f"{escape(origin.shown)} sent more than the {size} bytes that it announced.")
            staged.write(done, chunk)
            digest.update(chunk)
            done += len(chunk)
        if size is not None and done != size:
            raise SourceError(f"{escape(origin.shown)} broke off: {done} of {size} bytes came.", hint="Try again.")
        if not done:
            raise SourceError(f"{escape(origin.shown)} is empty.")
        staged.flush(size)
        return staged, digest.hexdigest()


@contextmanager
def _response(origin: Origin) -> Iterator[Any]:
    try:
        response = urllib.request.urlopen(_request(origin), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise SourceError(f"{escape(origin.shown)} cannot be had: {error.code} {escape(error.reason)}.") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        raise SourceError(f"{escape(origin.shown)} cannot be reached: {escape(str(why))}.") from None
    with response:
        yield response


def _request(origin: Origin) -> urllib.request.Request:
    """Return the request; credentials of the address become a header that no redirect passes on."""
    parts = urlsplit(origin.path)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        parts._replace(netloc=host).geturl(), headers={"User-Agent": f"ckptsurgeon/{__version__}"}
    )
    if credentials:
        secret = base64.b64encode(unquote(credentials).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


def _chunks(origin: Origin, response: Any) -> Iterator[bytes]:
    try:
        while chunk := response.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise SourceError(f"{escape(origin.shown)} broke off: {escape(str(error))}.", hint="Try again.") from None
