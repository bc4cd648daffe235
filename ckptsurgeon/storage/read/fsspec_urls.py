"""Reads files at addresses through fsspec: ``s3://``, ``gs://``, ``memory://``, and schemes of installed packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, ConfigError, SourceError
from ...util.text import escape, without_secrets
from .base import Folder, Source
from .remote import RemoteFile
from .uri import check_name, scheme_of, shown

__all__ = ["SOURCE", "FsspecFolder", "driver_errors", "file_system", "said_by"]


@dataclass(frozen=True)
class _Ranges:
    """A remote file that fsspec reads; fsspec also decides whether a failed request is sent again."""

    fs: Any
    path: str
    uri: str
    size: int
    validator: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def folder(self) -> Folder:
        """Return the folder that contains the file."""
        return FsspecFolder(self.fs, self.path.rpartition("/")[0], self.uri.rpartition("/")[0])

    def stream(self, offset: int, nbytes: int) -> Iterator[bytes]:
        """Yield ``nbytes`` bytes from ``offset`` on, as one piece; raises SourceError if more or fewer are received."""
        with driver_errors(self.uri):
            data = self.fs.cat_file(self.path, start=offset, end=offset + nbytes)
        if len(data) != nbytes:
            raise SourceError(
                f"{escape(self.uri)}: the server was asked for {nbytes} bytes from {offset} on, but sent {len(data)}."
            )
        yield data


class FsspecFolder(Folder):
    """A folder in a file system of fsspec."""

    def __init__(self, fs: Any, path: str, uri: str) -> None:
        self.uri = uri
        self.name = path.rstrip("/").rpartition("/")[2]
        self._fs, self._path = fs, path.rstrip("/")

    def names(self) -> list[str]:
        """Return the names of the files in the folder, sorted."""
        return self._listed("file")

    def folders(self) -> list[str]:
        """Return the names of the subfolders of the folder, sorted."""
        return self._listed("directory")

    def file(self, name: str) -> RemoteFile:
        """Open one file of the folder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        return _file(self._fs, f"{self._path}/{name}", f"{self.uri.rstrip('/')}/{name}")

    def inside(self, name: str) -> FsspecFolder:
        """Return a subfolder; raises FormatError if ``name`` points out of the folder."""
        check_name(self.uri, name)
        return FsspecFolder(self._fs, f"{self._path}/{name}", f"{self.uri.rstrip('/')}/{name}")

    def _listed(self, kind: str) -> list[str]:
        with driver_errors(self.uri):
            rows = self._fs.ls(self._path, detail=True)
        return sorted(row["name"].rstrip("/").rpartition("/")[2] for row in rows if row["type"] == kind)


class _Fsspec:
    schemes = ("*",)

    def open(self, uri: str) -> Source:
        fs, path = file_system(uri)
        with driver_errors(shown(uri)):
            is_folder = fs.isdir(path)
        return FsspecFolder(fs, path, shown(uri)) if is_folder else _file(fs, path, shown(uri))


_INSTALL = re.compile(r"(?:Please install|Install) ([\w-]+) (?:to|for) access .+")
"""Matches fsspec's message about a missing package: "Install s3fs to access S3"."""


def file_system(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system for an address, and the path in it; raises ConfigError if fsspec has none.

    Raises SourceError if the address cannot be used for another reason.
    """
    from fsspec.core import url_to_fs

    try:
        fs, path = url_to_fs(uri)
    except ImportError as error:
        raise ConfigError(
            f"{escape(shown(uri))}: addresses of {scheme_of(uri)}:// need a package that is not installed.",
            hint=_INSTALL.sub(r"Run pip install \1.", said_by(error)),
        ) from None
    except ValueError as error:
        if "Protocol not known" not in str(error):
            raise SourceError(f"{escape(shown(uri))} cannot be fetched: {_why(error)}.") from None
        raise ConfigError(
            f"{escape(shown(uri))}: no installed package reads {scheme_of(uri)}:// addresses.",
            hint="Use a path, hf://, or a scheme for which a backend of fsspec is installed.",
        ) from None
    except Exception as error:
        raise SourceError(f"{escape(shown(uri))} cannot be fetched: {_why(error)}.") from None
    return fs, str(path)


def _file(fs: Any, path: str, uri: str) -> RemoteFile:
    with driver_errors(uri):
        found = fs.info(path)
    size = found.get("size")
    if not isinstance(size, int) or size < 0:
        raise SourceError(f"{escape(uri)}: its file system does not report its size.")
    return RemoteFile(_Ranges(fs, path, uri, size))


@contextmanager
def driver_errors(uri: str) -> Iterator[None]:
    """Convert any error of fsspec in the block, or of a package that fsspec uses, to a SourceError about ``uri``."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise SourceError(f"{escape(uri)} cannot be fetched: it does not exist.") from None
    except Exception as error:
        raise SourceError(f"{escape(uri)} cannot be fetched: {_why(error)}.") from None


_CREDENTIALS = re.compile(r"[^\s/@:\"']+:[^\s/@\"']*@(?=[\w\[])")
"""Matches credentials before a host or bucket without a scheme; some packages write addresses in this form."""


def said_by(error: Exception) -> str:
    """Return the message of an error of fsspec, or of a package that fsspec uses, without secrets."""
    return escape(_CREDENTIALS.sub("", without_secrets(str(error))).rstrip(": ."), 300)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {said_by(error)}".rstrip(": ")


SOURCE = _Fsspec()
