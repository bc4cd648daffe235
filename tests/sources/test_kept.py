"""What was fetched by a run that was cut off is not fetched again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.sources import _kept, remote

from ..formats.torch_files import saved
from ..hub import faults
from ..hub.server import Hub

Run = Callable[..., Any]
STATE = {f"layers.{i}.weight": torch.randn(512, 1024) for i in range(12)}
"""24 MB, in six requests of 4 MiB."""


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def url(hub: Hub, kept: Path) -> str:
    return hub.file("big.pth", saved(STATE))


def command(url: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "ckptsurgeon",
        "filter",
        url,
        "--include",
        "layers",
        "-o",
        "out.safetensors",
        "--force",
    ]


def whole() -> bool:
    found = cs.open_checkpoint("out.safetensors")
    return all(torch.equal(found.tensor(key), value) for key, value in STATE.items())


def size(hub: Hub) -> int:
    return len(hub.files["big.pth"].content) if isinstance(hub.files["big.pth"].content, bytes) else 0


def test_a_killed_run_is_gone_on_with(url: str, hub: Hub, kept: Path) -> None:
    hub.fail("/files/*", faults.hanging(1 << 20), nth=7, times=None)
    process = subprocess.Popen(command(url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while hub.sent < 15 << 20 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    process.wait()
    first = sum(path.stat().st_blocks * 512 for path in kept.glob("*.part"))
    assert first > 8 << 20
    hub.mend()
    hub.requests.clear()
    assert subprocess.run(command(url), capture_output=True).returncode == 0
    assert whole()
    assert hub.sent <= size(hub) - first + remote.REQUEST
    assert list(kept.iterdir()) == []


@pytest.fixture
def cut_off(url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> str:
    """The address of a file whose later parts could not be had the first time."""
    hub.fail("/files/*", faults.status(404), nth=6, times=None)
    assert ckpt(*command(url)[3:]).code == 3
    hub.mend()
    hub.requests.clear()
    return url


def test_a_run_that_failed_is_gone_on_with(cut_off: str, hub: Hub, kept: Path, ckpt: Run) -> None:
    assert sorted(path.suffix for path in kept.iterdir()) == [".journal", ".part"]
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600}
    assert ckpt(*command(cut_off)[3:]).code == 0
    assert whole()
    assert hub.sent < size(hub) * 0.8
    assert list(kept.iterdir()) == []


def test_another_content_is_fetched_anew(cut_off: str, hub: Hub, ckpt: Run) -> None:
    other = {key: value + 1 for key, value in STATE.items()}
    hub.file("big.pth", saved(other))
    assert ckpt(*command(cut_off)[3:]).code == 0
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("layers.3.weight"), other["layers.3.weight"])
    assert hub.sent >= 12 * 512 * 1024 * 4


@pytest.mark.parametrize("damage", ["another boot", "torn", "a range that lies", "no file", "garbage"])
def test_a_journal_that_cannot_be_believed_costs_only_bytes(
    damage: str, cut_off: str, hub: Hub, kept: Path, ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (journal,), (part,) = kept.glob("*.journal"), kept.glob("*.part")
    data = journal.read_bytes()
    if damage == "another boot":
        (kept / "boot").write_text("other")
        monkeypatch.setattr(_kept, "BOOT", kept / "boot")
    elif damage == "torn":
        journal.write_bytes(data[:-7])
    elif damage == "a range that lies":
        journal.write_bytes(data + _kept._ENTRY.pack(0, 1 << 40, 7))
    elif damage == "no file":
        part.unlink()
    else:
        journal.write_bytes(os.urandom(len(data)))
    assert ckpt(*command(cut_off)[3:]).code == 0
    assert whole()
    assert not list(kept.glob("*.part"))


def test_what_another_process_fetches_is_left_to_it(cut_off: str, hub: Hub, kept: Path, ckpt: Run) -> None:
    (part,) = kept.glob("*.part")
    held = _kept._locked(part)
    assert held >= 0
    try:
        assert ckpt(*command(cut_off)[3:]).code == 0
        assert whole()
        assert part.exists()
    finally:
        os.close(held)


def test_what_nobody_goes_on_with_is_removed(cut_off: str, hub: Hub, kept: Path, ckpt: Run) -> None:
    long_ago = time.time() - 8 * 86400
    for path in kept.iterdir():
        os.utime(path, (long_ago, long_ago))
    other = hub.file("other.pth", saved(STATE))
    assert ckpt(*command(other)[3:]).code == 0
    assert list(kept.iterdir()) == []


def test_content_that_is_not_pinned_is_not_kept(hub: Hub, kept: Path, ckpt: Run) -> None:
    url = hub.file("big.pth", saved(STATE), etag='W/"weak"')
    assert ckpt(*command(url)[3:]).code == 0
    assert not kept.exists()


def test_a_folder_that_cannot_be_made_is_no_fault(url: str, kept: Path, ckpt: Run) -> None:
    kept.write_text("in the way")
    assert ckpt(*command(url)[3:]).code == 0
    assert whole()


def test_looking_at_a_file_keeps_nothing(url: str, kept: Path, ckpt: Run) -> None:
    assert ckpt("inspect", url).code == 0
    assert not kept.exists()
