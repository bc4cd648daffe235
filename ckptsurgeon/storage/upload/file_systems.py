"""Uploads to the file systems of fsspec: ``s3://``, ``gs://``, ``memory://``, and others of installed packages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from ...errors import CheckpointError, ConfigError, OutputError
from ...util.text import escape, listing
from ..read.base import Advance
from ..read.fsspec_urls import file_system, said_by
from ..read.uri import scheme_of, shown
from .pending import DeferredUploads, MovedUploads, PendingUploads

__all__ = ["FsspecDestination"]

MARK = ".ckpt-upload"
"""The suffix of the mark, a file or folder at the address; it exists during an upload, and stays after a killed run."""

DEFERRED = ("s3", "s3a", "gs", "gcs")
"""The schemes of object stores in which an upload appears only when it is completed.

fsspec has ``autocommit=False`` for other file systems, too. But memory:// ignores it, and SFTP then writes into
``/tmp`` of the server, where no later run would find the files of a killed run.
"""


class FsspecDestination:
    """A folder in a file system of fsspec; ``file`` is the name of the output if the output is a single file."""

    def __init__(self, uri: str, *, file: str = "") -> None:
        text = shown(uri)
        folder = text if text.endswith("://") else text.rstrip("/")
        self.uri = f"{folder}{'' if folder.endswith('/') else '/'}{file}" if file else folder
        with _errors(self.uri):
            self._fs, path = file_system(uri)
        self._path, self._file = path.rstrip("/"), file
        mark = self._of(f".{file}{MARK}" if file else MARK)
        kind = DeferredUploads if scheme_of(uri) in DEFERRED else MovedUploads
        self._pending: PendingUploads = kind(self._fs, mark)
        self._sizes: dict[str, int] = {}
        self._begun = False

    def _of(self, name: str) -> str:
        return f"{self._path}/{name}"

    def names(self) -> list[str]:
        """Return the names of the files in the folder; raises OutputError if the address is a file."""
        with _errors(self.uri):
            self._fs.invalidate_cache()
            try:
                rows = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return []
        if [row["name"].strip("/") for row in rows if row["type"] == "file"] == [self._path.strip("/")]:
            raise OutputError(f"{escape(self.uri)} is a file, not a folder.", hint="Name another output.")
        names = (row["name"].rpartition("/")[2] for row in rows if row["type"] == "file")
        return sorted(name for name in names if name and name != MARK)

    def has(self, name: str) -> bool:
        """Return whether the folder has a file with this name; raises OutputError if a folder has this name."""
        with _errors(self.uri):
            self._fs.invalidate_cache()
            if self._fs.isdir(self._of(name)):
                raise OutputError(f"{escape(self.uri)} is a folder, not a file.", hint="Name another output.")
            return bool(self._fs.exists(self._of(name)))

    def begin(self, names: Sequence[str]) -> None:
        """Remove unfinished uploads of a killed run, and write the mark that tells a later run about this upload."""
        with _errors(self.uri):
            self._pending.clean()
            self._begun = True
            self._pending.begin([self._of(name) for name in names])

    def put(self, name: str, path: str, advance: Advance) -> None:
        """Upload the local file ``path``; the file ``name`` does not appear at the address before ``publish``."""
        with _errors(self.uri):
            self._sizes[name] = self._pending.put(self._of(name), path, advance)

    def publish(self, names: Sequence[str], removed: Collection[str]) -> None:
        """Remove the files ``removed``, and make the uploaded files visible one by one, in the order of ``names``.

        Raises OutputError if a file is not complete when it appears; then the following files do not appear.
        """
        with _errors(self.uri):
            self._fs.invalidate_cache()
            lost = [name for name in names if self._pending.lost(self._of(name))]
        if lost:
            raise OutputError(
                f"files that were uploaded to {escape(self.uri)} are no longer there, so they cannot be "
                f"published: {listing(lost)}. No existing file has changed.",
                hint="Another run may write to this address: run the command again when that run has ended.",
            )
        try:
            with _errors(self.uri):
                for name in removed:
                    self._fs.rm_file(self._of(name))
                for name in names:
                    self._pending.commit(self._of(name))
                    self._check_size(name)
        except OutputError as error:
            if self._file:
                raise
            hint = "The folder may now lack its index, or have files of two models: run the command again with --force."
            raise OutputError(error.message, hint=f"{error.hint} {hint}".strip()) from None
        self._end()

    def discard(self) -> None:
        """Abandon the uploads that are not published; if the server refuses this, the next run removes them."""
        with suppress(Exception):
            self._pending.discard()
            if self._begun:  # else the mark is from a killed run
                self._end()

    def _end(self) -> None:
        with suppress(Exception):  # a mark that stays does no harm: the output is complete or abandoned
            self._pending.end()
        self._fs.invalidate_cache()

    def _check_size(self, name: str) -> None:
        self._fs.invalidate_cache()
        size = self._fs.info(self._of(name))["size"]
        if size != self._sizes[name]:
            raise OutputError(
                f"{escape(self._of(name))} has {size} bytes there, although {self._sizes[name]} were sent.",
                hint="Try again.",
            )


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Convert any error of fsspec in the block, or of a package that fsspec uses, to an OutputError about ``uri``.

    A ConfigError is not converted.
    """
    try:
        yield
    except (ConfigError, OutputError):
        raise
    except CheckpointError as error:
        raise OutputError(error.message, hint=error.hint) from None
    except Exception as error:
        raise _output_error(uri, error) from None


def _output_error(uri: str, error: Exception) -> OutputError:
    what = f"cannot write {escape(uri)}"
    name, said = type(error).__name__, said_by(error)
    if isinstance(error, FileNotFoundError):
        return OutputError(
            f"{what}: the bucket, folder or upload is not there ({said}).",
            hint="Create the bucket or folder, or try again.",
        )
    if isinstance(error, PermissionError):
        return OutputError(f"{what}: access is denied ({said}).", hint="Check that the credentials are valid.")
    if "Credentials" in name:
        return OutputError(f"{what}: there are no credentials ({said}).", hint=f"Log in for {scheme_of(uri)}:// first.")
    if isinstance(error, NotImplementedError):
        return OutputError(f"{what}: its file system cannot be written to.", hint="Name another output.")
    return OutputError(f"{what}: {name}: {said}.", hint="Try again.")
