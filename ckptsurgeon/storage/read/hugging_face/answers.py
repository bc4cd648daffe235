"""What a hub answers, held against what it can mean before the hub's client sees it: the client makes paths of it.

The client joins the ETag, the commit and the names of a listing to the folder of its cache, where one that is absolute
or has ``..`` in it leads anywhere (``huggingface_hub``, ``file_download.py``).
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ....errors import SourceError
from ....util.text import escape, human_bytes
from ..http.pace import LONGEST_WAIT_S, Paces, follow, watch
from ..http.spool import Room, existing

if TYPE_CHECKING:
    import httpx2

__all__ = ["checked_answers", "digest_said", "is_commit", "is_digest", "is_plain_path"]

LISTING_BYTES = 64 << 20
"""A page of a listing has a thousand names."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?')
_RESOLVED = re.compile(r"/resolve/[^/]+/(.+)")
_COMMIT_HEADER, _ETAG_HEADER = "X-Repo-Commit", "X-Linked-Etag"


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit, and so the same for ever."""
    return _COMMIT.fullmatch(revision) is not None


def is_digest(name: str) -> bool:
    """Whether a name is a digest: git's SHA-1, or SHA-256. Nothing else is the name of a file in the cache."""
    return _DIGEST.fullmatch(name) is not None


def is_plain_path(path: object) -> bool:
    """Whether a path that a hub says stays in its folder, on every system."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path or len(path) > 4096:
        return False
    parts = path.split("/")
    try:
        return not any(part in ("", ".", "..") or part[1:2] == ":" or len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def digest_said(headers: httpx2.Headers) -> str:
    """Return the digest that an answer's headers give of a file, '' where they give none."""
    found = _ETAG.fullmatch(headers.get(_ETAG_HEADER) or headers.get("ETag") or "")
    return found[1] if found else ""


@contextmanager
def checked_answers(commit: str, digest_of: Callable[[str], str]) -> Iterator[None]:
    """Let the hub's client see no answer that was not checked; what is wrong with one is raised as a SourceError.

    ``commit`` is the one that was asked for, '' where a branch was. ``digest_of`` is asked for the digest of a file
    whose ETag is none.
    """
    from huggingface_hub import get_session

    paces = Paces()

    def plain(request: httpx2.Request) -> None:
        request.headers["Accept-Encoding"] = "identity"  # what is packed may be larger than is bearable
        request.extensions["trace"] = watch
        paces.asked(f"{request.method} {request.url}")

    def check(response: httpx2.Response) -> None:
        paces.answered(again=response.is_success)
        _check_wait(response)
        _check_commit(response, commit)
        if response.request.method == "HEAD":
            _check_etag(response, digest_of)
            return
        is_listing = response.request.url.path.startswith("/api/")
        if is_listing or response.is_error:
            response.stream = _limited(response.stream, LISTING_BYTES)
        elif response.is_success:
            response.stream = _limited(response.stream)
        if is_listing and response.is_success:
            _check_listing(response)

    hooks = get_session().event_hooks
    hooks["request"].append(plain)
    hooks["response"].append(check)
    try:
        yield
    finally:
        hooks["request"].remove(plain)
        hooks["response"].remove(check)
        follow(None)


def _check_wait(response: httpx2.Response) -> None:
    """Raise SourceError where a hub asks for more patience than there is: its client waits as long as it says."""
    said = response.headers.get("Retry-After", "").strip()
    resets = re.search(r";\s*t\s*=\s*(\d{1,9})", response.headers.get("ratelimit", ""))
    wait_s = float(said) if said.isascii() and said.isdigit() else float(resets[1]) if resets else 0.0
    if wait_s > LONGEST_WAIT_S and response.is_error:
        raise SourceError(f"the hub asks to wait {wait_s:.0f} s.", hint="Try again later.")


def _check_commit(response: httpx2.Response, commit: str) -> None:
    said = response.headers.get(_COMMIT_HEADER)
    if said is None:
        return
    if not is_commit(said):
        raise SourceError(f"the hub answers with a commit that is none: {escape(said, 80)}.")
    if commit and said != commit:
        raise SourceError(f"the hub was asked for the commit {commit}, and answers with {said}.")


def _check_etag(response: httpx2.Response, digest_of: Callable[[str], str]) -> None:
    """Let a file be called by a digest: that of the hub's listing, where its ETag is another text (a mirror's own)."""
    said = response.headers.get(_ETAG_HEADER) or response.headers.get("ETag")
    if said is None or digest_said(response.headers):
        return
    found = _RESOLVED.search(response.request.url.path)
    name = unquote(found[1]) if found else ""
    digest = digest_of(name) if name else ""
    if not is_digest(digest):
        what = f"the file {escape(name)}" if name else "a file"
        raise SourceError(f"the hub calls {what} by what is no digest, and its listing has none: {escape(said, 80)}.")
    response.headers[_ETAG_HEADER] = f'"{digest}"'


def _check_listing(response: httpx2.Response) -> None:
    """Raise SourceError where an answer of the hub's API is too long, or has a commit, digest or path that is none."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceError("the hub sends its listing packed, which was not asked for.")
    try:
        told = json.loads(response.read())
    except (ValueError, RecursionError):
        raise SourceError("the hub answers with what is no listing.") from None
    for row in told if isinstance(told, list) else [told]:
        if isinstance(row, dict):
            _check_row(row)


def _check_row(row: dict[str, Any]) -> None:
    lfs = row.get("lfs")
    digests = [row.get("oid"), row.get("blobId"), lfs.get("oid") if isinstance(lfs, dict) else None]
    if not all(one is None or (isinstance(one, str) and is_digest(one)) for one in digests):
        raise SourceError(f"the hub's listing has a digest that is none: {escape(str(digests), 200)}.")
    commit = row.get("sha")
    if commit is not None and not (isinstance(commit, str) and is_commit(commit)):
        raise SourceError(f"the hub answers with a commit that is none: {escape(str(commit), 80)}.")
    siblings = row.get("siblings")
    files = [one.get("rfilename") for one in siblings if isinstance(one, dict)] if isinstance(siblings, list) else []
    for path in (row["path"], *files) if "path" in row else files:
        if not is_plain_path(path):
            raise SourceError(f"the hub's listing has a file outside its folder: {escape(str(path), 200)}.")


def _limited(stream: Any, most: int | None = None) -> Any:
    """Return a body that may be no longer than is bearable: ``most`` bytes, or what the cache's disk has room for."""
    import httpx2
    from huggingface_hub import constants

    class Limited(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            came, room = 0, Room(lambda: os.statvfs(existing(constants.HF_HUB_CACHE)))
            for part in stream:
                came += len(part)
                if most is not None and came > most:
                    raise SourceError(f"the hub's answer is longer than {human_bytes(most)}.")
                if most is None and not room.take(len(part)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), constants.HF_HUB_CACHE)
                yield part

        def close(self) -> None:
            stream.close()

    return Limited()
