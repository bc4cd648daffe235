"""What ``ckpt fetch`` can be asked for: a file or a whole folder of a hub, the web, a store or this machine."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from ..errors import ConfigError
from ..sources import scheme_of
from ..text import escape
from .origin import Origin

__all__ = ["file_name", "origin_of_uri"]

_PART = r"\w[\w.-]*"
_HUB = re.compile(
    rf"(?:models/)?(?P<repo>{_PART}/{_PART}|{_PART}(?=@|$))(?:@(?P<rev>refs/(?:pr|convert)/[^/@]+|[^/@]+))?(?:/(?P<file>.*))?",
    re.ASCII,
)
_OTHER_KINDS = ("datasets/", "spaces/", "buckets/", "kernels/")
_SPELT = "hf://org/repo, hf://org/repo@revision, hf://org/repo@revision/file"


def origin_of_uri(uri: str, revision: str | None = None) -> Origin:
    """Return where a URI leads; a ``file`` that is empty stands for all there is. Nothing is opened or asked.

    ``hf://org/repo[@revision][/file]``, ``http(s)://``, what fsspec knows (``s3://`` …), and paths of this machine.
    ``revision`` is what may stand behind the @ too. Raises ConfigError for what cannot be meant.
    """
    scheme = scheme_of(uri)
    if scheme == "hf":
        return _hub(uri, revision)
    if revision is not None:
        raise ConfigError(f"{escape(uri)} has no revisions; only hf:// repositories do.", hint="Leave --revision out.")
    if scheme in ("", "file"):
        return _local(uri[len("file://") :] if scheme else uri)
    source, _, file = uri.rpartition("/")
    return Origin("url" if scheme in ("http", "https") else "store", source, file)


def _hub(uri: str, revision: str | None) -> Origin:
    path = uri[len("hf://") :].rstrip("/")
    if path.startswith(_OTHER_KINDS):
        raise ConfigError(f"{escape(uri)} is no model repository; only those are fetched.", hint=f"Write {_SPELT}.")
    found = _HUB.fullmatch(path)
    if found is None:
        raise ConfigError(f"{escape(uri)} names no repository of a hub.", hint=f"Write {_SPELT}.")
    at = unquote(found["rev"] or "")
    if at and revision and at != revision:
        raise ConfigError(f"{escape(uri)} and the revision {escape(revision)} say two things.", hint="Leave one out.")
    at = at or revision or ""
    if at.startswith(("/", "-")) or at.endswith("/") or not {"", ".", ".."}.isdisjoint(at.split("/") if at else ()):
        raise ConfigError(f"{escape(at)} is no revision.", hint="It is a branch, a tag or a commit.")
    return Origin("hub", found["repo"], check_name(found["file"] or "", uri), at)


def _local(path: str) -> Origin:
    if os.path.isdir(path):
        return Origin("local", os.path.abspath(path), "")
    folder, file = os.path.split(os.path.abspath(path))
    return Origin("local", folder, file)


def check_name(name: str, uri: str) -> str:
    """Return a relative path that stays inside its folder; raises ConfigError for any other."""
    if name and (not {"", ".", ".."}.isdisjoint(name.split("/")) or "\0" in name or "\\" in name):
        raise ConfigError(f"{escape(uri)} names a file outside its folder: {escape(name)}.")
    return name


def file_name(origin: Origin) -> str:
    """Return what the one file of an origin is called here: the last part of its path, without an address's query."""
    path = origin.path if origin.kind == "local" else unquote(urlsplit(origin.path).path)
    name = origin.file if origin.kind == "hub" else path.rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name or "\\" in name:
        raise ConfigError(f"{escape(origin.shown)} does not say what its file is called.")
    return name
