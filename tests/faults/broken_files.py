"""Serves a folder's files, broken behind their first bytes: ``python broken_files.py FOLDER PLACE EIO|ESTALE|short BYTES``.

Needs mfusepy, and fusermount3 of Debian's fuse3.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

import mfusepy  # type: ignore[import-not-found,unused-ignore]


class Broken(mfusepy.Operations):  # type: ignore[misc]
    """The files of a folder; they can be opened and looked at, and read up to a byte."""

    def __init__(self, folder: str, fault: str, good: int) -> None:
        self.folder, self.fault, self.good = folder, fault, good

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        try:
            found = os.lstat(self.folder + path)
        except OSError as error:
            raise mfusepy.FuseOSError(error.errno) from error
        return {
            name: getattr(found, name) for name in ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_mtime")
        }

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.folder + path)]

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        with open(self.folder + path, "rb") as file:
            data = os.pread(file.fileno(), max(0, min(size, self.good - offset)), offset)
        if not data and self.fault != "short":
            raise mfusepy.FuseOSError(getattr(errno, self.fault))
        return data


if __name__ == "__main__":
    folder, place, fault, good = sys.argv[1:]
    mfusepy.FUSE(Broken(folder, fault, int(good)), place, foreground=True, direct_io=True)
