"""What a server does wrong, when it is asked to: one small fact each, put into ``Hub.fail``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "Fault", "chunked", "dropped", "first", "forbidden", "gated", "gzipped", "hanging", "huge_length", "less",
    "missing_header", "no_ranges", "other_etag", "redirect", "short_body", "slow", "status", "too_many",
    "wrong_bytes", "wrong_range",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One way to answer wrongly. Everything that is not said is as it should be.

    ``headers`` are put in place of the true ones, None takes one away. ``cut`` bytes of the body come before the
    connection ends: with a reset if ``reset``. The server waits ``pause_s`` after every block of the body and
    ``hang_after`` that many bytes for as long as it runs. ``before`` is called first, before the answer is made.
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


def first(act: Callable[[], object]) -> Fault:
    """A true answer, made after something else has happened: a branch has moved, a file has changed."""
    return Fault("changes", before=act)
