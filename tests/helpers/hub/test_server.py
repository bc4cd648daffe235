"""The server of the tests itself: the real client and plain requests find what was put in, and every fault happens."""

from __future__ import annotations

import gzip
import http.client
import json
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

from . import faults
from .faults import Fault
from .repository import git_blob_sha1
from .server import Hub

BIG = bytes(range(256)) * 1024
FILES: dict[str, bytes | Path] = {"model.safetensors": BIG, "config.json": b"{}", "sub/a/note.txt": b"deep"}


def get(url: str, **headers: str) -> http.client.HTTPResponse:
    found = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5)
    assert isinstance(found, http.client.HTTPResponse)
    return found


def test_the_real_client_fetches_a_repository(hub: Hub) -> None:
    commit = hub.repository("org/net", FILES).main
    folder = Path(snapshot_download("org/net"))
    assert folder.name == commit
    for name, content in FILES.items():
        assert (folder / name).read_bytes() == content
    assert {one.path.split("/")[1] for one in hub.requests} == {"api", "org"}


def test_the_listing_has_digests_in_pages(hub: Hub) -> None:
    hub.repository("org/net", FILES)
    hub.page_size = 2
    found = {one.path: one for one in HfApi().list_repo_tree("org/net", recursive=True)}
    assert len(hub.asked("/api/models/org/net/tree/main")) == 3
    assert sorted(found) == ["config.json", "model.safetensors", "sub", "sub/a", "sub/a/note.txt"]
    assert [one.path for one in HfApi().list_repo_tree("org/net", "sub")] == ["sub/a"]
    assert found["config.json"].blob_id == git_blob_sha1(b"{}") == "9e26dfeeb6e641a33dae4961196235bdb965b21b"
    lfs = found["model.safetensors"].lfs
    assert lfs is not None
    assert (lfs.size, lfs.pointer_size) == (len(BIG), 131)
    infos = HfApi().get_paths_info("org/net", ["model.safetensors", "nothing"])
    assert [one.lfs.sha256 for one in infos] == [lfs.sha256]  # type: ignore[union-attr]


def test_branches_and_commits(hub: Hub) -> None:
    repository = hub.repository("org/net", {"a": b"1"})
    old = repository.main
    new = repository.commit({"a": b"2"})
    assert Path(hf_hub_download("org/net", "a")).read_bytes() == b"2"
    assert Path(hf_hub_download("org/net", "a", revision=old)).read_bytes() == b"1"
    assert HfApi().model_info("org/net").sha == new


@pytest.mark.parametrize(
    ("name", "file", "revision", "error"),
    [
        ("org/none", "a", None, errors.RepositoryNotFoundError),
        ("org/net", "b", None, errors.RemoteEntryNotFoundError),
        ("org/net", "a", "none", errors.RevisionNotFoundError),
        ("org/gated", "a", None, errors.GatedRepoError),
        ("org/private", "a", None, errors.RepositoryNotFoundError),
    ],
)
def test_what_cannot_be_had_is_said_as_the_hub_does(
    hub: Hub, name: str, file: str, revision: str | None, error: type[Exception]
) -> None:
    hub.repository("org/net", {"a": b"1"})
    hub.repository("org/gated", {"a": b"1"}, gated=True)
    hub.repository("org/private", {"a": b"1"}, token="hf_secret")
    with pytest.raises(error):
        hf_hub_download(name, file, revision=revision)


def test_a_token_opens_what_is_private_and_stays_with_its_host(hub: Hub, other_host: Hub) -> None:
    file = hub.repository("org/private", {"w.bin": BIG}, token="hf_secret", cdn=other_host.url).commits
    (stored,) = next(iter(file.values())).values()
    other_host.file(stored.sha256, BIG)
    assert Path(hf_hub_download("org/private", "w.bin", token="hf_secret")).read_bytes() == BIG
    assert {one.credentials for one in hub.requests} == {"Bearer hf_secret"}
    assert [one.credentials for one in other_host.requests] == [""]
    assert other_host.sent == len(BIG)


def test_ranges_and_conditions(hub: Hub) -> None:
    url = hub.file("big.bin", BIG)
    with get(url, Range="bytes=10-19") as found:
        assert (found.status, found.read()) == (206, BIG[10:20])
        assert found.headers["Content-Range"] == f"bytes 10-19/{len(BIG)}"
        etag = found.headers["ETag"]
    with get(url, Range="bytes=-5") as found:
        assert found.read() == BIG[-5:]
    with get(url, Range="bytes=5-6", **{"If-Range": '"other"'}) as found:
        assert found.status == 200
    for headers, code in (({"Range": f"bytes={len(BIG)}-"}, 416), ({"If-None-Match": etag}, 304)):
        with pytest.raises(urllib.error.HTTPError) as error:
            get(url, **headers)
        assert error.value.code == code
        error.value.close()
    assert [one.sent for one in hub.asked("/files/big.bin")][:2] == [10, 5]
    assert hub.requests[0].headers["range"] == "bytes=10-19"


