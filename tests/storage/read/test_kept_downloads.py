"""What was fetched of content that is pinned outlasts a run that was killed or cut off, and no other."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.storage.read import remote
from ckptsurgeon.storage.read.http import range_cache as _kept
from ckptsurgeon.storage.read.http.range_cache import KeptSpool, kept_spool
from ckptsurgeon.storage.read.http.spool import Journal, Spool
from ckptsurgeon.storage.read.remote import RemoteFile
from ckptsurgeon.storage.read.uri import open_source

from ...helpers.forked import Forked, ckpt_forked
from ...helpers.hub import faults
from ...helpers.hub.server import Hub
from ...helpers.nursery import COMMAND, run_apart, with_torch
from ...helpers.waiting import wait_until
from .test_bytes_fetched import encoded, model

PARTS = Path("cache/ckptsurgeon/parts")
"""Where the ``hub`` fixture has the cache of a test."""
FILTER = ["filter", "--include", "decoder", "-o", "out.safetensors"]


def kept() -> list[Path]:
    return sorted(PARTS.iterdir()) if PARTS.exists() else []


def spool() -> Spool:
    return kept_spool("memory://x", "content")


def process(url: str) -> Forked:
    return ckpt_forked(FILTER[0], url, *FILTER[1:])


@pytest.mark.long
@pytest.mark.parametrize("where", ["web", "hub"])
def test_a_killed_run_is_gone_on_with(hub: Hub, where: str) -> None:
    """Both runs together are sent what one is, and a request's worth more; counted by the server."""
    data = encoded("safetensors")
    url, path = hub.file("net.safetensors", data), "/files/*"
    if where == "hub":
        hub.repository("org/net", {"net.safetensors": data})
        url, path = "hf://org/net/net.safetensors", "/org/net/resolve/*"
    hub.fail(path, faults.hanging(2_000_000), nth=4, times=None)
    first = process(url)
    wait_until(lambda: [one.sent for one in hub.asked(path)].count(2_000_000) == remote.CONNECTIONS)
    before = hub.sent
    wait_until(lambda: sum(file.stat().st_blocks * 512 for file in PARTS.glob("*.bytes")) >= before)
    first.kill()
    assert not Path("out.safetensors").exists()
    assert len(kept()) == 2
    hub.mend()
    second = process(url)
    assert second.ended() == 0, second.err
    both = sum(one.sent for one in hub.asked(path))
    hub.forget()
    cs.apply(cs.filter(url, include=["decoder"]), "one.safetensors")
    one = sum(one.sent for one in hub.asked(path))
    print(f"{where}: one run {one} bytes, killed after {before}, both runs {both}")
    assert both <= one + remote.REQUEST
    assert Path("out.safetensors").read_bytes() == Path("one.safetensors").read_bytes()
    assert not kept()


