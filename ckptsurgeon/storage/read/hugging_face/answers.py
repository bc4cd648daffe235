"""Checks a hub's responses before huggingface_hub sees them, because huggingface_hub makes paths from them.

huggingface_hub joins the ETag, the commit and the names in a listing to the path of its cache. If one of them is an
absolute path or contains ``..``, the result may be outside the cache (``huggingface_hub``, ``file_download.py``).
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
from ..http.spool import FreeSpace, nearest_existing
from ..http.timeouts import LONGEST_WAIT_S, ThreadTimeLimits, count_reads, limit_reads

if TYPE_CHECKING:
    import httpx2

__all__ = ["checked_answers", "digest_in_headers", "is_commit", "is_digest", "is_plain_path"]

LISTING_BYTES = 64 << 20
"""The most bytes of one page of a listing; a page has a thousand names."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_ETAG = re.compile(r'(?:W/)?"?([0-9a-f]{64}|[0-9a-f]{40})"?')
_RESOLVED = re.compile(r"/resolve/[^/]+/(.+)")
_COMMIT_HEADER, _ETAG_HEADER = "X-Repo-Commit", "X-Linked-Etag"


def is_commit(revision: str) -> bool:
    """Return whether a revision is a commit (40 hexadecimal digits): the content of a commit never changes."""
    return _COMMIT.fullmatch(revision) is not None


def is_digest(name: str) -> bool:
    """Return whether a name is a SHA-1 or SHA-256 in hexadecimal digits: the hub's cache names its files so."""
    return _DIGEST.fullmatch(name) is not None


def is_plain_path(path: object) -> bool:
    """Return whether ``path``, which a hub sent, stays inside its folder on every operating system."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path or len(path) > 4096:
        return False
    parts = path.split("/")
    try:
        return not any(part in ("", ".", "..") or part[1:2] == ":" or len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def digest_in_headers(headers: httpx2.Headers) -> str:
    """Return the ETag in a response's headers if it is a SHA-1 or SHA-256; '' if it is not, or if it is missing."""
    found = _ETAG.fullmatch(headers.get(_ETAG_HEADER) or headers.get("ETag") or "")
    return found[1] if found else ""


@contextmanager
def checked_answers(commit: str, digest_of: Callable[[str], str]) -> Iterator[None]:
    """Check every response in the block before huggingface_hub sees it; raises SourceError for an invalid response.

    ``commit`` is the commit that was requested, '' if the request named a branch or tag. ``digest_of`` returns the
    digest of a file whose ETag is not a digest.
    """
    from huggingface_hub import get_session

    paces = ThreadTimeLimits()

    def plain(request: httpx2.Request) -> None:
        request.headers["Accept-Encoding"] = "identity"  # a compressed answer may expand to more than the limit
        request.extensions["trace"] = count_reads
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
        limit_reads(None)


def _check_wait(response: httpx2.Response) -> None:
    """Raise SourceError if a hub asks for a wait of over ``LONGEST_WAIT_S`` seconds: huggingface_hub would wait."""
    said = response.headers.get("Retry-After", "").strip()
    resets = re.search(r";\s*t\s*=\s*(\d{1,9})", response.headers.get("ratelimit", ""))
    wait_s = float(said) if said.isascii() and said.isdigit() else float(resets[1]) if resets else 0.0
    if wait_s > LONGEST_WAIT_S and response.is_error:
        raise SourceError(
            f"the hub refused a request, and asks to wait {wait_s:.0f} s before the next.", hint="Try again later."
        )


def _check_commit(response: httpx2.Response, commit: str) -> None:
    said = response.headers.get(_COMMIT_HEADER)
    if said is None:
        return
    if not is_commit(said):
        raise SourceError(f"the hub answered with an invalid commit: {escape(said, 80)}.")
    if commit and said != commit:
        raise SourceError(f"the hub was asked for the commit {commit}, but answered with {said}.")


def _check_etag(response: httpx2.Response, digest_of: Callable[[str], str]) -> None:
    """Replace an ETag that is not a digest by the digest in the hub's listing; some mirrors send such ETags.

    Raises SourceError if no digest can be read there.
    """
    said = response.headers.get(_ETAG_HEADER) or response.headers.get("ETag")
    if said is None or digest_in_headers(response.headers):
        return
    found = _RESOLVED.search(response.request.url.path)
    name = unquote(found[1]) if found else ""
    digest = digest_of(name) if name else ""
    if not is_digest(digest):
        what = f"the file {escape(name)}" if name else "a file"
        raise SourceError(
            f"the hub sent {what} with the ETag {escape(said, 80)}, which is not a SHA-1 or SHA-256, and its listing "
            "gave no digest of this file, so the file could not be checked.",
            hint="Fetch the file from another hub, or by its web address.",
        )
    response.headers[_ETAG_HEADER] = f'"{digest}"'


def _check_listing(response: httpx2.Response) -> None:
    """Raise SourceError if a response of the hub's API is too long, or has an invalid commit, digest or path."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise SourceError("the hub compressed its listing without being asked to, so its size cannot be limited.")
    try:
        told = json.loads(response.read())
    except (ValueError, RecursionError):
        raise SourceError("the hub's answer is not valid JSON.") from None
    for row in told if isinstance(told, list) else [told]:
        if isinstance(row, dict):
            _check_row(row)


def _check_row(row: dict[str, Any]) -> None:
    lfs = row.get("lfs")
    digests = [row.get("oid"), row.get("blobId"), lfs.get("oid") if isinstance(lfs, dict) else None]
    if not all(one is None or (isinstance(one, str) and is_digest(one)) for one in digests):
        raise SourceError(f"the hub's listing has an invalid digest: {escape(str(digests), 200)}.")
    commit = row.get("sha")
    if commit is not None and not (isinstance(commit, str) and is_commit(commit)):
        raise SourceError(f"the hub answered with an invalid commit: {escape(str(commit), 80)}.")
    siblings = row.get("siblings")
    files = [one.get("rfilename") for one in siblings if isinstance(one, dict)] if isinstance(siblings, list) else []
    for path in (row["path"], *files) if "path" in row else files:
        if not is_plain_path(path):
            raise SourceError(f"the hub's listing has a file outside its folder: {escape(str(path), 200)}.")


def _limited(stream: Any, most: int | None = None) -> Any:
    """Return the body ``stream`` of a response with a limit: reading raises SourceError after ``most`` bytes.

    If ``most`` is None, reading raises OSError when the disk of the cache is nearly full.
    """
    import httpx2
    from huggingface_hub import constants

    class Limited(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            came, room = 0, FreeSpace(lambda: os.statvfs(nearest_existing(constants.HF_HUB_CACHE)))
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