def test_a_sparse_file_is_served_from_disk(hub: Hub, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(3 << 30)
    with get(
        hub.file("sparse", tmp_path / "sparse", etag='"1"'), Range=f"bytes={3 << 30 - 4}-{(3 << 30 - 4) + 3}"
    ) as found:
        assert found.read() == bytes(4)
    assert hub.sent == 4


def test_basic_credentials(hub: Hub) -> None:
    url = hub.file("x", b"x", user="me:pw")
    with get(url, Authorization="Basic bWU6cHc=") as found:
        assert found.read() == b"x"
    with pytest.raises(urllib.error.HTTPError, match="401") as error:
        get(url)
    error.value.close()


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (faults.short_body(10), 200, http.client.IncompleteRead),
        (faults.dropped(10), 200, ConnectionResetError),
        (faults.less(10), 200, BIG[:10]),
        (faults.wrong_bytes(), 200, BIG[:-1] + bytes([BIG[-1] ^ 0xFF])),
        (faults.hanging(10), 200, TimeoutError),
        (faults.slow(0.0001), 200, BIG),
        (faults.chunked(), 200, BIG),
        (faults.other_etag(), 200, BIG),
        (faults.missing_header("ETag"), 200, BIG),
        (faults.too_many(7), 429, None),
        (faults.status(503), 503, None),
        (faults.gated(401), 401, None),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else "",
)  # fmt: skip
def test_a_planned_fault_happens_once(hub: Hub, fault: Fault, status: int, body: object) -> None:
    address = urlsplit(hub.file("big.bin", BIG))
    hub.fail("/files/*", fault)
    patience = 0.2 if body is TimeoutError else 30
    with closing(http.client.HTTPConnection(address.netloc, timeout=patience)) as link:
        link.request("GET", address.path)
        with link.getresponse() as found:
            assert found.status == status
            if isinstance(body, bytes):
                assert found.read() == body
            elif isinstance(body, type):
                with pytest.raises(body):
                    found.read()
    with get(hub.url + address.path) as again:
        assert again.read() == BIG


@pytest.mark.parametrize(
    ("fault", "status", "where", "body"),
    [
        (faults.wrong_range(16), 206, f"bytes 16-25/{len(BIG)}", BIG[16:26]),
        (faults.no_ranges(), 200, None, BIG),
    ],
)
def test_a_server_lies_about_ranges(hub: Hub, fault: Fault, status: int, where: str | None, body: bytes) -> None:
    url = hub.file("big.bin", BIG)
    hub.fail("/files/big.bin", fault, nth=2)
    for told in ((206, f"bytes 0-9/{len(BIG)}", BIG[:10]), (status, where, body)):
        with get(url, Range="bytes=0-9") as found:
            assert (found.status, found.headers["Content-Range"], found.read()) == told


def test_a_short_length_of_a_range_and_compressed_bodies(hub: Hub) -> None:
    url = hub.file("big.bin", BIG)
    hub.fail("/files/*", faults.less(4))
    with get(url, Range="bytes=0-9") as found:
        assert (found.headers["Content-Range"][:9], found.read()) == ("bytes 0-9", BIG[:4])
    hub.fail("/files/*", faults.gzipped())
    with get(url) as found:
        assert found.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(found.read()) == BIG


def test_a_length_that_no_disk_has_room_for(hub: Hub) -> None:
    url = hub.file("big.bin", BIG)
    hub.fail("/files/*", faults.huge_length())
    with get(url) as found:
        assert found.headers["Content-Length"] == str(1 << 60)
        assert b"".join(iter(lambda: found.read(1 << 16), b"")) == BIG


def test_redirects_are_to_another_host_or_without_end(hub: Hub, other_host: Hub) -> None:
    url = hub.file("x", b"x")
    hub.fail("/files/x", faults.redirect(other_host.file("y", b"elsewhere")))
    with get(url) as found:
        assert found.read() == b"elsewhere"
    hub.fail("/files/x", faults.redirect(url), times=None)
    with pytest.raises(urllib.error.HTTPError, match="infinite loop") as error:
        get(url)
    error.value.close()


def test_a_branch_moves_between_two_requests(hub: Hub) -> None:
    repository = hub.repository("org/net", {"a": b"1"})
    old = repository.main
    hub.fail("/org/net/resolve/*", faults.first(lambda: repository.commit({"a": b"2"})), method="HEAD", nth=2)
    assert Path(hf_hub_download("org/net", "a")).read_bytes() == b"1"
    assert Path(hf_hub_download("org/net", "a")).read_bytes() == b"2"
    assert repository.main != old


def test_what_the_client_would_wait_is_told(hub: Hub, naps: list[float]) -> None:
    hub.repository("org/net", FILES)
    hub.fail("*/resolve/*", faults.too_many(retry_after=7))
    assert Path(hf_hub_download("org/net", "model.safetensors")).read_bytes() == BIG
    assert naps == [8]  # a second more than it was told


@pytest.mark.long
def test_another_process_finds_the_hub(hub: Hub) -> None:
    hub.repository("org/net", FILES)
    code = "import huggingface_hub as h; print(open(h.hf_hub_download('org/net', 'config.json')).read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == {}
    assert hub.asked("/org/net/resolve/main/config.json", "GET")
    assert hub.url == huggingface_hub.constants.ENDPOINT
