"""Sends requests to web servers, with retries; credentials are sent only to the host that they were given for.

HTTP semantics after RFC 9110: ranges (14), validators (8.8), redirects (15.4), Retry-After (10.2.3).
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from ....errors import ConfigError, SourceError
from ....util.text import count, escape, without_secrets
from ....util.version import __version__
from ..uri import check_address, shown
from .timeouts import LONGEST_WAIT_S, TimeLimit, count_reads, limit_reads, timeout_s

if TYPE_CHECKING:
    import httpx2

__all__ = [
    "Address",
    "RetryLimits",
    "address_of",
    "ask",
    "close_connections",
    "connection_errors",
    "content_length",
    "offset",
    "status_error",
]

CONNECT_S = 15.0
"""The most seconds that connecting to a server may take."""
TRIES = 5
"""After this many failed attempts, a request is not sent again."""
ENOUGH = 64 << 10
"""If an attempt receives at least this many bytes, the count of failures starts again at 0."""
REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {408, 425, 429, 500, 502, 503, 504}

sleep = time.sleep


@dataclass(frozen=True)
class Address:
    """A web address: ``url`` is the URL without credentials, ``shown`` its form in messages.

    ``secret`` are headers, such as credentials, that are sent only to the host of this address. ``commit`` is set if
    the address belongs to a commit of a hub, whose content never changes.
    """

    url: str
    shown: str
    secret: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""


def address_of(url: str) -> Address:
    """Return the Address for a URL; credentials in the URL become a header that is sent only to the URL's host.

    Raises ConfigError for an invalid address.
    """
    check_address(url)
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    secret = {}
    if credentials:
        told = base64.b64encode(unquote(credentials).encode()).decode()
        secret["Authorization"] = f"Basic {told}"
    return Address(urlunsplit(parts._replace(netloc=host, fragment="")), shown(url), secret)


class RetryLimits:
    """Limits the retries of one request: their number, and the time without progress.

    Each wait between two attempts is longer than the one before. One attempt may take half of the allowed time, so that
    there is time for a second attempt if a connection hangs.
    """

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._failed = 0
        self._limit = timeout_s()
        self._since = time.monotonic()
        self._waited = 0.0

    def pace(self) -> TimeLimit:
        """Return the time limit of one attempt."""
        import httpcore2

        return TimeLimit(self._limit / 2, httpcore2.ReadTimeout)

    def again(self, what: str, wait_s: float = 0.0, *, came: int = 0) -> None:
        """Wait before the next attempt; raises SourceError with the reason ``what`` if no attempt is left.

        ``what`` is the reason why the last attempt failed, ``came`` is how many bytes it received, and ``wait_s`` is
        how many seconds the server asks to wait.
        """
        if came >= ENOUGH:
            self._failed, self._since, self._waited = 0, time.monotonic(), 0.0
        self._failed += 1
        self._waited += wait_s
        is_late = time.monotonic() - self._since >= self._limit
        if self._failed >= TRIES or is_late or self._waited > LONGEST_WAIT_S:
            hint = f"Tried {count(self._failed, 'time')}; try again later."
            if self._waited > LONGEST_WAIT_S:
                hint = f"The server asks to wait {wait_s:.0f} s."
            elif is_late:
                hint = f"The server sent too little in {self._limit:g} s; --timeout SECONDS waits longer."
            raise SourceError(
                f"{escape(self._shown)} {escape(without_secrets(what))}.", hint=hint, rule="late" * is_late
            )
        before = time.monotonic()
        sleep(max(wait_s, 0.25 * 2**self._failed))
        self._since += time.monotonic() - before


@contextmanager
def ask(address: Address, patience: RetryLimits, **headers: str) -> Iterator[httpx2.Response]:
    """Yield the response to a GET request before its body is read, after following redirects.

    If the server is busy, or if a connection stalls or breaks, the request is sent again; ``patience`` limits these
    retries. If the server refuses the connection or does not exist, it is not sent again. Raises SourceError if there
    is no usable response.
    """
    import httpx2

    while True:
        try:
            response = _follow(address, headers, patience.pace())
        except httpx2.ConnectError as error:
            why = escape(without_secrets(_why(error)))
            raise SourceError(f"{escape(address.shown)} cannot be reached: {why}.", hint="Try again later.") from None
        except connection_errors() as error:
            patience.again(f"cannot be fetched: {_why(error)}")
            continue
        if response.status_code not in _BUSY:
            break
        response.close()
        patience.again(f"cannot be fetched: {_status(response)}", _retry_after(response))
    try:
        yield response
    finally:
        limit_reads(None)
        response.close()


def content_length(response: httpx2.Response) -> int | None:
    """Return the Content-Length of a response; None if it is missing or invalid."""
    said = response.headers.get("Content-Length", "")
    return offset(said) if said.isascii() and said.isdigit() else None


def offset(said: str) -> int | None:
    """Return a number of bytes from ``said``, which has only digits; None if it is larger than any file can be."""
    return int(said) if len(said) <= 19 and int(said) < 1 << 63 else None


def status_error(address: Address, response: httpx2.Response) -> SourceError:
    """Return the error for a response whose status is a failure."""
    code = response.status_code
    hint = ""
    if code in (401, 403):
        hint = "The server needs credentials, or did not accept those that were given."
    return SourceError(f"{escape(address.shown)} cannot be fetched: {escape(_status(response))}.", hint=hint)


def connection_errors() -> tuple[type[Exception], ...]:
    """Return the types of exceptions for a connection that cannot be opened, stalls, breaks or ends too early."""
    import httpx2

    return (httpx2.TransportError,)


_CREATING = Lock()
"""A lock for creating the HTTP client: all threads share one client, so that it can be closed."""


def close_connections() -> None:
    """Close the connections that were left open for further requests."""
    with _CREATING:
        if _created_client.cache_info().currsize:
            _created_client().close()
            _created_client.cache_clear()


def _client() -> httpx2.Client:
    with _CREATING:
        return _created_client()


@cache
def _created_client() -> httpx2.Client:
    import httpx2

    agent = {"User-Agent": f"ckptsurgeon/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
    return httpx2.Client(headers=agent, follow_redirects=False)


def _follow(address: Address, headers: Mapping[str, str], pace: TimeLimit) -> httpx2.Response:
    """Return the first response that is not a redirect; its ``history`` has the redirects.

    Secret headers are sent only to the origin (scheme, host, port) of ``address``. ``pace`` limits the total time of
    all redirects and of the body. Raises SourceError for too many redirects, or for a redirect to an invalid address.
    """
    import httpx2

    url, timeout = address.url, httpx2.Timeout(None, connect=CONNECT_S)
    before: list[httpx2.Response] = []
    limit_reads(pace)
    pace.asked()
    for _ in range(REDIRECTS):
        own = address.secret if _origin(url) == _origin(address.url) else {}
        try:
            request = _client().build_request(
                "GET", url, headers={**headers, **own}, timeout=timeout, extensions={"trace": count_reads}
            )
            response = _client().send(request, stream=True)
        except (httpx2.InvalidURL, ValueError, OverflowError) as error:
            what = "redirects to an invalid address" if before else "cannot be fetched: the address is invalid"
            raise SourceError(f"{escape(address.shown)} {what}: {escape(str(error))}.") from None
        if response.status_code not in _REDIRECTS or "Location" not in response.headers:
            pace.answered()
            response.history = before
            return response
        before.append(response)
        response.close()
        url = _redirected(address, url, response.headers["Location"])
    raise SourceError(f"{escape(address.shown)} cannot be fetched: it has too many redirects.")


def _redirected(address: Address, url: str, location: str) -> str:
    """Return the URL to which a redirect leads; raises SourceError unless it is http(s), or if https leads to http."""
    try:
        there = urljoin(url, location)
        scheme = urlsplit(there).scheme.lower()
        if scheme in ("http", "https"):
            check_address(there)
    except (ValueError, ConfigError):
        raise SourceError(f"{escape(address.shown)} is redirected to an invalid address.") from None
    if scheme not in ("http", "https") or (scheme == "http" and urlsplit(url).scheme == "https"):
        raise SourceError(
            f"{escape(address.shown)} is redirected to a {escape(scheme)}: address, which is not followed."
        )
    return there


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    with suppress(ValueError):
        return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    return "", "", 0


def _status(response: httpx2.Response) -> str:
    return f"{response.status_code} {without_secrets(response.reason_phrase[:80])}".strip().rstrip(".")


def _retry_after(response: httpx2.Response) -> float:
    """Return the seconds in a response's Retry-After header; 0 if the header is missing, or is a date."""
    said = response.headers.get("Retry-After", "")
    return float(said) if said.isascii() and said.isdigit() else 0.0


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
