"""``ckpt fetch`` killed at any moment: the next run leaves one whole file and no temp."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ...helpers.depth import FULL
from ...helpers.hub import faults
from ...helpers.hub.server import Hub
from ...helpers.waiting import wait_until
from ...promises.clauses import BROKEN_OFF, clause

pytestmark = clause(BROKEN_OFF)

WEIGHTS = random.Random(0).randbytes(3 << 20)
NEW = random.Random(1).randbytes(3 << 20)
SHA256 = hashlib.sha256(NEW).hexdigest()


def started(uri: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ckptsurgeon", "fetch", uri, "--dir", "out"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def temps() -> list[Path]:
    return [path for path in Path("out").rglob("*") if ".ckpt-tmp" in path.name]


@pytest.mark.costly
@pytest.mark.parametrize("where", ["web", "hub"])
@pytest.mark.parametrize("seed", range(3 if FULL else 1))
def test_after_a_kill_at_any_moment_the_next_run_leaves_one_whole_file(hub: Hub, where: str, seed: int) -> None:
    """The moment is that at which so many bytes have been sent, in a body that comes slowly, or a little later."""
    uri = "hf://org/net/net.bin" if where == "hub" else f"{hub.url}/files/net.bin"
    repository = hub.repository("org/net", {"net.bin": WEIGHTS})
    hub.file("net.bin", WEIGHTS)
    cs.fetch(uri, dir="out")
    repository.commit({"net.bin": NEW})
    hub.file("net.bin", NEW)
    hub.forget()
    hub.fail("*/net.bin", faults.slow(0.01), times=None)
    draw = random.Random(seed)
    enough = draw.randrange(len(NEW) + 1)
    process = started(uri)
    wait_until(lambda: hub.sent >= enough or process.poll() is not None)
    with suppress(subprocess.TimeoutExpired):
        process.wait(draw.uniform(0, 0.05))
    process.kill()
    process.wait()
    assert Path("out/net.bin").read_bytes() in (WEIGHTS, NEW)
    assert len(temps()) <= 2  # of the file, and of the record beside it
    hub.mend()
    found = cs.fetch(uri, dir="out")
    assert Path("out/net.bin").read_bytes() == NEW
    assert found.files[0].sha256 == SHA256
    assert not temps()
    assert sorted(path.name for path in Path("out").iterdir()) == [".net.bin.collected.json", "net.bin"]


def test_what_the_hub_s_client_had_begun_is_never_taken_for_the_file(hub: Hub) -> None:
    """The client leaves it in its cache under a name of its own; that is neither a blob nor in a snapshot."""
    hub.repository("org/net", {"net.bin": NEW})
    hub.fail("/org/net/resolve/*", faults.hanging(1 << 20))
    process = started("hf://org/net/net.bin")
    wait_until(lambda: hub.sent >= 1 << 20)
    process.kill()
    process.wait()
    hub.mend()
    cs.fetch("hf://org/net/net.bin", dir="out")
    assert Path("out/net.bin").read_bytes() == NEW
    assert {path.read_bytes() for path in Path("hf/hub").rglob("snapshots/*/*")} == {NEW}
    assert not temps()
