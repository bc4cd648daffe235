"""Uploads files but makes them visible only later: as unfinished uploads of the server, or in a hidden folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from ..read.base import Advance
from ..small_files import open_file

__all__ = ["DeferredUploads", "MovedUploads", "PendingUploads"]

BLOCK = 4 << 20


class PendingUploads(Protocol):
    """The uploads of one output to a file system of fsspec; in all methods, ``path`` is the final path of an upload.

    The methods may raise any exception. Each implementation writes a mark, a file or folder that tells the next run
    about the uploads of a killed run.
    """

    def clean(self) -> None:
        """Remove the uploads that a killed run left."""
        ...

    def begin(self, paths: Sequence[str]) -> None:
        """Write a mark that tells the next run about the uploads to ``paths`` if this run is killed."""
        ...

    def put(self, path: str, source: str, advance: Advance) -> int:
        """Upload the local file ``source``, but do not make it visible; return its size in bytes."""
        ...

    def lost(self, path: str) -> bool:
        """Return whether an upload is gone, for example because a run on another machine removed it as a left-over."""
        ...

    def commit(self, path: str) -> None:
        """Make an uploaded file visible at its path; it replaces an existing file."""
        ...

    def discard(self) -> None:
        """Remove the uploads that were not committed."""
        ...

    def end(self) -> None:
        """Remove the mark that ``begin`` wrote."""
        ...


def _send(file: Any, source: str, advance: Advance) -> int:
    size = 0
    with open_file(source) as local:
        while data := local.read(BLOCK):
            file.write(data)
            size += len(data)
            advance(len(data))
    return size


class DeferredUploads:
    """Uploads files as multipart uploads of S3 or resumable uploads of GCS; a completed upload becomes a file.

    While uploads are not completed, a file at the address ``mark`` lists their paths. If the run is killed, the next
    run reads this list, asks S3 for unfinished uploads to these paths, and aborts them. GCS cannot list unfinished
    uploads, but removes them after a week.
    """

    def __init__(self, fs: Any, mark: str) -> None:
        self._fs, self._mark = fs, mark
        self._open: dict[str, Any] = {}

    def clean(self) -> None:
        """Abort a killed run's unfinished S3 uploads; the file ``mark``, which that run wrote, lists their paths."""
        if not self._fs.exists(self._mark):
            return
        with suppress(PermissionError):  # listing unfinished uploads needs a separate permission, and is optional
            for path in self._fs.cat_file(self._mark).decode("utf-8", "replace").splitlines():
                self._abort(path)

    def _abort(self, path: str) -> None:
        if not hasattr(self._fs, "call_s3"):
            return
        bucket, key, _ = self._fs.split_path(path)
        found = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", ())
        for one in found:
            if one["Key"] == key:
                self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=one["UploadId"])

    def begin(self, paths: Sequence[str]) -> None:
        """Write the mark, a file with the paths of the uploads."""
        self._fs.pipe_file(self._mark, "".join(f"{path}\n" for path in paths).encode())

    def put(self, path: str, source: str, advance: Advance) -> int:
        """Upload a file, but do not send the request that completes the upload; return the file's size in bytes."""
        file = self._open[path] = self._fs.open(path, "wb", autocommit=False)
        size = _send(file, source, advance)
        file.close()
        return size

    def lost(self, path: str) -> bool:
        """Return whether S3 no longer has the unfinished upload; False for small files, which ``commit`` sends."""
        upload = (getattr(self._open[path], "mpu", None) or {}).get("UploadId")
        if not upload or not hasattr(self._fs, "call_s3"):
            return False
        bucket, key, _ = self._fs.split_path(path)
        with suppress(PermissionError):
            found = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads", ())
            return upload not in {one["UploadId"] for one in found}
        return False

    def commit(self, path: str) -> None:
        """Send the request that completes the upload to ``path``, so that the file appears there."""
        self._open[path].commit()
        del self._open[path]

    def discard(self) -> None:
        """Abort the uploads that were not completed."""
        while self._open:
            file = self._open.popitem()[1]
            file.closed = True  # otherwise it would send the rest when it is garbage-collected
            file.discard()

    def end(self) -> None:
        """Remove the file ``mark``, which tells the next run about unfinished uploads."""
        self._fs.rm_file(self._mark)


class MovedUploads:
    """Uploads into a hidden folder, from which ``commit`` moves them to their paths.

    The folder is also the mark: if a run is killed, the next run finds the folder and removes it.
    """

    def __init__(self, fs: Any, mark: str) -> None:
        self._fs, self._mark = fs, mark

    def _temp(self, path: str) -> str:
        return f"{self._mark}/{path.removeprefix(self._mark.rpartition('/')[0]).lstrip('/')}"

    def _make_folder(self, path: str) -> None:
        """Create the folder of a file that is in a subfolder of the output, in the hidden folder and at the address."""
        folder = path.rpartition("/")[0]
        if folder != self._mark.rpartition("/")[0]:
            self._fs.makedirs(self._temp(folder), exist_ok=True)
            self._fs.makedirs(folder, exist_ok=True)

    def clean(self) -> None:
        """Remove the hidden folder of a killed run."""
        if self._fs.exists(self._mark):
            self._fs.rm(self._mark, recursive=True)

    def begin(self, paths: Sequence[str]) -> None:
        """Create the hidden folder, and test whether the file system can move files."""
        self._fs.makedirs(self._mark, exist_ok=True)
        self._fs.pipe_file(f"{self._mark}/.try", b"ckpt")
        self._fs.mv(f"{self._mark}/.try", f"{self._mark}/.moved")

    def put(self, path: str, source: str, advance: Advance) -> int:
        """Upload a file into the hidden folder; return its size in bytes."""
        self._make_folder(path)
        with self._fs.open(self._temp(path), "wb") as file:
            return _send(file, source, advance)

    def lost(self, path: str) -> bool:
        """Return whether the upload is not in the hidden folder."""
        return not self._fs.exists(self._temp(path))

    def commit(self, path: str) -> None:
        """Move an upload to its path."""
        try:
            self._fs.mv(self._temp(path), path)
        except FileExistsError:  # file systems whose rename cannot replace a file
            self._fs.rm_file(path)
            self._fs.mv(self._temp(path), path)

    def discard(self) -> None:
        """Do nothing: ``end`` removes the folder with the uploads."""

    def end(self) -> None:
        """Remove the hidden folder."""
        with suppress(FileNotFoundError):
            self._fs.rm(self._mark, recursive=True)
