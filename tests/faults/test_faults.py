"""Faults provoked for real: a disk that fills up, calls that fail, a kill at every call. Needs root; ``make test-faults``.

Each case checks that the old output or the new one is there, whole, and that the next run leaves no temp file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs

from ..planners.test_transplant import declare

pytestmark = pytest.mark.faults

RUN = [sys.executable, "-m", "ckptsurgeon", "transplant", "src.pth", "dst.yaml", "--force"]
OUTPUTS = {"file": ["-o", "out.safetensors"], "folder": ["-o", "out", "--max-shard-size", "500kB"]}


@pytest.fixture(autouse=True)
def inputs() -> None:
    torch.save({"a": torch.randn(100_000), "b": torch.randn(100_000), "h": torch.randn(1000)}, "src.pth")
    declare("dst.yaml", {"a": (100_000,), "b": (100_000,), "h": ("float16", (1000,))})


def output_of(name: str) -> str:
    return OUTPUTS[name][1]


def whole(name: str) -> bool:
    return os.path.exists(output_of(name)) and cs.verify(output_of(name)).ok


def leftovers() -> list[str]:
    return [name for name in os.listdir() if name.endswith(".ckpt-tmp")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip(reason="mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(reason=f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_disk_that_is_full_keeps_what_was_there(name: str, small_disk: Path) -> None:
    command = [*RUN[:5], *RUN[5:], "-o", str(small_disk / output_of(name)), *OUTPUTS[name][2:]]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (small_disk / "filler").write_bytes(bytes(900_000))
    before = sorted(os.listdir(small_disk))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "no space left" in done.stderr or "are free" in done.stderr
    assert sorted(os.listdir(small_disk)) == before
    assert cs.verify(small_disk / output_of(name)).ok


def strace(*options: str, name: str) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *options, *RUN, *OUTPUTS[name]]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def _needs_strace() -> None:
    if not shutil.which("strace"):
        pytest.skip(reason="strace is not installed")
    if subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True).returncode:
        pytest.skip(reason="tracing is not allowed here")


CALLS = {
    "copy_file_range": ("EIO", "ENOSPC"),
    "pwrite64": ("EIO", "ENOSPC", "EDQUOT"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EIO", "EACCES"),
    "link": ("EIO", "EACCES"),
    "mkdir": ("EACCES", "ENOSPC"),
    "renameat2": ("EIO",),
    "fallocate": ("ENOSPC", "EIO"),
}


@pytest.mark.usefixtures("_needs_strace")
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(("call", "error"), [(call, error) for call, errors in CALLS.items() for error in errors])
def test_a_call_that_fails_keeps_what_was_there(call: str, error: str, name: str) -> None:
    assert subprocess.run([*RUN, *OUTPUTS[name]], capture_output=True).returncode == 0
    for when in (1, 2, 3):
        # Compiled files of Python's own are renamed too; only failures of ours count.
        done = strace("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}", name=name)
        assert done.returncode in (0, 5), done.stderr
        assert "Traceback" not in done.stderr
        assert whole(name)
        assert not leftovers()


@pytest.mark.usefixtures("_needs_strace")
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize(
    "call", ["EINTR on copy_file_range", "EOPNOTSUPP on fsync", "EXDEV on copy_file_range", "EOPNOTSUPP on fallocate"]
)
def test_a_call_that_may_fail_is_done_otherwise(call: str, name: str) -> None:
    error, _, function = call.partition(" on ")
    done = strace("-e", f"trace={function}", "-e", f"inject={function}:error={error}:when=1..2", name=name)
    assert done.returncode == 0, done.stderr
    assert whole(name)


@pytest.mark.usefixtures("_needs_strace")
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("first", [False, True])
def test_killed_at_every_call_there_is_the_old_or_the_new(name: str, first: bool) -> None:
    if not first:
        assert subprocess.run([*RUN, *OUTPUTS[name]], capture_output=True).returncode == 0
    killed = 0
    for call in (
        "pwrite64",
        "copy_file_range",
        "fsync",
        "flock",
        "rename",
        "renameat2",
        "link",
        "unlink",
        "mkdir",
        "fallocate",
    ):
        for when in range(1, 5):
            done = strace("-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}", name=name)
            killed += done.returncode != 0
            if not first or os.path.exists(output_of(name)):
                assert whole(name), (call, when)
            assert len(leftovers()) <= 1
    assert killed > 8
    assert subprocess.run([*RUN, *OUTPUTS[name]], capture_output=True).returncode == 0
    assert whole(name)
    assert not leftovers()


def test_copies_between_file_systems_are_the_same(small_disk: Path) -> None:
    subprocess.run([*RUN, "-o", "here.safetensors"], check=True, capture_output=True)
    there = small_disk / "there.safetensors"
    shutil.copy("src.pth", small_disk / "src.pth")
    shutil.copy("dst.yaml", small_disk / "dst.yaml")
    subprocess.run(
        [*RUN[:4], str(small_disk / "src.pth"), "dst.yaml", "-o", "across.safetensors"], check=True, capture_output=True
    )
    shutil.move("src.pth", "gone.pth")
    found = {
        path: {k: cs.open_checkpoint(path).tensor(k) for k in "abh"}
        for path in ("here.safetensors", "across.safetensors")
    }
    for key in "abh":
        assert torch.equal(found["here.safetensors"][key], found["across.safetensors"][key])
    assert not there.exists()
