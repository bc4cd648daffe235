"""Files at web addresses: only what is read is fetched, and every answer is held against what was asked for."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import torch
from safetensors.torch import save

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, FormatError, SourceError
from ckptsurgeon.storage.read import remote
from ckptsurgeon.storage.read.base import File
from ckptsurgeon.storage.read.http import client as _http
from ckptsurgeon.storage.read.remote import RemoteFile, notes_of
from ckptsurgeon.storage.read.uri import file_address, open_source

from ...helpers.hub import faults
from ...helpers.hub.faults import Fault
from ...helpers.hub.server import Hub

BIG = random.Random(1).randbytes(1 << 20)
BLOCK = remote.BLOCK


def opened(url: str) -> RemoteFile:
    file = open_source(url)
    assert isinstance(file, RemoteFile)
    assert isinstance(file, File)
    return file


def test_opening_asks_once_and_reading_fetches_blocks(hub: Hub) -> None:
    file = opened(hub.file("net.pth", BIG))
    assert (file.name, file.size, file.mtime_ns, file.remote) == ("net.pth", len(BIG), None, True)
    assert file.read(10, 100) == BIG[10:110]
    assert len(hub.requests) == 1
    assert hub.sent == BLOCK
    buffer = bytearray(10)
    file.readinto(3 * BLOCK + 5, memoryview(buffer))
    assert bytes(buffer) == BIG[3 * BLOCK + 5 :][:10]
    assert file.read(3 * BLOCK, 1000) == BIG[3 * BLOCK :][:1000]
    assert len(hub.requests) == 2
    assert hub.sent == 2 * BLOCK
    file.close()


def test_what_is_needed_comes_in_few_requests_and_nothing_twice(hub: Hub) -> None:
    file = opened(hub.file("net.pth", BIG))
    hub.forget()
    came: list[int] = []
    near, far = (200_000, 200_010), (900_000, 900_100)
    file.need([near, (200_020, 200_030), far, near], came.append)
    assert sorted(one.headers["range"] for one in hub.requests) == ["bytes=200000-200029", "bytes=900000-900099"]
    assert sum(came) == hub.sent == 130
    file.need([near, far])
    assert file.read(*(near[0], 10)) == BIG[slice(*near)]
    assert len(hub.requests) == 2
    file.close()


def test_a_long_range_is_cut_into_requests(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST", 100_000)
    file = opened(hub.file("net.pth", BIG))
    assert file.read(0, len(BIG)) == BIG
    assert len(hub.requests) == 1 + 10
    assert hub.sent == len(BIG)
    file.close()


def test_only_a_file_that_is_all_there_has_a_descriptor(hub: Hub) -> None:
    file = opened(hub.file("net.pth", BIG))
    with file.descriptor() as fd:
        assert fd is None
    file.need([(0, len(BIG))])
    with file.descriptor() as fd:
        assert (fd or -1) > 0
    file.close()
    assert file.closed
    with pytest.raises(SourceError, match="closed"):
        file.read(0, 1)


def test_threads_share_a_file(hub: Hub) -> None:
    file = opened(hub.file("net.pth", BIG))
    wrong: list[int] = []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(30):
            at = draw.randrange(len(BIG) - 5000)
            if file.read(at, 5000) != BIG[at : at + 5000]:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert hub.sent == len(BIG)
    file.close()


def test_reading_beyond_the_end(hub: Hub) -> None:
    file = opened(hub.file("net.pth", b"0123456789"))
    assert file.read(5, 5) == b"56789"
    with pytest.raises(SourceError, match="net.pth ended at byte 10"):
        file.read(5, 6)
    file.close()


def test_an_empty_file(hub: Hub) -> None:
    file = opened(hub.file("net.pth", b""))
    assert (file.size, file.read(0, 0)) == (0, b"")
    file.close()


@pytest.mark.parametrize("fault", [faults.no_ranges(), faults.chunked()], ids=lambda fault: fault.name)
def test_a_server_without_ranges_sends_the_whole_file_which_is_said(hub: Hub, fault: Fault) -> None:
    url = hub.file("net.pth", BIG)
    hub.fail("/files/*", Fault("no ranges", ignore_range=True, chunked=fault.chunked), times=None)
    file = opened(url)
    assert file.read(0, file.size) == BIG
    assert len(hub.requests) == 1
    assert notes_of(file) == (
        f"the server of {url} does not support range requests: the whole file was fetched (1.0 MB)",
    )
    file.close()


def test_shards_that_a_server_sends_whole_are_counted(hub: Hub) -> None:
    shards = {f"model-0000{n}-of-00002.safetensors": save({f"w{n}": torch.zeros(1000)}) for n in (1, 2)}
    index = {"metadata": {}, "weight_map": {f"w{n}": name for n, name in enumerate(shards, 1)}}
    url = hub.file("model.safetensors.index.json", json.dumps(index).encode())
    for name, data in shards.items():
        hub.file(name, data)
    hub.fail("/files/*", Fault("no ranges", ignore_range=True), times=None)
    said = f"the server of {url} does not support range requests: 2 shards were fetched completely (8.1 kB)"
    assert said in cs.inspect(url).notes


@pytest.mark.parametrize(
    "fault",
    [
        faults.short_body(20_000), faults.dropped(20_000), faults.dropped(0), faults.status(500), faults.status(503),
        faults.too_many(7),
    ],
    ids=lambda fault: fault.name,
)  # fmt: skip
@pytest.mark.parametrize("nth", [1, 2])
def test_what_passes_is_tried_again(hub: Hub, waits: list[float], fault: Fault, nth: int) -> None:
    url = hub.file("net.pth", BIG)
    hub.fail("/files/*", fault, nth=nth)
    file = opened(url)
    assert file.read(0, len(BIG)) == BIG
    assert hub.sent - sum(one.sent for one in hub.requests if one.status >= 400) <= len(BIG) + BLOCK
    assert len(waits) == (0 if nth == 1 and fault.cut is not None else 1)
    assert not waits or waits[0] >= (7 if fault.status == 429 else 0.3)
    file.close()


def test_a_connection_that_breaks_is_asked_for_the_rest_only(hub: Hub) -> None:
    file = opened(hub.file("net.pth", BIG))
    hub.forget()
    hub.fail("/files/*", faults.short_body(300_000))
    file.need([(100_000, 1_000_000)])
    assert [one.headers["range"] for one in hub.requests] == ["bytes=100000-999999", "bytes=400000-999999"]
    assert hub.sent == 900_000
    assert file.read(100_000, 900_000) == BIG[100_000:1_000_000]
    file.close()


@pytest.mark.long
def test_a_hanging_server_is_left(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTSURGEON_TIMEOUT", "1")
    url = hub.file("net.pth", BIG)
    hub.fail("/files/*", faults.hanging(10), nth=2)
    file = opened(url)
    assert file.read(0, len(BIG)) == BIG
    file.close()


@pytest.mark.parametrize("fault", [faults.status(503), faults.dropped(0), faults.too_many(1)], ids=lambda f: f.name)
def test_patience_ends(hub: Hub, waits: list[float], fault: Fault) -> None:
    file = opened(hub.file("net.pth", BIG))
    hub.fail("/files/*", fault, times=None)
    with pytest.raises(SourceError, match=r"net\.pth cannot be fetched: .* Tried 5 times"):
        file.read(500_000, 10)
    assert len(waits) == _http.TRIES - 1
    file.close()


def test_a_server_that_asks_for_an_hour_is_given_up_at_once(hub: Hub, waits: list[float]) -> None:
    hub.fail("/files/*", faults.too_many(3600))
    with pytest.raises(SourceError, match="429"):
        open_source(hub.file("net.pth", BIG))
    assert not waits


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.wrong_range(16), "asked for bytes 458752 to 524288 of 1048576, but sent bytes 458768 to"),
        (faults.less(10), "asked for 65536 bytes, but announced 10"),
        (faults.other_etag(), "has changed while it was being read"),
        (faults.missing_header("Content-Range"), "but sent no range"),
        (Fault("no ranges", ignore_range=True), "but sent no range"),
        (Fault("gzip", headers={"Content-Encoding": "gzip"}), r"the server compressed the file \(gzip\)"),
        (faults.status(404), "cannot be fetched: 404"),
        (faults.gated(401), "cannot be fetched: 401"),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_answers_that_lie_are_errors(hub: Hub, fault: Fault, message: str) -> None:
    file = opened(hub.file("net.pth", BIG))
    hub.fail("/files/*", fault, times=None)
    with pytest.raises(SourceError, match=message):
        file.read(500_000, 10)
    assert file.read(0, 10) == BIG[:10]
    file.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (faults.wrong_range(16), "asked for bytes 0 to 65536"),
        (faults.gzipped(), r"the server compressed the file \(gzip\)"),
        (faults.status(404), "cannot be fetched: 404"),
        (faults.missing_header("Content-Range"), "does not report the size"),
        (
            Fault("huge", ignore_range=True, headers={"Content-Length": str(1 << 60)}),
            "has 1152.9 PB, but only .* are free",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)
def test_first_answers_that_lie_are_errors(hub: Hub, fault: Fault, message: str) -> None:
    hub.fail("/files/*", fault, times=None)
    with pytest.raises(SourceError, match=message):
        open_source(hub.file("net.pth", BIG))


def test_a_failure_in_one_request_ends_the_others(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "REQUEST", 50_000)
    file = opened(hub.file("net.pth", BIG))
    hub.fail("/files/*", faults.status(404), nth=2)
    with pytest.raises(SourceError, match="404"):
        file.need([(0, len(BIG))])
    assert hub.sent < len(BIG)
    assert file.read(0, len(BIG)) == BIG
    file.close()


def test_credentials_go_to_their_host_and_nowhere_else(hub: Hub, other_host: Hub) -> None:
    url = hub.file("net.pth", BIG, user="me:p@w").replace("http://", "http://me:p%40w@")
    there = other_host.file("there", BIG)
    file = opened(f"{url}?token=secret#part")
    assert file.uri == f"{hub.url}/files/net.pth"
    hub.fail("/files/*", faults.redirect(there))
    assert file.read(500_000, 10) == BIG[500_000:500_010]
    hub.fail("/files/*", faults.status(403))
    with pytest.raises(SourceError, match="403") as error:
        file.read(900_000, 10)
    assert not any(secret in str(error.value) for secret in ("p@w", "p%40w", "secret"))
    assert all(one.credentials for one in hub.requests)
    assert not any(one.credentials for one in other_host.requests)
    assert other_host.requests
    file.close()


def test_redirects(hub: Hub, other_host: Hub) -> None:
    url = hub.file("net.pth", BIG)
    hub.fail("/files/*", faults.redirect(other_host.file("there", BIG)), times=None)
    file = opened(url)
    assert file.read(0, len(BIG)) == BIG
    assert file.uri == url
    file.close()


@pytest.mark.parametrize("where", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_other_schemes_are_refused(hub: Hub, where: str) -> None:
    hub.fail("/files/*", faults.redirect(where))
    with pytest.raises(SourceError, match=f"redirected to a {where.partition(':')[0]}: address"):
        open_source(hub.file("net.pth", BIG))


def test_an_invalid_address_is_not_called_a_redirect(hub: Hub) -> None:
    with pytest.raises(SourceError, match=r"http://x\.\.y/net\.pth cannot be fetched: the address is invalid: "):
        open_source("http://x..y/net.pth")


def test_a_server_that_sends_little_is_not_said_to_send_nothing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(0, 10_000, 40))
    monkeypatch.setattr(_http.time, "monotonic", lambda: float(next(times)))
    patience = _http.RetryLimits("http://x/y")
    patience.again("broke off", came=1000)
    with pytest.raises(SourceError, match="The server sent too little in 60 s"):
        patience.again("broke off", came=1000)


def test_redirects_without_end(hub: Hub) -> None:
    url = hub.file("net.pth", BIG)
    hub.fail("/files/*", faults.redirect(url), times=None)
    with pytest.raises(SourceError, match="too many redirects"):
        open_source(url)


def test_nobody_there(waits: list[float]) -> None:
    with pytest.raises(SourceError, match=r"http://127.0.0.1:9/x.pth cannot be reached: .*refused"):
        open_source("http://me:pw@127.0.0.1:9/x.pth")


@pytest.mark.parametrize("url", ["http:///x.pth", "https://[::1/x.pth", "http://me:pw@host:port/x.pth"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        open_source(url)
    assert "pw" not in str(error.value)


def test_a_folder_cannot_be_listed_and_gives_what_is_named(hub: Hub) -> None:
    hub.file("run/b c.pth", b"bytes")
    with pytest.raises(SourceError, match="cannot be listed"):
        open_source(f"{hub.url}/files/run/")
    file = opened(hub.file("run/a.pth", BIG))
    folder = file.folder()
    assert (folder.name, folder.names(), folder.folders()) == ("run", [], [])
    other = folder.file("b c.pth")
    assert other.read(0, 5) == b"bytes"
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(FormatError, match="outside of it"):
            folder.file(name)
    file.close()
    other.close()


def test_no_file_is_left(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    file = opened(hub.file("net.pth", BIG))
    assert not list((tmp_path / "tmp").iterdir())
    file.close()


# The page that the hub shows of a file, copied from a browser's address bar.


def test_a_page_of_the_hub_is_the_file_that_it_shows_and_that_is_said(hub: Hub, ckpt: Any) -> None:
    torch.save({"w": torch.ones(2)}, "net.pth")
    hub.repository("org/net", {"best/net.pth": Path("net.pth").read_bytes()})
    page = f"{hub.url}/org/net/blob/main/best/net.pth"
    said = f"{page} is a web page: the file {hub.url}/org/net/resolve/main/best/net.pth is used instead"
    found = cs.inspect(page)
    assert list(found.notes) == [said]
    assert found.path == f"{hub.url}/org/net/resolve/main/best/net.pth"
    assert list(cs.fetch(page).notes) == [said]
    assert said in " ".join(ckpt("fetch", page, "--dir", "here").err.split())
    assert Path("here/net.pth").read_bytes() == Path("net.pth").read_bytes()
    pretrainer = cs.Pretrainer("collected", {"net": torch.nn.Linear(1, 1)}, {"net": page})
    assert pretrainer.collect_files()["net"].read_bytes() == Path("net.pth").read_bytes()


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("https://huggingface.co/a/b/blob/main/x.pth", "https://huggingface.co/a/b/resolve/main/x.pth"),
        ("https://hf.co/a/b/blob/v1/c/x.pth?download=true", "https://hf.co/a/b/resolve/v1/c/x.pth?download=true"),
        (
            "https://huggingface.co/datasets/a/b/blob/main/x.zip",
            "https://huggingface.co/datasets/a/b/resolve/main/x.zip",
        ),
        ("https://me:key@huggingface.co/a/b/blob/main/x", "https://me:key@huggingface.co/a/b/resolve/main/x"),
        ("https://huggingface.co/a/b/resolve/main/blob/x.pth", ""),
        ("https://huggingface.co/a/b/blob/main", ""),
        ("https://example.org/a/b/blob/main/x.pth", ""),
        ("https://[::1/a/b/blob/main/x.pth", ""),
        ("a/b/blob/main/x.pth", ""),
        ("hf://a/b/blob/main/x.pth", ""),
    ],
)
def test_only_pages_of_a_hub_have_another_address(uri: str, address: str) -> None:
    assert file_address(uri) == (address or uri)


@pytest.mark.long
def test_threads_that_ask_at_once_share_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two clients, one would be forgotten with its connections open."""
    made: list[object] = []
    both = threading.Barrier(2)

    def create(**_: object) -> object:
        made.append(object())
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)  # one alone waits in vain
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(httpx2, "Client", create)
    threads = [threading.Thread(target=_http._client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(made) == 1
