"""Every fault of a server, met by every way to fetch: the same bytes or a clean error, and nothing half done.

One row is a fault, and what must come of it for each of four ways: ``ckpt fetch`` of a file and of a repository of a hub, of
a file of the web, and ``Pretrainer.collect_files``. 0 stands for the right bytes, any other number for the exit code.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ...helpers.depth import FULL
from ...helpers.hub import faults
from ...helpers.hub.faults import Fault
from ...helpers.hub.server import Hub
from ...promises.clauses import KEPT, MOVED, SENT, clause

pytestmark = clause(MOVED)

WEIGHTS = bytes(range(256)) * 1024
NEW = bytes(range(255, -1, -1)) * 1024
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
NAME = "model.safetensors"
PLAIN = "config.json"
TOKEN = "hf_sesame"
USER = "me:sesame"

Run = Callable[..., Any]


@dataclass(frozen=True)
class Row:
    """``hub`` is the outcome for both ways to fetch from a hub and for the Pretrainer, ``web`` that for an address.

    The fault is of the requests of one method, ``times`` times; ``on`` the file's or the "api" of the hub.
    """

    fault: Fault
    hub: int
    web: int
    method: str = "GET"
    times: int | None = 1
    nth: int = 1
    on: str = "file"
    first: Fault | None = None

    @property
    def label(self) -> str:
        how = {1: "once", None: "always"}.get(self.times, f"{self.times} times")
        after = f" after {self.first.name}" if self.first else ""
        return f"{self.fault.name}, {self.on} {self.method} {how}{after}"


ALWAYS = None
ROWS = [
    Row(faults.short_body(1000), 0, 0),
    Row(faults.short_body(0), 3, 3, nth=2, times=ALWAYS, first=faults.short_body(1000)),
    Row(faults.dropped(1000), 3, 0),
    Row(faults.dropped(0), 3, 0),
    Row(faults.dropped(1000), 3, 3, times=ALWAYS),
    Row(faults.less(1000), 3, 3, times=ALWAYS),
    Row(faults.wrong_bytes(), 0, 3),
    Row(faults.wrong_bytes(), 3, 3, times=ALWAYS),
    Row(faults.wrong_range(16), 0, 3, nth=2, first=faults.short_body(1000)),
    Row(faults.other_etag(), 0, 3, nth=2, first=faults.short_body(1000)),
    Row(faults.no_ranges(), 0, 0, nth=2, first=faults.short_body(1000)),
    Row(faults.less(10), 3, 3, nth=2, first=faults.short_body(1000)),
    Row(faults.too_many(2), 0, 0),
    Row(faults.too_many(2), 3, 3, times=ALWAYS),
    Row(faults.too_many(2), 0, 0, method="HEAD"),
    Row(faults.status(500), 3, 0),
    Row(faults.status(503), 0, 0, method="HEAD"),
    Row(faults.status(503), 3, 3, method="*", times=ALWAYS),
    Row(faults.status(404), 3, 3, method="*", times=ALWAYS),
    Row(faults.gated(401), 3, 3, method="*", times=ALWAYS),
    Row(faults.gated(403), 3, 3, method="*", times=ALWAYS),
    Row(faults.forbidden(), 3, 3, method="*", times=ALWAYS),
    Row(faults.redirect("{other}/files/elsewhere"), 0, 0, times=ALWAYS),
    Row(faults.redirect("{other}/files/elsewhere"), 3, 0, method="*", times=ALWAYS),
    Row(faults.redirect("{itself}"), 3, 3, method="*", times=ALWAYS),
    Row(faults.redirect("file:///etc/passwd"), 3, 3, times=ALWAYS),
    Row(faults.redirect("ftp://127.0.0.1:9/x"), 3, 3, times=ALWAYS),
    Row(faults.slow(0.001), 0, 0, times=ALWAYS),
    Row(faults.hanging(1000), 0, 0),
    Row(faults.huge_length(), 3, 5, method="*", times=ALWAYS),
    Row(faults.chunked(), 0, 0, times=ALWAYS),
    Row(faults.gzipped(), 0, 3, times=ALWAYS),
    Row(faults.missing_header("ETag"), 0, 0, method="*", times=ALWAYS),
    Row(faults.missing_header("X-Repo-Commit"), 3, 0, method="*", times=ALWAYS),
    Row(faults.status(500), 3, 0, on="api"),
    Row(faults.status(500), 3, 0, on="api", times=ALWAYS),
    Row(faults.too_many(2), 3, 0, on="api"),
    Row(faults.redirect("{other}/files/elsewhere"), 3, 0, on="api", times=ALWAYS),
    Row(faults.hanging(5), 3, 0, on="api", times=ALWAYS),
    Row(faults.wrong_bytes(), 3, 0, on="api", times=ALWAYS),
]


class Waits:
    """What is waited, which nobody does."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def world(
    hub: Hub, other_host: Hub, naps: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Waits]:
    """A private repository and a file behind a password, with the same bytes; a redirect leads to them elsewhere."""
    hub.repository("org/net", {NAME: WEIGHTS, PLAIN: b"{}"}, token=TOKEN)
    hub.file(NAME, WEIGHTS, user=USER)
    other_host.file("elsewhere", WEIGHTS)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/token").write_text(TOKEN)
    waits = Waits()
    monkeypatch.setattr("ckptsurgeon.storage.read.http.client.sleep", waits.sleep)
    monkeypatch.setenv("CKPTSURGEON_TIMEOUT", "2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    yield waits
    waits.seconds += naps


def break_it(row: Row, hub: Hub, other_host: Hub) -> None:
    places = ("*/api/models/*",) if row.on == "api" else (f"/org/net/resolve/*/{NAME}", f"/files/{NAME}")
    location = row.fault.headers.get("Location")
    for place in places:
        fault = row.fault
        if location is not None:
            itself = f"{hub.url}/files/{NAME}" if "files" in place else f"{hub.url}/org/net/resolve/main/{NAME}"
            told = location.format(other=other_host.url, itself=itself)
            fault = Fault(fault.name, status=fault.status, headers={"Location": told})
        if row.first is not None:
            hub.fail(place, row.first, method=row.method)
        hub.fail(place, fault, method=row.method, nth=row.nth, times=row.times)


def fetch_file(hub: Hub, ckpt: Run) -> tuple[int, str]:
    done = ckpt("fetch", f"hf://org/net/{NAME}", "--dir", "out")
    return done.code, done.out + done.err


def fetch_repository(hub: Hub, ckpt: Run) -> tuple[int, str]:
    done = ckpt("fetch", "hf://org/net", "--dir", "out")
    return done.code, done.out + done.err


def fetch_address(hub: Hub, ckpt: Run) -> tuple[int, str]:
    address = f"{hub.url}/files/{NAME}".replace("http://", f"http://{USER}@")
    done = ckpt("fetch", address, "--dir", "out", "--sha256", SHA256)
    return done.code, done.out + done.err


def collect(hub: Hub, ckpt: Run) -> tuple[int, str]:
    ours = cs.Pretrainer("out", {"model": object()}, {"model": f"org/net/{NAME}"})
    try:
        ours.collect_files(local_strategy="copy", fetch_config=cs.FetchConfig(token=True))
    except cs.CheckpointError as error:
        return error.exit_code, str(error)
    return 0, ""


WAYS = {"file": fetch_file, "repository": fetch_repository, "address": fetch_address, "pretrainer": collect}


def ways_of(rows: list[Row]) -> list[tuple[Row, str]]:
    """Each fault with each way; ``make test`` tries the web's with all, and those of a hub in turn, which end alike."""
    of_hub = [way for way in WAYS if way != "address"]
    return [
        (row, way)
        for number, row in enumerate(rows)
        for way in WAYS
        if FULL or way in ("address", of_hub[number % len(of_hub)])
    ]


def named(one: Row | str) -> str:
    return one.label if isinstance(one, Row) else one


def there(folder: str = "out") -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@clause(SENT)
@pytest.mark.parametrize(("row", "way"), ways_of(ROWS), ids=named)
def test_a_fault_ends_in_the_same_bytes_or_in_a_clean_error(
    row: Row, way: str, world: Waits, hub: Hub, other_host: Hub, ckpt: Run
) -> None:
    break_it(row, hub, other_host)
    code, said = WAYS[way](hub, ckpt)
    assert code == (row.web if way == "address" else row.hub), said
    place = Path("out", "model.ckpt" if way == "pretrainer" else NAME)
    if code == 0:
        assert place.read_bytes() == WEIGHTS
    else:
        assert not Path("out").exists(), list(Path("out").rglob("*"))
    check_nothing_is_left()
    check_credentials(hub, other_host, said)
    hub.mend()
    assert WAYS[way](hub, ckpt)[0] == 0  # and what went wrong is not remembered
    assert place.read_bytes() == WEIGHTS


@clause(KEPT)
@pytest.mark.parametrize(("row", "way"), ways_of([row for row in ROWS if row.times is None]), ids=named)
def test_a_fault_leaves_what_stood_there_as_it_was(
    row: Row, way: str, world: Waits, hub: Hub, other_host: Hub, ckpt: Run
) -> None:
    """An older version was fetched before; whatever becomes of the new one, one of both is there, whole."""
    hub.repositories["org/net"].commit({NAME: NEW, PLAIN: b"{}"})
    hub.file(NAME, NEW, user=USER)
    assert (fetch_address if way == "address" else fetch_file)(hub, without_digest(ckpt))[0] == 0
    before = there()
    assert before[f"out/{NAME}"] == NEW
    hub.repositories["org/net"].commit({NAME: WEIGHTS, PLAIN: b"{}"})
    hub.file(NAME, WEIGHTS, user=USER)
    break_it(row, hub, other_host)
    code, said = WAYS[way](hub, ckpt)
    if code:
        assert there() == before, said
    else:
        assert there()[f"out/{'model.ckpt' if way == 'pretrainer' else NAME}"] in (WEIGHTS, NEW)
    check_nothing_is_left()


def without_digest(ckpt: Run) -> Run:
    return lambda *args: ckpt(*(args[:-2] if "--sha256" in args else args))


def check_nothing_is_left() -> None:
    """No temp file: neither ours nor the client's."""
    left = [
        path for path in Path().rglob("*") if ".ckpt-tmp" in path.name or path.name.endswith((".incomplete", ".tmp"))
    ]
    assert not left
    for path in Path("hf/hub").rglob("snapshots/*/*"):
        assert path.read_bytes() in (WEIGHTS, NEW, b"{}")


def check_credentials(hub: Hub, other_host: Hub, said: str) -> None:
    """They are seen by their own host alone, and stand in no message and no record."""
    assert {one.credentials for one in hub.requests} <= {f"Bearer {TOKEN}", "Basic bWU6c2VzYW1l", ""}
    assert not [one for one in hub.requests if "/files/" in one.path and TOKEN in one.credentials]
    assert {one.credentials for one in other_host.requests} <= {""}
    assert not [one for one in other_host.requests if "sesame" in str(one)]
    assert "sesame" not in said
    assert not [name for name, data in there().items() if b"sesame" in data]


@pytest.mark.parametrize("way", WAYS)
def test_a_branch_that_moves_in_the_middle_gives_one_commit(way: str, world: Waits, hub: Hub, ckpt: Run) -> None:
    net = hub.repositories["org/net"]
    for method in ("HEAD", "GET"):
        hub.fail("/org/net/resolve/*", faults.first(lambda: net.commit({NAME: NEW, PLAIN: b"[]"})), method=method)
    assert WAYS[way](hub, ckpt)[0] == 0
    assert there().get("out/config.json", b"{}") == b"{}"
    assert there()[f"out/{'model.ckpt' if way == 'pretrainer' else NAME}"] == WEIGHTS


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_names_a_time_is_given_it(way: str, world: Waits, hub: Hub, naps: list[float], ckpt: Run) -> None:
    hub.fail(f"*/{NAME}", faults.too_many(retry_after=7))
    assert WAYS[way](hub, ckpt)[0] == 0
    assert [*world.seconds, *naps] in ([7], [8])  # the hub's client waits one more


def test_a_time_too_long_is_not_waited_for(world: Waits, hub: Hub, ckpt: Run) -> None:
    hub.fail(f"/files/{NAME}", faults.too_many(retry_after=4000))
    code, said = fetch_address(hub, ckpt)
    assert (code, world.seconds) == (3, [])
    assert "The server asks to wait 4000 s" in said


def test_what_came_is_not_sent_again(world: Waits, hub: Hub, ckpt: Run) -> None:
    """Three quarters come in three pieces; the bytes that are sent are those of the file, once."""
    for nth in (1, 2, 3):
        hub.fail(f"/files/{NAME}", faults.short_body(1 << 16), nth=nth)
    assert fetch_address(hub, ckpt)[0] == 0
    assert hub.sent == len(WEIGHTS)
    assert [one.headers.get("range") for one in hub.requests] == [None, *(f"bytes={n << 16}-" for n in (1, 2, 3))]


def test_credentials_go_along_to_the_same_host(world: Waits, hub: Hub, ckpt: Run) -> None:
    hub.fail(f"/files/{NAME}", faults.redirect(f"{hub.url}/files/{NAME}?again"))
    assert fetch_address(hub, ckpt)[0] == 0
    assert [one.credentials for one in hub.requests] == ["Basic bWU6c2VzYW1l"] * 2


def test_a_signed_address_is_in_no_message_and_no_record(world: Waits, hub: Hub, other_host: Hub, ckpt: Run) -> None:
    hub.file("open.bin", WEIGHTS)
    hub.fail("/files/*", faults.redirect(f"{other_host.url}/files/none?X-Signature=sesame"), times=None)
    for uri in (f"{hub.url}/files/open.bin?sig=sesame", f"{hub.url}/files/none.bin?sig=sesame"):
        done = ckpt("fetch", uri, "--dir", "out")
        assert done.code == 3
        assert "sesame" not in done.out + done.err
    hub.mend()
    done = ckpt("fetch", f"{hub.url}/files/open.bin?sig=sesame", "--dir", "out", "--json")
    assert done.code == 0
    assert "sesame" not in done.out + done.err
    assert sorted(os.listdir("out")) == [".open.bin.collected.json", "open.bin"]
    assert b"sesame" not in Path("out/.open.bin.collected.json").read_bytes()


def test_a_disk_without_room_for_the_cache_is_said(
    world: Waits, hub: Hub, ckpt: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "hf/hub/blob")

    monkeypatch.setattr(file_download, "http_get", full)
    done = ckpt("fetch", f"hf://org/net/{NAME}")
    assert done.code == 5
    assert "cannot write hf/hub/blob: there is no space left" in done.err
