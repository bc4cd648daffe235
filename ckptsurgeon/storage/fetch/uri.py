"""What ``ckpt fetch`` can be asked for: a file or a whole folder of a hub, the web, a store or this machine."""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from ...errors import ConfigError
from ...util.text import escape, without_credentials
from ..read.hugging_face.address import hub_address
from ..read.uri import check_address, scheme_of
from .origin import Origin

__all__ = ["file_name", "origin_of_uri"]


def origin_of_uri(uri: str, revision: str | None = None) -> Origin:
    """Return where a URI leads; a ``file`` that is empty stands for all there is. Nothing is opened or asked.

    ``hf://org/repo[@revision][/file]``, ``http(s)://``, what fsspec knows (``s3://`` …), and paths of this machine.
    ``revision`` is what may stand behind the @ too. Raises ConfigError for what cannot be meant.
    """
    scheme = scheme_of(uri)
    if scheme == "hf":
        found = hub_address(uri, revision)
        return Origin("hub", found.repository, found.path, found.revision)
    if revision is not None:
        raise ConfigError(f"{escape(uri)} has no revisions; only hf:// repositories do.", hint="Leave --revision out.")
    if scheme in ("", "file"):
        return _local(without_credentials(uri)[len("file://") :] if scheme else uri)
    kind = "url" if scheme in ("http", "https") else "store"
    if kind == "url":
        check_address(uri)
    source, _, file = uri.rpartition("/")
    return Origin(kind, uri, "") if source.endswith(":/") else Origin(kind, source, file)


def _local(path: str) -> Origin:
    if os.path.isdir(path):
        return Origin("local", os.path.abspath(path), "")
    folder, file = os.path.split(os.path.abspath(path))
    return Origin("local", folder, file)


def file_name(origin: Origin) -> str:
    """Return what the one file of an origin is called here: the last part of its path, without an address's query."""
    path = unquote(urlsplit(origin.path).path) if origin.kind == "url" else origin.path
    name = origin.file if origin.kind == "hub" else path.rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name or "\\" in name:
        raise ConfigError(f"{escape(origin.shown)} does not say what its file is called.")
    return name
