"""An S3 server on loopback, moto's, that refuses requests when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BUCKET", "DENIED", "EXPIRED", "LOST_PART", "NO_UPLOAD", "SLOW_DOWN", "S3Server", "serving_s3"]

BUCKET = "bucket"
SLOW_DOWN = (503, "SlowDown", "Please reduce your request rate.")
EXPIRED = (400, "ExpiredToken", "The provided token has expired.")
LOST_PART = (400, "InvalidPart", "One or more of the specified parts could not be found.")
NO_UPLOAD = (404, "NoSuchUpload", "The specified upload does not exist.")
DENIED = (403, "AccessDenied", "Access Denied.")


@dataclass
class Refusal:
    """Requests that are refused: those that fit, from the ``nth`` on, ``times`` times; None is for ever."""

    fits: Callable[[str, str, str], bool]
    answer: tuple[int, str, str]
    nth: int = 1
    times: int | None = 1
    seen: int = 0

    def is_due(self, method: str, path: str, query: str) -> bool:
        if not self.fits(method, path, query):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


@dataclass
class S3Server:
    """``requests`` are (method, path, query) of what was asked; ``before`` is called with each first."""

    url: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    before: Callable[[str, str, str], None] = lambda method, path, query: None
    lock: Any = field(default_factory=threading.Lock)

    def refuse(self, method: str, what: str, answer: tuple[int, str, str], **when: Any) -> None:
        """Refuse requests whose path and query contain ``what``."""
        self.refusals.append(Refusal(lambda m, p, q: m == method and what in f"{p}?{q}", answer, **when))

    def unfinished(self) -> list[str]:
        """The keys of the uploads that are neither completed nor aborted."""
        import boto3

        client = boto3.client("s3", endpoint_url=self.url)
        return [one["Key"] for one in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())]

    def begin(self, method: str, path: str, query: str) -> tuple[int, str, str] | None:
        with self.lock:
            self.requests.append((method, path, query))
            due = [one.answer for one in self.refusals if one.is_due(method, path, query)]
        self.before(method, path, query)
        return due[0] if due else None


@contextmanager
def serving_s3() -> Iterator[S3Server]:
    """Give a server with an empty bucket, on a port of its own, until the block ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: object) -> None:
            """Say nothing."""

    moto, found = DomainDispatcherApplication(create_backend_app), S3Server()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        method, path, query = (environ[name] for name in ("REQUEST_METHOD", "PATH_INFO", "QUERY_STRING"))
        refused = found.begin(method, path, query)
        if refused is None:
            return moto(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        status, code, message = refused
        start_response(f"{status} {code}", [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()]

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    found.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), name="s3", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
