"""Servers that never end: what they may cost in time and in room on the disk, whoever asks them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, SourceError
from ckptsurgeon.storage.read import remote
from ckptsurgeon.storage.read.http import ranges as _http_ranges
from ckptsurgeon.storage.read.http import spool as _room
from ckptsurgeon.storage.read.http import timeouts as _pace
from ckptsurgeon.storage.read.http.timeouts import TimeLimit, server_timeout, timeout_s
from ckptsurgeon.storage.read.uri import open_source

from ...helpers.hub import faults
from ...helpers.hub.faults import Fault
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved

Run = Callable[..., Any]
BIG = bytes(range(256)) * 4096
SLOW = [
    faults.endless_hints(), faults.dripping_head(), faults.dripping(), faults.dripping(length="Transfer-Encoding: none"),
    faults.dripping_chunk(), faults.hanging(10), faults.hanging(0),
]  # fmt: skip
VERBS = {
    "inspect": ["inspect"], "scan": ["scan"], "convert": ["convert", "-o", "out.safetensors"],
    "fetch": ["fetch", "--dir", "out"],
}  # fmt: skip


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", SLOW, ids=lambda fault: fault.name)
def test_a_server_that_never_comes_to_an_end_is_given_up(hub: Hub, fault: Fault, verb: str, ckpt: Run) -> None:
    hub.fail("/files/*", fault, times=None)
    word, *rest = VERBS[verb]
    done = ckpt("--timeout", "0.4", word, hub.file("net.pth", BIG), *rest)
    assert done.code == 3 or (verb, done.code) == ("scan", 1), done  # of which a part could not be judged
    assert "net.pth" in done.err + done.out
    assert not list(Path().glob("out*"))
    assert len(hub.requests) <= 5  # one that is stuck is tried once more, and then no other part is asked for


@pytest.mark.costly
@pytest.mark.parametrize("uri", ["hf://org/net", "hf://org/net/net.pth"])
@pytest.mark.parametrize("fault", SLOW, ids=lambda fault: fault.name)
@pytest.mark.parametrize("on", ["/api/*", "/org/net/resolve/*"])
def test_a_hub_that_never_comes_to_an_end_is_given_up(
    hub: Hub, fault: Fault, uri: str, on: str, naps: list[float], ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.repository("org/net", {"net.pth": BIG})
    hub.fail(on, fault, method="GET", times=None)
    done = ckpt("fetch", uri, "--timeout=0.4")
    assert done.code == 3, done
    assert not list(Path("hf/hub").rglob("*.incomplete"))


@pytest.mark.long
def test_a_file_that_comes_slowly_but_steadily_is_waited_for(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the limit: the limit is on what is next to nothing."""
    monkeypatch.setenv("CKPTSURGEON_TIMEOUT", "0.6")
    url = hub.file("net.pth", BIG)
    hub.fail("/files/*", Fault("slow", ignore_range=True, pause_s=0.08), times=None)
    file = open_source(url)
    assert file.size == len(BIG)  # type: ignore[union-attr]
    assert len(hub.requests) == 1


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(_pace.time, "monotonic", lambda: self.now)


def test_the_pace_is_by_the_head_and_then_by_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = TimeLimit(10, ValueError)
    pace.asked()
    clock.now += 9
    pace.count(1 << 20)
    assert pace.left() == 1
    clock.now += 1
    with pytest.raises(ValueError, match="no answer within 10 s"):
        pace.left()
    pace.answered()
    for _ in range(3):
        clock.now += 9
        assert pace.left() == 1
        pace.count(10 * _pace.SLOWEST)
        assert pace.left() == 10
    pace.count(10 * _pace.SLOWEST - 1)
    clock.now += 10
    with pytest.raises(ValueError, match="only 10239 more bytes within 10 s"):
        pace.left()


def test_the_limit_is_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> None:
    assert timeout_s() == 60
    monkeypatch.setenv("CKPTSURGEON_TIMEOUT", "7.5")
    assert timeout_s() == 7.5
    with server_timeout("3"):
        assert timeout_s() == 3
    assert timeout_s() == 7.5
    for said in ("0", "-1", "nan", "inf", "ten", ""):
        for line in (("--timeout", said, "inspect", "x"), ("inspect", "x", f"--timeout={said}")):
            done = ckpt(*line)
            assert (done.code, done.out) == (2, "")
            assert "--timeout" in done.err
    assert ckpt("inspect", "x", "--timeout").code == 2
    monkeypatch.setenv("CKPTSURGEON_TIMEOUT", "soon")
    with pytest.raises(ConfigError, match="CKPTSURGEON_TIMEOUT is 'soon'"):
        timeout_s()


# Room on the disk.


@pytest.mark.parametrize("verb", ["inspect", "scan", "convert"])
def test_an_endless_body_is_kept_up_to_a_bound(hub: Hub, verb: str, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_http_ranges, "UNANNOUNCED", 1 << 20)
    hub.fail("/files/*", faults.endless(), times=None)
    word, *rest = VERBS[verb]
    done = ckpt(word, hub.file("net.pth", BIG), *rest)
    assert done.code == 3
    assert re.search(r"does not report the file's size: reading stopped after (9\d\d\.\d kB|1\.0 MB)", done.err)
    assert len(hub.requests) == 1


