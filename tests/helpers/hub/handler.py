"""Answers one request: the hub's paths as its client asks for them, plain files, ranges, and the fault that is planned."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import ClassVar, NoReturn
from urllib.parse import parse_qs, quote, unquote, urlsplit

from .faults import Fault
from .repository import Repository, Stored
from .server import Hub, Request
from .uploads import answer_of_upload, received

__all__ = ["Handler"]

BLOCK = 1 << 16
NO_FAULT = Fault("none")
_API = re.compile(r"/api/models/(?P<repo>.+?)(?:/(?P<what>revision|tree|paths-info)/(?P<rev>[^/]+)(?:/(?P<path>.*))?)?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class _EndedError(Exception):
    """The request was answered."""


class Handler(BaseHTTPRequestHandler):
    """Serves ``hub``, on connections that stay open."""

    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.request_seen = Request(self.command, unquote(parts.path), parts.query, headers)
        self.posted = received(self.headers, self.rfile)
        self.fault = self.hub.begin(self.request_seen) or NO_FAULT
        if self.fault.before is not None:
            self.fault.before()
        try:
            self._answer(parts.path)
        except _EndedError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server looks for

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _send_raw(self, pieces: Iterator[bytes]) -> NoReturn:
        self.close_connection = True
        for piece in pieces:
            if self.hub.closing.wait(self.fault.pause_s) if self.fault.pause_s else self.hub.closing.is_set():
                break
            self.request_seen.sent += len(piece)
            self.wfile.write(piece)
        raise _EndedError

    def _answer(self, path: str) -> NoReturn:
        if self.fault.raw is not None:
            self._send_raw(self.fault.raw())
        if self.fault.status:
            self._refuse(self.fault.status, "", "<html>planned</html>")
        answer = answer_of_upload(self.hub, self.command, path, self.posted, self._repository)
        if answer is not None and answer[0] != 200:
            self._refuse(answer[0], *answer[1])
        if answer is not None:
            self._json(answer[1])
        if found := _API.fullmatch(path):
            revision, inside = unquote(found["rev"] or "main"), unquote(found["path"] or "")
            self._api(found["repo"], found["what"] or "revision", revision, inside)
        if found := _RESOLVE.fullmatch(path):
            self._resolve(found["repo"], unquote(found["rev"]), unquote(found["path"]))
        self._plain(unquote(path).removeprefix("/files/"))

    # --- the hub's

    def _repository(self, name: str) -> Repository:
        """The repository, for whoever may see it; a missing one and a private one look alike."""
        repository = self.hub.repositories.get(name)
        sent = self.request_seen.credentials.removeprefix("Bearer ")
        if repository is None or (repository.token and sent != repository.token):
            self._refuse(404 if sent else 401, "RepoNotFound", "Repository not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _api(self, name: str, what: str, revision: str, path: str) -> NoReturn:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        files = repository.commits[commit]
        if what == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json({"_id": "0", "id": name, "modelId": name, "sha": commit, "private": bool(repository.token),
                        "gated": "auto" if repository.gated else False, "tags": [], "downloads": 0, "likes": 0,
                        "siblings": siblings})  # fmt: skip
        if what == "paths-info":
            rows = {str(row["path"]): row for row in _rows(files, "", deep=True)}
            self._json([rows[one] for one in self._posted_paths() if one in rows])
        self._tree(files, path)

    def _posted_paths(self) -> list[str]:
        if "json" in self.headers.get("Content-Type", ""):
            return list(json.loads(self.posted)["paths"])
        return parse_qs(self.posted.decode())["paths"]

    def _tree(self, files: dict[str, Stored], folder: str) -> NoReturn:
        query = parse_qs(self.request_seen.query)
        rows = _rows(files, folder, deep=query.get("recursive", ["false"])[0].lower() == "true")
        begin = int(query.get("cursor", ["0"])[0])
        end = begin + self.hub.page_size
        headers = {}
        if end < len(rows):
            again = "&".join(f"{key}={quote(values[0])}" for key, values in query.items() if key != "cursor")
            path = urlsplit(self.path).path
            headers["Link"] = f'<{self.hub.url}{path}?{again}&cursor={end}>; rel="next"'
        self._json(rows[begin:end], headers)

    def _resolve(self, name: str, revision: str, path: str) -> NoReturn:
        repository = self._repository(name)
        commit = self._commit(repository, revision)
        if repository.gated:
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        file = repository.commits[commit].get(path)
        if file is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if file.lfs:
            headers |= {"X-Linked-Etag": file.etag, "X-Linked-Size": str(file.size)}
        if file.lfs and repository.cdn:
            self._redirect(f"{repository.cdn}/files/{file.sha256}", headers)
        self._file(file, headers)

    # --- plain files

    def _plain(self, name: str) -> NoReturn:
        file = self.hub.files.get(name)
        user = self.hub.users.get(name)
        if file is None:
            self._refuse(404, "", "not found")
        if user and self.request_seen.credentials != f"Basic {base64.b64encode(user.encode()).decode()}":
            self._refuse(401, "", "who are you?", {"WWW-Authenticate": 'Basic realm="files"'})
        self._file(file, {})

    def _file(self, file: Stored, headers: dict[str, str]) -> NoReturn:
        headers = {"ETag": file.etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if self.headers.get("If-None-Match") == file.etag:
            self._send(304, headers, None, 0, 0)
        begin, end = 0, file.size
        wanted = self.headers.get("Range")
        if wanted and not self.fault.ignore_range and self.headers.get("If-Range", file.etag) == file.etag:
            begin, end = self._range(wanted, file.size)
            begin, end = begin + self.fault.shift, min(end + self.fault.shift, file.size)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{file.size}"
            self._send(206, headers, file, begin, end)
        self._send(200, headers, file, begin, end)

    def _range(self, wanted: str, size: int) -> tuple[int, int]:
        found = _RANGE.fullmatch(wanted)
        if found is None or not any(found.groups()):
            self._refuse(400, "", f"no range: {wanted}")
        first, last = found.groups()
        begin = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if begin >= end:
            self._refuse(416, "", "", {"Content-Range": f"bytes */{size}"})
        return begin, end

    # --- what is sent

    def _json(self, data: object, headers: dict[str, str] | None = None) -> NoReturn:
        if self.fault.rewrite is not None:
            data = self.fault.rewrite(data)
        body = Stored(json.dumps(data).encode())
        self._send(200, {"Content-Type": "application/json", **(headers or {})}, body, 0, body.size)

    def _redirect(self, url: str, headers: dict[str, str]) -> NoReturn:
        self._send(302, {**headers, "Location": url}, None, 0, 0)

    def _refuse(self, code: int, error: str, message: str, headers: dict[str, str] | None = None) -> NoReturn:
        told = {"X-Error-Code": error, "X-Error-Message": message} if error else {}
        body = Stored(message.encode())
        self._send(code, {"Content-Type": "text/html", **told, **(headers or {})}, body, 0, body.size)

    def _send(self, code: int, headers: dict[str, str], file: Stored | None, begin: int, end: int) -> NoReturn:
        """Send an answer, bent as the fault says, and be done with the request."""
        if file is not None and self.fault.gzip:
            file = replace(file, content=gzip.compress(file.read(begin, end - begin)))
            begin, end = 0, file.size
            headers["Content-Encoding"] = "gzip"
        said: dict[str, str | None] = {"Content-Length": str(end - begin), **headers}
        if self.fault.chunked:
            said |= {"Content-Length": None, "Transfer-Encoding": "chunked"}
        said |= self.fault.headers
        self.request_seen.status = code
        self.send_response(code)
        for name, value in said.items():
            if value is not None:
                self.send_header(name, value.encode("utf-8", "surrogateescape").decode("latin-1"))
        self.end_headers()
        if self.command != "HEAD" and file is not None:
            self._body(file, begin, end)
        raise _EndedError

    def _body(self, file: Stored, begin: int, end: int) -> None:
        whole = self.fault.headers.get("Content-Length") in (None, str(end - begin))
        for block in self._blocks(file, begin, end):
            self.request_seen.sent += len(block)  # before the client can have it, and ask how many
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if self.fault.chunked else block)
            if self.fault.pause_s:
                self.hub.closing.wait(self.fault.pause_s)
        if self.fault.hang_after is not None:
            self.hub.closing.wait()
        if self.fault.reset:
            self._reset()
        if self.fault.cut is not None or not whole:
            self.close_connection = True
        elif self.fault.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _reset(self) -> None:
        """Close at once, without the goodbye that an orderly end has (socket(7), SO_LINGER)."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()

    def _blocks(self, file: Stored, begin: int, end: int) -> Iterator[bytes]:
        """Yield the bytes that are to come: only as many as the fault lets through, the last of them wrong if it says."""
        stops = [one for one in (self.fault.cut, self.fault.hang_after) if one is not None]
        end = min([end, *(begin + one for one in stops)])
        for at in range(begin, end, BLOCK):
            block = file.read(at, min(BLOCK, end - at))
            if self.fault.flip and at + len(block) == end:
                block = block[:-1] + bytes([block[-1] ^ 0xFF])
            yield block


def _rows(files: dict[str, Stored], folder: str, *, deep: bool) -> list[dict[str, object]]:
    """The listing of a folder, '' for the whole; with all below it where it is ``deep``."""
    begin = f"{folder}/" if folder else ""
    inside = {name: file for name, file in files.items() if name.startswith(begin)}
    parents = {"/".join(name.split("/")[:depth]) for name in inside for depth in range(1, name.count("/") + 1)}
    rows: dict[str, dict[str, object]] = {
        name: {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        for name in parents if name.startswith(begin)
    }  # fmt: skip
    rows |= {name: file.listed(name) for name, file in inside.items()}
    return [row for name, row in sorted(rows.items()) if deep or "/" not in name[len(begin) :]]
