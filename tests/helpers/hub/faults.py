"""What a server does wrong, when it is asked to: one small fact each, put into ``Hub.fail``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any

__all__ = [
    "Fault", "chunked", "dripping", "dripping_chunk", "dripping_head", "dropped", "endless", "endless_hints", "first", "forbidden", "gated", "gzipped", "hanging", "header", "huge_length", "less", "listing",
    "missing_header", "no_ranges", "other_etag", "redirect", "short_body", "slow", "status", "too_many",
    "wrong_bytes", "wrong_range",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One way to answer wrongly. Everything that is not said is as it should be.

    ``headers`` are put in place of the true ones, None takes one away. ``cut`` bytes of the body come before the
    connection ends: with a reset if ``reset``. The server waits ``pause_s`` after every block of the body and
    ``hang_after`` that many bytes for as long as it runs. ``before`` is called first, before the answer is made.
    ``rewrite`` makes what a listing says of what it should. ``raw`` gives the bytes that are sent in place of an answer,
    with ``pause_s`` after each piece, until the server closes.
    """

    name: str
    status: int = 0
    headers: Mapping[str, str | None] = field(default_factory=dict)
    cut: int | None = None
    reset: bool = False
    flip: bool = False
    shift: int = 0
    ignore_range: bool = False
    chunked: bool = False
    gzip: bool = False
    pause_s: float = 0.0
    hang_after: int | None = None
    before: Callable[[], object] | None = None
    rewrite: Callable[[Any], Any] | None = None
    raw: Callable[[], Iterator[bytes]] | None = None


def short_body(nbytes: int = 10) -> Fault:
    """The connection is closed in order, before all that was announced has come."""
    return Fault("short body", cut=nbytes)


def dropped(nbytes: int = 0) -> Fault:
    """The connection is reset in the middle of the body."""
    return Fault("dropped connection", cut=nbytes, reset=True)


def less(nbytes: int = 10) -> Fault:
    """A whole answer of a file that is shorter than it should be: Content-Length says the shorter length."""
    return Fault("less than the file", cut=nbytes, headers={"Content-Length": str(nbytes)})


def wrong_bytes() -> Fault:
    """As many bytes as there should be, one of them another."""
    return Fault("wrong bytes", flip=True)


def wrong_range(shift: int = 16) -> Fault:
    """Content-Range tells another place than was asked for, and the bytes are of that place."""
    return Fault("another range", shift=shift)


def other_etag() -> Fault:
    """The ETag of another version."""
    return Fault("another ETag", headers={"ETag": '"0123456789abcdef"'})


def no_ranges() -> Fault:
    """A server that knows no ranges: 200 and the whole file, whatever was asked for."""
    return Fault("no ranges", ignore_range=True, headers={"Accept-Ranges": None})


def too_many(retry_after: int = 2) -> Fault:
    """429 with the seconds to wait."""
    return Fault("too many requests", status=429, headers={"Retry-After": str(retry_after)})


def status(code: int) -> Fault:
    """Any other status: 500, 503, 404 …, with a page of HTML."""
    return Fault(f"status {code}", status=code)


def redirect(url: str, code: int = 302) -> Fault:
    """Elsewhere: another host, another scheme, or itself."""
    return Fault(f"redirect {code}", status=code, headers={"Location": url})


def gated(code: int = 403) -> Fault:
    """As the hub answers who has not accepted a model's terms."""
    return Fault(
        "gated", status=code, headers={"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
    )


def forbidden() -> Fault:
    """A token that lacks the right."""
    return Fault("forbidden", status=403, headers={"X-Error-Message": "Your token may not read this."})


def slow(pause_s: float = 0.02) -> Fault:
    """A body that comes in drops."""
    return Fault("slow body", pause_s=pause_s)


def hanging(nbytes: int = 10) -> Fault:
    """A body that stops coming, on a connection that stays open."""
    return Fault("hanging body", hang_after=nbytes)


def huge_length(nbytes: int = 1 << 60) -> Fault:
    """A length that no disk has room for."""
    return Fault("huge Content-Length", headers={"Content-Length": str(nbytes), "X-Linked-Size": str(nbytes)})


def chunked() -> Fault:
    """No Content-Length: the body comes in chunks (RFC 9112, 7.1)."""
    return Fault("chunked", chunked=True)


def gzipped() -> Fault:
    """Content-Encoding: gzip, whatever the client accepts."""
    return Fault("gzip", gzip=True)


def missing_header(name: str) -> Fault:
    """An answer that lacks a header."""
    return Fault(f"no {name}", headers={name: None})


def listing(rewrite: Callable[[Any], Any]) -> Fault:
    """A listing, or what is said of a repository, that is another."""
    return Fault("another listing", rewrite=rewrite)


def header(name: str, value: str) -> Fault:
    """A header that says something else, whatever the answer is."""
    return Fault(f"{name}: {value[:40]!r}", headers={name: value})


def endless_hints() -> Fault:
    """``100 Continue`` for ever, and never an answer (RFC 9110, 15.2)."""
    return Fault("100 Continue for ever", raw=lambda: repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), pause_s=0.001)


def dripping_head(pause_s: float = 0.02) -> Fault:
    """Headers a byte at a time."""
    return Fault("a head in drops", raw=lambda: drops(b"HTTP/1.1 200 OK\r\nX-Filler: "), pause_s=pause_s)


def dripping(pause_s: float = 0.02, length: str = "Content-Length: 1048576") -> Fault:
    """A body a byte at a time."""
    head = f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode()
    return Fault("a body in drops", raw=lambda: chain([head], drops(b"")), pause_s=pause_s)


def dripping_chunk(pause_s: float = 0.02) -> Fault:
    """The extension of a chunk a byte at a time, so that no byte of the body comes at all (RFC 9112, 7.1.1)."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x="
    return Fault("a chunk's extension in drops", raw=lambda: chain([head], drops(b"")), pause_s=pause_s)


def endless(block: int = 1 << 16) -> Fault:
    """A body of which nobody says how long it is, and which has no end."""
    head = b'HTTP/1.1 200 OK\r\nETag: "1"\r\nConnection: close\r\n\r\n'
    return Fault("a body without end", raw=lambda: chain([head], repeat(bytes(block))))


def drops(head: bytes) -> Iterator[bytes]:
    """A text byte by byte, and then zeros for ever."""
    yield from (bytes([byte]) for byte in head)
    yield from repeat(b"0")


def first(act: Callable[[], object]) -> Fault:
    """A true answer, made after something else has happened: a branch has moved, a file has changed."""
    return Fault("changes", before=act)