@pytest.mark.parametrize(("verb", "code"), [("inspect", 3), ("fetch", 5)])
def test_some_room_is_left_on_the_disk(
    hub: Hub, verb: str, code: int, ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that says that it fills up, and is left with what is not ours."""
    monkeypatch.setattr(_room, "EVERY", 1 << 16)
    look = os.statvfs(".")
    free = [8 << 20]

    def room(_: object) -> int:
        free[0] -= 1 << 20
        return max(0, free[0])

    assert _room.free_bytes(look) is not None
    monkeypatch.setattr(_room, "free_bytes", room)
    hub.fail("/files/*", faults.endless(), times=None)
    word, *rest = VERBS[verb]
    done = ckpt(word, hub.file("net.pth", BIG), *rest)
    assert done.code == code, done
    assert "almost no space left" in done.err
    assert hub.sent < 64 << 20
    assert not list(Path().glob("out*"))


def test_the_room_that_is_left_is_a_part_of_a_small_disk() -> None:
    def disk(blocks: int, free: int) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, blocks, free, free, 0, 0, 0, 0, 255))

    assert _room.free_bytes(disk(1 << 28, 1 << 20)) == (4096 << 20) - (1 << 30)
    assert _room.free_bytes(disk(1000, 100)) == 4096 * 100 - int(4096 * 1000 * 0.05)
    assert _room.free_bytes(disk(1 << 28, 100)) == 0
    assert _room.free_bytes(disk(0, 0)) is None


@pytest.mark.parametrize("uri", ["hf://org/net", "hf://org/net/net.pth"])
def test_an_endless_file_of_a_hub_leaves_room(hub: Hub, uri: str, ckpt: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_room, "EVERY", 1 << 20)
    left = iter([4 << 20, 2 << 20])
    monkeypatch.setattr(_room, "free_bytes", lambda _: next(left, 0))
    hub.repository("org/net", {"net.pth": BIG})
    hub.fail("/org/net/resolve/*", faults.endless(), times=None)
    done = ckpt("fetch", uri)
    assert done.code == 5, done
    assert not list(Path("hf/hub").rglob("*.incomplete"))


# Addresses and digests.


@pytest.mark.parametrize(
    "location",
    [
        "http://[::1/x", "http://[x]/y", "http://h:99999/x", "http://h:port/x", "http://:80/x", "http://", "http:///x", "//",
        "//[", "http://é\u202e/x", "http://a b/x", "http://\x7f/x", "http://" + "a" * 300 + "/x", "http://x..y/", "http://%00/",
        "http://1.2.3.4.5.6:1/x", "http://xn--\u00e9/x", "\\\\h\\x", "http:\\\\h\\x", "http://u:p@[::1/x", "HTTP://[",
    ],
)  # fmt: skip
@pytest.mark.parametrize("verb", ["inspect", "fetch"])
def test_a_redirect_to_what_is_no_address_is_an_error(hub: Hub, location: str, verb: str, ckpt: Run) -> None:
    url = hub.file("net.pth", BIG)
    hub.fail("/files/net.pth", faults.redirect(location), times=None)
    done = ckpt(verb, url, *VERBS[verb][1:])
    assert done.code == 3, done
    assert "net.pth" in done.err


VALUES = {"encoder.weight": torch.full((400, 400), 1.0), "decoder.weight": torch.full((400, 400), 2.0)}


@pytest.mark.costly
@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("cdn", [False, True])
@pytest.mark.parametrize("lfs", [False, True])
def test_a_file_of_a_hub_that_is_read_whole_is_held_against_its_digest(
    hub: Hub, other_host: Hub, name: str, cdn: bool, lfs: bool, ckpt: Run
) -> None:
    """Bytes of a tensor are others, where no checksum of the format sees it, or the format's sees it too."""
    from safetensors.torch import save

    data = saved(VALUES) if name.endswith(".pth") else save(VALUES)
    wrong = bytearray(data)
    wrong[len(data) // 2] ^= 1
    net = hub.repository("org/net", cdn=other_host.url if cdn else "")
    net.commit({name: data}, lfs=lfs or cdn)
    stored = net.commits[net.main][name]
    lied = type(stored)(bytes(wrong), stored.lfs, stored.etag)
    other_host.files[stored.sha256] = lied
    if not cdn:
        hub.fail("/org/net/resolve/*", faults.first(lambda: net.commits[net.main].update({name: lied})), times=None)
        lied.__dict__["sha256"] = stored.sha256
    done = ckpt("convert", f"hf://org/net/{name}", "-o", "out.safetensors")
    assert done.code == 3, done
    assert "does not match the hub: its digest differs" in done.err or "CRC" in done.err
    assert not Path("out.safetensors").exists()
    assert not list(Path("cache").rglob("*.bytes"))
    net.commits[net.main][name] = stored
    other_host.files[stored.sha256] = stored
    hub.mend()
    assert ckpt("convert", f"hf://org/net/{name}", "-o", "out.safetensors").code == 0
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("encoder.weight"), VALUES["encoder.weight"])


def test_a_file_of_which_a_part_is_read_is_not_fetched_for_its_digest(hub: Hub) -> None:
    hub.repository("org/net", {"net.pth": saved({f"{i}.weight": torch.ones(400, 400) for i in range(8)})})
    cs.inspect("hf://org/net/net.pth")
    assert hub.sent < 4 * remote.BLOCK


def test_a_small_file_that_is_wrong_is_refused_at_once(hub: Hub) -> None:
    net = hub.repository("org/net", {"config.json": b"{}"})
    stored = net.commits[net.main]["config.json"]
    net.commits[net.main]["config.json"] = type(stored)(b"[]", False, stored.etag)
    with pytest.raises(SourceError, match="its digest differs"):
        open_source("hf://org/net/config.json")
