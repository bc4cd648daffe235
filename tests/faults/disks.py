"""File systems of a test's own: tmpfs, and ext4, XFS and btrfs in image files on loop devices."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Disk", "disk", "needs"]

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, of ``linux/ext4.h`` and ``xfs_fs.h``: the file system is dead from then on."""

WITHOUT_FLUSH = 2
"""Nothing is written before that, the journal neither: what a power cut does."""

MAKERS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "ext4 without journal": ("mkfs.ext4", "-q", "-F", "-O", "^has_journal"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs", "fusermount3": "fuse3"}


def needs(program: str) -> None:
    """Skip the test where a program is not installed."""
    if shutil.which(program) is None:
        pytest.skip(reason=f"{program} is not installed (Debian: {PACKAGES.get(program, program)})")


@dataclass(frozen=True)
class Disk:
    """A file system that is mounted; ``image`` is the file it is in, if it is in one."""

    place: Path
    image: Path | None = None
    options: str = ""

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        found = os.statvfs(self.place)
        return found.f_bavail * found.f_frsize

    def fill(self, left: int) -> Path:
        """Write a file that leaves so many bytes; returns it."""
        filler = self.place / "filler"
        with open(filler, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(self.free - left, 1))
        return filler

    def cut(self) -> None:
        """Cut the power: what is not on the image now never will be."""
        number = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(number, SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(number)

    def again(self) -> None:
        """Unmount and mount, as after a boot."""
        _run("umount", str(self.place))
        self.mount()

    def mount(self) -> None:
        """Mount the image, or skip the test where that is not allowed."""
        assert self.image is not None
        _allowed("mount", "-o", f"loop{self.options}", str(self.image), str(self.place))


@contextmanager
def disk(kind: str, mb: int, below: Path, options: str = "") -> Iterator[Disk]:
    """Mount a new file system of so many megabytes until the block ends."""
    if os.geteuid():
        pytest.skip(reason="mounting needs root")
    place = Path(tempfile.mkdtemp(prefix="disk-", dir=below))
    if kind == "tmpfs":
        made = Disk(place)
        _allowed("mount", "-t", "tmpfs", "-o", f"size={mb}m{options}", "tmpfs", str(place))
    else:
        made = _image(kind, mb, place, options)
        made.mount()
    try:
        yield made
    finally:
        _run("umount", str(place))
        if made.image is not None:
            made.image.unlink()


def _image(kind: str, mb: int, place: Path, options: str) -> Disk:
    program, *arguments = MAKERS[kind]
    needs(program)
    image = place.with_suffix(".image")
    with open(image, "wb") as file:
        file.truncate(mb << 20)
    _run(program, *arguments, str(image))
    return Disk(place, image, options)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (command, done.stderr)


def _allowed(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(reason=f"mounting is not allowed here: {done.stderr.strip()}")