@pytest.mark.long
def test_a_run_that_was_cut_off_is_gone_on_with(hub: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST", 500_000)
    url = hub.file("net.pth", encoded("pth"), user="me:p4ss").replace("//", "//me:p4ss@") + "?token=t0ken"
    hub.fail("/files/*", faults.dropped(1000), nth=40, times=None)
    with pytest.raises(cs.SourceError):
        cs.apply(cs.filter(url, include=["decoder"]), "out.safetensors")
    assert len(kept()) == 2
    assert not [path for path in kept() if "p4ss" in str(path) or "t0ken" in str(path)]
    assert not [path for path in kept() if path.suffix == ".journal" and b"t0ken" in path.read_bytes()]
    before = hub.sent
    hub.mend()
    cs.apply(cs.filter(url, include=["decoder"]), "out.safetensors")
    both, wanted = hub.sent, 45 * 640_000
    hub.forget()
    cs.apply(cs.filter(url, include=["decoder"]), "one.safetensors")
    assert before > wanted // 2
    assert both <= hub.sent + 2 * remote.CONNECTIONS * remote.REQUEST
    found = cs.open_checkpoint("out.safetensors").tensor("decoder.3.weight")
    assert torch.equal(found, model()["decoder.3.weight"])
    assert not kept()


@pytest.mark.long
def test_a_run_without_room_for_its_output_fetches_nothing_again(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.engine import apply

    url = hub.file("net.pth", encoded("pth"))

    def full(*_: object) -> None:
        raise cs.OutputError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(apply, "_finish", full)
        with pytest.raises(cs.OutputError):
            cs.apply(cs.filter(url, include=["encoder"]), "out.safetensors")
    hub.forget()
    cs.apply(cs.filter(url, include=["encoder"]), "out.safetensors")
    assert hub.sent <= remote.BLOCK
    assert not kept()


def test_wrong_bytes_are_not_kept(hub: Hub) -> None:
    url = hub.file("net.pth", encoded("pth"))
    plan = cs.filter(url, include=["encoder"])
    hub.fail("/files/*", faults.wrong_bytes(), times=None)
    with pytest.raises(cs.FormatError):
        cs.apply(plan, "out.safetensors")
    del plan
    assert not kept()
    hub.mend()
    cs.apply(cs.filter(url, include=["encoder"]), "out.safetensors")


@pytest.mark.parametrize(("etag", "files"), [('"1"', 2), ('W/"1"', 0), (None, 0)])
def test_only_what_is_pinned_is_kept(hub: Hub, etag: str | None, files: int) -> None:
    url = hub.file("net.pth", encoded("pth"), etag=etag)
    if etag is None:
        hub.fail("/files/*", faults.missing_header("ETag"), times=None)
    file = open_source(url)
    assert isinstance(file, RemoteFile)
    assert len(kept()) == files
    file.close()
    assert not kept()


@pytest.mark.long
def test_looking_leaves_nothing(hub: Hub) -> None:
    """A command, and a program that ends with a checkpoint open."""
    url = hub.file("net.pth", encoded("pth"))
    code = f"import ckptsurgeon as cs; ckpt = cs.open_checkpoint({url!r}); ckpt.tensor('encoder.0.weight')"
    for done in (
        run_apart(COMMAND, "inspect", url, streams=True),
        run_apart(code, streams=True, nursery=with_torch()),
    ):
        assert done.returncode == 0, done.stderr
    assert PARTS.exists()
    assert not kept()


def test_two_at_once_have_a_file_each(hub: Hub) -> None:
    url = hub.file("net.pth", encoded("pth"))
    first, second = open_source(url), open_source(url)
    assert len(kept()) == 2
    second.read(5_000_000, 10)  # type: ignore[union-attr]
    second.close()  # type: ignore[union-attr]
    assert len(kept()) == 2
    first.close()  # type: ignore[union-attr]
    assert not kept()


# The spool itself.


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTSURGEON_CACHE", "cache/ckptsurgeon")


@pytest.fixture
def left(cache: None) -> tuple[Path, Path]:
    """The bytes and the journal that a run has left."""
    one = spool()
    one.write(1000, b"x" * 500)
    one.write(5000, b"y" * 500)
    one.is_wanted = True
    one.close()
    data, journal = kept()
    assert not spool_missing(1000, 1500)
    return data, journal


def spool_missing(begin: int, end: int) -> list[tuple[int, int]]:
    """What a new spool has not; it stays as it was found."""
    one = spool()
    assert isinstance(one, KeptSpool)
    one.is_wanted = True
    found = one.missing(begin, end)
    one.close()
    return found


def test_what_was_left_is_taken_up(left: tuple[Path, Path]) -> None:
    assert spool_missing(0, 6000) == [(0, 1000), (1500, 5000), (5500, 6000)]
    one = spool()
    buffer = bytearray(500)
    one.readinto(5000, memoryview(buffer))
    assert bytes(buffer) == b"y" * 500
    one.close()
    assert not kept()


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[:-1],
        lambda data: data[:-9],
        lambda data: data[1:],
        lambda data: data.replace(b"3e8", b"3e7"),
        lambda data: data + b"0",
        lambda data: data + b"garbage\n",
        lambda data: data + b"0 ffffff 00000000\n",
        lambda data: b"\0" * len(data),
        lambda data: b"",
    ],
    ids=["torn", "a line cut short", "its head gone", "a digit", "a torn line more", "no line", "no checksum", "zeros", "empty"],
)  # fmt: skip
def test_a_damaged_journal_is_begun_anew(left: tuple[Path, Path], harm: Callable[[bytes], bytes]) -> None:
    journal = left[1]
    journal.write_bytes(harm(journal.read_bytes()))
    assert spool_missing(0, 6000) == [(0, 6000)]
    assert journal.read_bytes() == b""
    assert left[0].stat().st_size == 0


def test_a_journal_of_more_than_is_there_is_begun_anew(left: tuple[Path, Path]) -> None:
    os.truncate(left[0], 5400)
    assert spool_missing(0, 6000) == [(0, 6000)]


def test_a_journal_of_another_content_is_begun_anew(left: tuple[Path, Path]) -> None:
    other = Journal(str(left[1]), "other content")
    assert other.ranges(1 << 20) == []
    other.close()


def test_bytes_are_on_disk_before_the_journal_says_so(cache: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(_kept.os, "fdatasync", lambda fd: seen.append("flushed"))
    monkeypatch.setattr(Journal, "add", lambda self, ranges: seen.append("noted"))
    one = spool()
    one.write(0, b"x" * (_kept.FLUSH - 1))
    assert not seen
    one.write(_kept.FLUSH, b"x")
    assert seen == ["flushed", "noted"]
    one.close()


def test_a_folder_that_cannot_be_made_is_no_error(cache: None) -> None:
    Path("cache").write_text("a file")
    one = spool()
    one.write(0, b"abc")
    assert not isinstance(one, KeptSpool)
    one.close()


def test_a_link_in_the_folder_is_not_followed(left: tuple[Path, Path]) -> None:
    Path("victim").write_text("precious")
    left[0].unlink()
    left[0].symlink_to(Path("victim").absolute())
    one = spool()
    one.write(0, b"abc")
    one.close()
    assert Path("victim").read_text() == "precious"


def test_what_was_left_long_ago_is_removed(left: tuple[Path, Path]) -> None:
    long_ago = time.time() - _kept.OLD_S - 60
    for path in left:
        os.utime(path, (long_ago, long_ago))
    kept_spool("memory://y", "another").close()
    assert not kept()


def test_what_another_has_open_is_never_removed(left: tuple[Path, Path]) -> None:
    long_ago = time.time() - _kept.OLD_S - 60
    with left[0].open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in left:
            os.utime(path, (long_ago, long_ago))
        assert not isinstance(spool(), KeptSpool)
    assert kept() == list(left)
