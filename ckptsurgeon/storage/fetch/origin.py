"""Reads the addresses that ``ckpt fetch`` accepts: the origin of each file, and the settings for fetching it."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import unquote, urlsplit

from ...errors import ConfigError, SourceError
from ...util.text import brief_repr, escape, without_credentials
from ..read.hugging_face.client import hub_address
from ..read.uri import check_address, file_address, scheme_of, shown

__all__ = [
    "STRATEGIES",
    "FetchConfig",
    "FetchOrigin",
    "fetch_config_of",
    "file_name",
    "origin_of",
    "origin_of_uri",
    "split_path",
    "strategy_of",
]

# Settings for fetching: ``FetchConfig`` and ``LocalStrategy``, SpeechBrain's objects or our equivalents.

STRATEGIES = ("symlink", "copy", "copy_skip_cache", "no_link")


@dataclass(frozen=True)
class FetchConfig:
    """Settings for fetching files, with the same fields as ``speechbrain.utils.fetching.FetchConfig`` 1.1.2.

    ``overwrite`` replaces any file that has the same path. ``allow_updates`` asks the hub for a newer revision. If
    ``allow_network`` is False, no request is made. ``token`` is a token, True to send the token that ``hf auth login``
    stored, None to send this token if there is one, or False to send no token. ``revision`` is a branch, tag or commit
    of the hub. ``huggingface_cache_dir`` is the folder of the hub's cache, by default that of huggingface_hub.
    """

    overwrite: bool = False
    allow_updates: bool = False
    allow_network: bool = True
    token: bool | str | None = False
    revision: str | None = None
    huggingface_cache_dir: str | None = None

    def __repr__(self) -> str:
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "token"}
        return f"FetchConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def fetch_config_of(given: Any) -> FetchConfig:
    """Return ckptsurgeon's FetchConfig for a FetchConfig of ckptsurgeon or SpeechBrain; for None, the defaults.

    Raises ConfigError for anything else.
    """
    if given is None:
        return FetchConfig()
    if isinstance(given, FetchConfig):
        return given
    names = [field.name for field in fields(FetchConfig)]
    if not all(hasattr(given, name) for name in names):
        raise ConfigError(
            f"fetch_config is {brief_repr(given)}, not a FetchConfig.",
            hint="Use ckptsurgeon.FetchConfig(overwrite=True).",
        )
    return FetchConfig(**{name: getattr(given, name) for name in names})


def strategy_of(given: Any) -> str:
    """Return the name of a strategy, such as "symlink", given as a string or as SpeechBrain's ``LocalStrategy``.

    Raises ConfigError for an unknown strategy.
    """
    name = getattr(given, "name", given)
    if not isinstance(name, str) or name.lower() not in STRATEGIES:
        raise ConfigError(
            f"local_strategy {brief_repr(given)} is unknown.", hint=f"Use one of {', '.join(STRATEGIES)}."
        )
    return name.lower()


_REPOSITORY = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_WEB = ("http:", "https:")


@dataclass(frozen=True)
class FetchOrigin:
    """The source of a file, and the file's name in it; if ``file`` is empty, all files of the source.

    ``kind`` is "local" for an absolute folder, "url" for a web address, "hub" for a repository, "store" for an address
    that fsspec reads. ``revision`` is the revision of the repository.
    """

    kind: str
    source: str
    file: str
    revision: str = ""

    @property
    def path(self) -> str:
        """The path or address of the file: ``source`` and ``file`` together. An address includes its credentials."""
        return f"{self.source.rstrip('/')}/{self.file}"

    @property
    def shown(self) -> str:
        """The name in messages and records: an address without credentials and without its query."""
        return shown(self.path) if self._is_address else self.path.rstrip("/")

    @property
    def sha256(self) -> str:
        """The SHA-256 of the origin without its credentials: it identifies the origin and reveals no secret."""
        address = without_credentials(self.path) if self._is_address else self.path
        return hashlib.sha256("\n".join((self.kind, address, self.revision)).encode()).hexdigest()

    @property
    def _is_address(self) -> bool:
        return self.kind in ("url", "store")


def split_path(path: Any) -> tuple[Any, str]:
    """Return the source (folder, repository or address) and the file name of a path.

    SpeechBrain's ``Pretrainer.split_path`` returns the same. ``path`` may be SpeechBrain's FetchSource, a pair of kind
    and path; the returned source is then a FetchSource of the same kind.
    """
    if isinstance(path, tuple) and len(path) == 2:
        source, file = split_path(path[1])
        return (path._replace(path=source) if hasattr(path, "_replace") else (path[0], source)), file
    text = _text(path, "a path")
    if "/" not in text:
        return "./", text
    source, _, file = text.rpartition("/")
    return source or "/", file


def origin_of(source: Any, file: str, *, revision: str | None = None) -> FetchOrigin:
    """Return the origin of a file of a source; raises SourceError for a folder that does not exist.

    ``source`` is the path of a folder, an address (``http(s):``) or a repository of the hub:
    ``hf://org/repo[@revision]``, or any other string that is not clearly a path. An existing folder is preferred to a
    repository of the same name. ``source`` may also be SpeechBrain's FetchSource, a pair of kind and source.
    ``revision`` is the revision of a repository, unless its address has one. Raises ConfigError if ``file`` is empty,
    or if a string is not the name of a repository.
    """
    if not file:
        raise ConfigError(
            f"{brief_repr(source)} is a folder, not a file.", hint="Add the name of the file after the folder."
        )
    asked, text = _source_kind(source)
    if asked == "local" or (not asked and os.path.isdir(text)):
        if not os.path.isdir(text):
            raise _no_folder(text, "")
        return FetchOrigin("local", os.path.abspath(text), file)
    if not asked and scheme_of(text) == "hf":
        found = hub_address(f"{text}/{file}")
        return FetchOrigin("hub", found.repository, found.path, found.revision or revision or "")
    if asked == "url" or (not asked and text.lower().startswith(_WEB)):
        return FetchOrigin("url", *file_address(f"{text}/{file}").rsplit("/", 1))
    if not asked and (_is_path(text) or "://" in text):
        raise _no_folder(text, "; this looks like a path, so the hub was not asked for it")
    if not _REPOSITORY.fullmatch(text):
        raise ConfigError(f"{brief_repr(text)} is not the name of a hub repository.", hint="Write it as owner/name.")
    return FetchOrigin("hub", text, file, revision or "")


def _source_kind(source: Any) -> tuple[str, str]:
    """Return the kind of a FetchSource, and the source as a string; the kind is '' for any other source.

    The kind is "local", "hub" or "url". Raises ConfigError for an invalid FetchSource.
    """
    kinds = {"LOCAL": "local", "HUGGING_FACE": "hub", "URI": "url"}
    if not isinstance(source, tuple):
        return "", _text(source, "a source")
    name = getattr(source[0], "name", source[0]) if len(source) == 2 else None
    if not isinstance(name, str) or name.upper() not in kinds:
        raise ConfigError(
            f"{brief_repr(source)} is not a valid source.",
            hint=f"Give a FetchSource a kind ({', '.join(kinds)}) and a source.",
        )
    return kinds[name.upper()], _text(source[1], "a source")


def _text(value: Any, what: str) -> str:
    try:
        text = os.fspath(value)
    except TypeError:
        text = b""
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{brief_repr(value)} is not {what}.", hint="Give a folder, a repository or an address.")
    return text


def _is_path(text: str) -> bool:
    """Return whether a string can only be a local path: it looks like one, or its first part exists on this machine."""
    head = text.partition("/")[0]
    return (
        text.startswith(("/", ".", "~"))
        or text.endswith("/")
        or text.count("/") > 1
        or "\\" in text
        or os.path.exists(text)
        or ("/" in text and os.path.isdir(head))
    )


def _no_folder(text: str, why: str) -> SourceError:
    """Return the error for a folder that does not exist; its hint names an existing folder with a similar name.

    ``why`` is the end of the message.
    """
    if "://" in text:
        return SourceError(f"{escape(text)} is neither a folder nor an http(s) address.")
    if os.path.exists(text):
        return SourceError(f"{escape(text)} is a file: give its folder as the source.")
    parent, name = os.path.split(os.path.abspath(os.path.expanduser(text)))
    near = difflib.get_close_matches(name, _folders(parent), n=1)
    home = " A ~ at the beginning of a path is not replaced by the home folder." if text.startswith("~") else ""
    hint = f"Did you mean {escape(os.path.join(os.path.dirname(text.rstrip('/')), near[0]))}?" if near else ""
    return SourceError(
        f"there is no folder {escape(text)}{why}.{home}",
        hint=hint,
    )


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


# The URIs that ``ckpt fetch`` accepts: a file or a whole folder of a hub, the web, a store or this machine.


def origin_of_uri(uri: str, revision: str | None = None) -> FetchOrigin:
    """Return the origin of a URI; ``file`` is '' if the URI refers to all files. Nothing is opened or requested.

    A URI is ``hf://org/repo[@revision][/file]``, ``http(s)://``, a scheme that fsspec knows (``s3://`` …), or a path of
    this machine. The revision of an ``hf://`` URI is given after the @ or as ``revision``. Raises ConfigError for an
    invalid URI.
    """
    scheme = scheme_of(uri)
    if scheme == "hf":
        found = hub_address(uri, revision)
        return FetchOrigin("hub", found.repository, found.path, found.revision)
    if revision is not None:
        raise ConfigError(f"{escape(uri)} has no revisions; only hf:// repositories do.", hint="Remove --revision.")
    if scheme in ("", "file"):
        return _local(without_credentials(uri)[len("file://") :] if scheme else uri)
    kind = "url" if scheme in ("http", "https") else "store"
    if kind == "url":
        check_address(uri)
        uri = file_address(uri)
    source, _, file = uri.rpartition("/")
    return FetchOrigin(kind, uri, "") if source.endswith(":/") else FetchOrigin(kind, source, file)


def _local(path: str) -> FetchOrigin:
    if os.path.isdir(path):
        return FetchOrigin("local", os.path.abspath(path), "")
    folder, file = os.path.split(os.path.abspath(path))
    return FetchOrigin("local", folder, file)


def file_name(origin: FetchOrigin) -> str:
    """Return the name that an origin's single file gets on this machine: the last part of its path.

    The query of an address is left out. Raises ConfigError if there is no such name.
    """
    path = unquote(urlsplit(origin.path).path) if origin.kind == "url" else origin.path
    name = origin.file if origin.kind == "hub" else path.rpartition("/")[2]
    if name in ("", ".", "..") or "\0" in name or "\\" in name:
        raise ConfigError(f"{escape(origin.shown)} has no file name.", hint="Add the name of the file.")
    return name
