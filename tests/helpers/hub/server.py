"""A hub on loopback that the real ``huggingface_hub`` talks to, and that answers wrongly when it is told to."""

from __future__ import annotations

import ssl
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from http.server import ThreadingHTTPServer
from typing import Any
from unittest import mock

import httpx2

from .faults import Fault
from .repository import Content, Repository, Stored

__all__ = ["Hub", "Request", "serving"]


@dataclass
class Request:
    """One request as it came, and what became of it: ``sent`` counts the bytes of the body, ``headers`` are small."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    status: int = 0
    sent: int = 0

    @property
    def credentials(self) -> str:
        return self.headers.get("authorization", "")


@dataclass
class _Planned:
    path: str
    fault: Fault
    method: str
    nth: int
    times: int | None
    seen: int = 0

    def is_due(self, request: Request) -> bool:
        if self.method not in ("*", request.method) or not fnmatchcase(request.path, self.path):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


@dataclass
class Hub:
    """What is served, what was asked, and what goes wrong.

    ``repository`` adds one for ``hf://``; ``file`` one plain file at ``/files/NAME``, with credentials if ``user`` is
    ``name:password``. ``stored`` has what was uploaded under LFS, by its SHA-256. ``fail`` plans a fault for the
    requests to a path, a glob.
    """

    url: str = ""
    page_size: int = 1000
    repositories: dict[str, Repository] = field(default_factory=dict)
    files: dict[str, Stored] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)
    _planned: list[_Planned] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def repository(self, name: str, files: Mapping[str, Content] | None = None, **options: Any) -> Repository:
        """Add a repository, with one commit on main where files are given."""
        found = self.repositories[name] = Repository(name, **options)
        if files is not None:
            found.commit(files)
        return found

    def file(self, name: str, content: Content, *, user: str = "", etag: str | None = None) -> str:
        """Serve a file; returns its address, without credentials."""
        self.files[name] = Stored(content, said_etag=etag)
        if user:
            self.users[name] = user
        return f"{self.url}/files/{name}"

    def fail(self, path: str, fault: Fault, *, method: str = "GET", nth: int = 1, times: int | None = 1) -> None:
        """Answer wrongly from the ``nth`` request on that fits, ``times`` times; None is for ever, "*" any method."""
        self._planned.append(_Planned(path, fault, method, nth, times))

    def mend(self) -> None:
        """Forget all faults that were planned."""
        self._planned.clear()

    def forget(self) -> None:
        """Forget what was asked so far."""
        self.requests.clear()

    def asked(self, path: str = "*", method: str = "*") -> list[Request]:
        """The requests to a path, in order."""
        return [one for one in self.requests if fnmatchcase(one.path, path) and method in ("*", one.method)]

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(one.sent for one in self.requests)

    def begin(self, request: Request) -> Fault | None:
        """Note a request as it comes; returns what shall go wrong with it."""
        with self._lock:
            self.requests.append(request)
            wrong = [plan.fault for plan in self._planned if plan.is_due(request)]
        return wrong[0] if wrong else None


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that hung up, as one does that was cut off on purpose."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving() -> Iterator[Hub]:
    """Give a hub that runs on a port of its own until the block ends."""
    from .handler import Handler

    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with mock.patch("httpx2._transports.default.create_ssl_context", _one_context):
            yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@cache
def _one_context(*, verify: bool, cert: None, trust_env: bool) -> ssl.SSLContext:
    """Read the certificates of all authorities once, not for each client of a server without any: 20 ms each."""
    return httpx2.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
