"""One request to a web server: credentials for its host alone, http and https alone, failures sorted."""

from __future__ import annotations

import base64
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from ..errors import SourceError
from ..text import escape
from ..version import __version__
from .origin import Origin

__all__ = ["InterruptedDownloadError", "chunks", "response", "without_queries"]

TIMEOUT = 60.0
"""Seconds without a byte after which a server is given up."""
LONGEST_WAIT_S = 60
"""A server that asks for a longer pause is not waited for."""
CHUNK = 1 << 20
_BUSY = (408, 429, 500, 502, 503, 504)
_QUERY = re.compile(r"(?<=\S)\?[^\s'\">]+")
_PORTS = {"http": 80, "https": 443}


class InterruptedDownloadError(SourceError):
    """What may go better the next time; ``wait_s`` is what the server asks for, None where it says nothing."""

    def __init__(self, message: str, *, wait_s: int | None = None) -> None:
        super().__init__(message, hint="Try again.")
        self.wait_s = wait_s


def without_queries(text: str) -> str:
    """Return a text without the queries of the addresses in it: those of a content network are signed."""
    return _QUERY.sub("?…", text)


@contextmanager
def response(origin: Origin, headers: Mapping[str, str]) -> Iterator[Any]:
    """Give the answer to one request, 304 (not modified) among them; raises SourceError."""
    try:
        answer = _OPENER.open(_request(origin, headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 304:
            error.close()
            raise _refused(origin, error) from None
        answer = error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _unreached(origin, getattr(error, "reason", error)) from None
    with answer:
        yield answer


def chunks(origin: Origin, answer: Any) -> Iterator[bytes]:
    """Yield a body as it comes; raises InterruptedDownloadError where it ends with an error."""
    try:
        while chunk := answer.read(CHUNK):
            yield chunk
    except (OSError, http.client.HTTPException) as error:
        raise InterruptedDownloadError(f"{escape(origin.shown)} broke off: {escape(str(error))}.") from None


def _refused(origin: Origin, error: urllib.error.HTTPError) -> SourceError:
    reason = without_queries(str(error.reason).partition("\n")[0])
    said = f"{escape(origin.shown)} cannot be had: {error.code} {escape(reason)}"
    if error.code not in _BUSY:
        return SourceError(f"{said.rstrip('.')}.")
    wait = str(error.headers.get("Retry-After", "")).strip()
    wait_s = int(wait) if wait.isascii() and wait.isdigit() and len(wait) < 10 else None
    if wait_s is not None and wait_s > LONGEST_WAIT_S:
        return SourceError(f"{said.rstrip('.')}.", hint=f"The server asks to wait {wait_s} s.")
    return InterruptedDownloadError(f"{said.rstrip('.')}.", wait_s=wait_s)


def _unreached(origin: Origin, why: object) -> SourceError:
    said = f"{escape(origin.shown)} cannot be reached: {escape(without_queries(str(why)))}."
    passing = isinstance(why, (TimeoutError, ConnectionResetError, http.client.HTTPException))
    return InterruptedDownloadError(said) if passing else SourceError(said)


def _request(origin: Origin, headers: Mapping[str, str]) -> urllib.request.Request:
    """Return the request; credentials of the address become a header that no redirect to another host passes on."""
    parts = urlsplit(origin.path)
    credentials, _, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(
        parts._replace(netloc=host).geturl(), headers={"User-Agent": f"ckptsurgeon/{__version__}", **headers}
    )
    if credentials:
        secret = base64.b64encode(unquote(credentials).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    return request


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirects within http and https; credentials go along to the same origin alone."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in _PORTS:
            raise urllib.error.URLError(f"it redirects to {urlsplit(newurl).scheme}:, which is not followed")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        secret = req.unredirected_hdrs.get("Authorization")
        if found is not None and secret and _origin(newurl) == _origin(req.full_url):
            found.add_unredirected_header("Authorization", secret)
        return found


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return what credentials belong to (RFC 6454): scheme, host and port."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


_OPENER = urllib.request.build_opener(_Redirects)
