"""``fetch`` from a hub, the web, a store and this machine: what comes, where it lies, what was asked for it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ...helpers.hub import faults
from ...helpers.hub.repository import Repository
from ...helpers.hub.server import Hub

WEIGHTS = bytes(range(256)) * 64
FILES: dict[str, bytes | Path] = {"config.json": b"{}", "model.safetensors": WEIGHTS, "sub/a/note.txt": b"deep"}
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()

Run = Callable[..., Any]


@pytest.fixture
def net(hub: Hub) -> Repository:
    return hub.repository("org/net", FILES)


def files_in(folder: str | Path) -> dict[str, bytes]:
    """What a folder has, records left out."""
    found = (path for path in Path(folder).rglob("*") if path.is_file() and not path.name.endswith(".collected.json"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_repository_is_pinned_and_held_against_the_hub(hub: Hub, net: Repository) -> None:
    found = cs.fetch("hf://org/net")
    assert found.commit == net.main == Path(found.path).name
    assert files_in(found) == FILES
    assert {one.name: one.checked for one in found.files} == {
        "config.json": "git", "model.safetensors": "sha256", "sub/a/note.txt": "git",
    }  # fmt: skip
    assert {one.name: (one.size, one.sha256) for one in found.files}["model.safetensors"] == (len(WEIGHTS), SHA256)
    assert found.notes == ()
    assert [one.path for one in hub.requests if net.main not in one.path] == ["/api/models/org/net"]


def test_a_file_is_taken_at_the_commit_that_the_branch_had(hub: Hub, net: Repository) -> None:
    old = net.main
    moved = faults.first(lambda: net.commit({"model.safetensors": b"other" * 999}))
    hub.fail("/org/net/resolve/*", moved, method="HEAD")
    found = cs.fetch("hf://org/net/model.safetensors")
    assert (found.commit, Path(found.path).read_bytes()) == (old, WEIGHTS)
    assert net.main != old


@pytest.mark.parametrize("uri", ["hf://org/net@{}", "hf://org/net@{}/sub/a/note.txt"])
def test_a_commit_that_is_in_the_cache_is_given_without_a_request(hub: Hub, net: Repository, uri: str) -> None:
    first = cs.fetch(uri.format(net.main))
    hub.forget()
    assert cs.fetch(uri.format(net.main)) == first
    assert not hub.requests


@pytest.mark.parametrize("uri", ["hf://org/net", "hf://org/net/config.json"])
def test_offline_a_branch_is_what_the_cache_knows(
    hub: Hub, net: Repository, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cs.fetch(uri)
    hub.forget()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cs.fetch(uri) == first
    with pytest.raises(cs.SourceError, match="not in the cache, and HF_HUB_OFFLINE is set") as error:
        cs.fetch("hf://org/other")
    assert error.value.exit_code == 3
    assert not hub.requests


def test_a_repository_of_which_a_file_is_missing_is_not_whole_offline(
    hub: Hub, net: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cs.fetch("hf://org/net")
    os.unlink(Path(found.path, "config.json"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(cs.SourceError, match="the whole of the hub repository org/net at .* is not in the cache"):
        cs.fetch("hf://org/net")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_went_bad_in_the_cache_is_fetched_again_and_said(hub: Hub, net: Repository, name: str) -> None:
    blob = Path(os.path.realpath(cs.fetch(f"hf://org/net@{net.main}/{name}").path))
    blob.write_bytes(bytes(len(blob.read_bytes())))
    hub.forget()
    found = cs.fetch(f"hf://org/net@{net.main}/{name}")
    assert Path(found.path).read_bytes() == FILES[name]
    assert found.notes == (f"{name} was fetched again: its bytes in the cache differed from the hub's digest",)
    assert [one.method for one in hub.requests] == ["HEAD", "GET"]


def test_a_file_that_went_bad_is_never_given_offline_and_never_trusted_again(
    hub: Hub, net: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = cs.fetch("hf://org/net")
    Path(os.path.realpath(Path(found.path, "model.safetensors"))).write_bytes(bytes(len(WEIGHTS)))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for said in ("its digest differs.*Fetch it again with network access", "is not in the cache"):
        with pytest.raises(cs.SourceError, match=said):
            cs.fetch("hf://org/net")
    assert not Path(found.path, "model.safetensors").exists()


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_hub_that_answers_with_an_error_is_not_called_unreachable(
    hub: Hub, net: Repository, naps: list[float], is_damaged: bool
) -> None:
    uri = f"hf://org/net@{net.main}/model.safetensors"
    if is_damaged:
        Path(os.path.realpath(cs.fetch(uri).path)).write_bytes(bytes(len(WEIGHTS)))
    hub.fail("*/resolve/*", faults.status(503), method="HEAD", times=None)
    with pytest.raises(cs.SourceError, match=r"model\.safetensors of the .* cannot be fetched: .*503") as error:
        cs.fetch(uri)
    assert "reached" not in str(error.value)
    assert "above" not in str(error.value)


@pytest.mark.parametrize("fault", [faults.status(503), faults.dropped(), faults.dropped(40)])
@pytest.mark.parametrize("uri", ["hf://org/net", "hf://org/net/model.safetensors"])
def test_that_a_hub_is_down_is_said_of_a_branch(
    hub: Hub, net: Repository, naps: list[float], fault: faults.Fault, uri: str
) -> None:
    found = cs.fetch(uri)
    assert not found.notes
    hub.fail("*", fault, method="*", times=None)
    again = cs.fetch(uri)
    assert again.path == found.path
    assert again.notes == (f"the hub did not answer: {net.main} is the commit of main in the cache",)
    at_a_commit = uri.replace("org/net", f"org/net@{net.main}")
    assert not cs.fetch(at_a_commit).notes


def test_a_mirror_with_etags_of_its_own_calls_files_as_its_listing_does(hub: Hub, net: Repository) -> None:
    for method in ("HEAD", "GET"):
        hub.fail("*/resolve/*", faults.other_etag(), method=method, times=None)
    for uri in ("hf://org/net/config.json", "hf://org/net"):
        found = cs.fetch(uri)
        assert {one.checked for one in found.files} <= {"git", "sha256"}
        assert found.notes == ()


def test_what_has_no_digest_at_all_is_refused(hub: Hub, net: Repository) -> None:
    hub.fail("*/config.json", faults.other_etag(), method="HEAD", times=None)
    hub.fail("*/paths-info/*", faults.status(404), method="POST", times=None)
    with pytest.raises(
        cs.SourceError,
        match=r"the file config.json with the ETag .* is not a SHA-1 or SHA-256, and its listing gave no digest",
    ):
        cs.fetch("hf://org/net/config.json")


def test_the_sha256_that_was_asked_for_is_held_against_what_came(hub: Hub, net: Repository) -> None:
    url = hub.file("w.bin", WEIGHTS)
    Path("w.bin").write_bytes(WEIGHTS)
    for uri in ("hf://org/net/model.safetensors", url, "w.bin"):
        assert cs.fetch(uri, sha256=SHA256.upper()).files[0].checked == "asked"
        with pytest.raises(
            cs.SourceError, match=f"has the wrong content: its SHA-256 is {SHA256}, not {'0' * 64}"
        ) as error:
            cs.fetch(uri, sha256="0" * 64, dir="out")
        assert error.value.exit_code == 3
        assert not Path("out").exists()
    for sha256, uri, why in (("abc", "w.bin", "is not a SHA-256"), (SHA256, "hf://org/net", "needs a single file")):
        with pytest.raises(cs.ConfigError, match=why):
            cs.fetch(uri, sha256=sha256)


def test_an_address_is_asked_whether_it_changed(hub: Hub) -> None:
    url = hub.file("w.bin", WEIGHTS)
    first = cs.fetch(url)
    assert Path(first.path).read_bytes() == WEIGHTS
    assert Path(first.path).is_relative_to(Path("cache/ckptsurgeon/fetched").resolve())
    assert cs.fetch(url).path == first.path
    assert [one.status for one in hub.requests] == [200, 304]
    hub.file("w.bin", b"new")
    assert Path(cs.fetch(url).path).read_bytes() == b"new"
    hub.forget()
    cs.fetch(url, sha256=hashlib.sha256(b"new").hexdigest())
    assert not hub.requests


def test_a_store_is_read_through_fsspec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fsspec

    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "kept"))
    system = fsspec.filesystem("memory")
    for name, content in FILES.items():
        system.pipe_file(f"/bucket/net/{name}", content)
    assert files_in(cs.fetch("memory://bucket/net")) == FILES
    one = cs.fetch("memory://bucket/net/model.safetensors", dir="out")
    assert (one.path, files_in("out")) == (str(Path("out/model.safetensors").resolve()), {"model.safetensors": WEIGHTS})
    with pytest.raises(cs.SourceError, match="memory://bucket/none cannot be fetched"):
        cs.fetch("memory://bucket/none")
    with pytest.raises(cs.ConfigError, match=r"no installed package reads nosuch:// addresses"):
        cs.fetch("nosuch://bucket/x")
    with pytest.raises(cs.ConfigError, match="need a package that is not installed"):
        cs.fetch("oss://bucket/x")
    system.rm("/bucket", recursive=True)


def test_a_subfolder_that_is_left_out_is_said(ckpt: Run) -> None:
    Path("here/sub").mkdir(parents=True)
    Path("elsewhere").mkdir()
    for place in ("here/a", "here/sub/b", "elsewhere/c"):
        Path(place).write_bytes(b"1")
    Path("here/sub/link").symlink_to(Path("elsewhere").absolute())
    found = cs.fetch("here", dir="out")
    assert files_in("out") == {"a": b"1", "sub/b": b"1"}
    assert found.notes == ("sub/link is a link to a folder: its files are left out",)
    assert "its files are left out" in ckpt("fetch", "here").err


def test_a_subfolder_that_cannot_be_listed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here/sub").mkdir(parents=True)
    Path("here/a").write_bytes(b"1")
    scan = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(cs.SourceError, match=r"here/sub cannot be listed: Permission denied\.$"):
        cs.fetch("here")


def test_what_is_here_already_is_where_it_is() -> None:
    Path("net/sub").mkdir(parents=True)
    Path("net/a.pth").write_bytes(b"a")
    Path("net/sub/b.pth").write_bytes(b"b")
    assert cs.fetch("net").path == str(Path("net").resolve())
    assert cs.fetch("net/a.pth").path == str(Path("net/a.pth").resolve())
    assert files_in(cs.fetch("net", dir="copy")) == {"a.pth": b"a", "sub/b.pth": b"b"}
    os.mkfifo("net/pipe")
    for uri, why in (("net", "is a FIFO"), ("none.pth", "does not exist"), ("copy/none", "does not exist")):
        with pytest.raises(cs.SourceError, match=why):
            cs.fetch(uri)


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("hf://org/none", "there is no hub repository org/none"),
        ("hf://org/none/x", "there is no hub repository org/none"),
        ("hf://org/net/none", "has no file none"),
        ("hf://org/net@none", "has no revision none"),
        ("hf://org/gated/a", "requires a login"),
        ("hf://org/private", "there is no hub repository org/private. A private repository needs hf auth login"),
        ("{url}/files/none", "cannot be fetched: 404"),
        ("http://127.0.0.1:9/x", "cannot be reached"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, net: Repository, uri: str, why: str, ckpt: Run) -> None:
    hub.repository("org/gated", {"a": b"1"}, gated=True)
    hub.repository("org/private", {"a": b"1"}, token="hf_secret")
    done = ckpt("fetch", uri.format(url=hub.url), "--dir", "out")
    assert (done.code, done.out) == (3, "")
    assert why in done.err
    assert not Path("out").exists()


def test_the_stored_token_opens_what_is_private_and_goes_nowhere_else(
    hub: Hub, other_host: Hub, tmp_path: Path, ckpt: Run
) -> None:
    private = hub.repository("org/private", {"w.bin": WEIGHTS}, token="hf_secret", cdn=other_host.url)
    (stored,) = private.commits[private.main].values()
    other_host.file(stored.sha256, WEIGHTS)
    (tmp_path / "hf").mkdir(exist_ok=True)
    (tmp_path / "hf/token").write_text("hf_secret")
    for uri in ("hf://org/private/w.bin", "hf://org/private"):
        done = ckpt("fetch", uri, "--dir", "out", "--json")
        assert done.code == 0, done
        assert "hf_secret" not in done.out + done.err
    assert {one.credentials for one in hub.requests} == {"Bearer hf_secret"}
    assert {one.credentials for one in other_host.requests} == {""}
    assert not [path for path in Path("out").iterdir() if b"hf_secret" in path.read_bytes()]


def test_nothing_that_is_fetched_is_run(hub: Hub) -> None:
    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (Path("canary"),))

    hub.repository(
        "org/bad", {"model.pkl": pickle.dumps(Touch()), "setup.py": b"open('canary', 'w')", "run.sh": b"touch canary"}
    )
    found = cs.fetch("hf://org/bad", dir="out")
    assert len(found.files) == 3
    assert not Path("canary").exists()
    assert not [path for path in Path("out").iterdir() if os.access(path, os.X_OK)]


def test_the_path_alone_is_printed(hub: Hub, net: Repository, ckpt: Run) -> None:
    done = ckpt("fetch", "hf://org/net", "--revision", net.main)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{cs.fetch('hf://org/net').path}\n"
    told = json.loads(ckpt("fetch", "hf://org/net/config.json", "--json").out)
    assert told == {
        "kind": "ckpt.fetched", "version": 1, "uri": f"hf://org/net@{net.main}/config.json", "path": cs.fetch("hf://org/net/config.json").path,
        "commit": net.main, "notes": [],
        "files": [{"name": "config.json", "path": cs.fetch("hf://org/net/config.json").path, "size": 2,
                   "sha256": hashlib.sha256(b"{}").hexdigest(), "checked": "git"}],
    }  # fmt: skip


@pytest.mark.parametrize("uri", ["hf://org/net", "hf://org/net/model.safetensors", "{url}/files/w.bin"])
def test_progress_is_told_in_bytes(hub: Hub, net: Repository, uri: str) -> None:
    hub.file("w.bin", WEIGHTS)
    told: list[tuple[int, int]] = []
    cs.fetch(uri.format(url=hub.url), progress=lambda done, total: told.append((done, total)))
    whole = sum(len(content) for content in FILES.values() if isinstance(content, bytes))  # fmt: skip
    assert told[-1] == ((whole, whole) if uri == "hf://org/net" else (len(WEIGHTS), len(WEIGHTS)))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_checkpoint_is_opened_where_it_was_fetched(hub: Hub) -> None:
    import torch

    torch.save({"w": torch.ones(2, 3)}, "w.pth")
    hub.repository("org/net", {"w.pth": Path("w.pth").resolve()})
    with cs.open_checkpoint(cs.fetch("hf://org/net/w.pth")) as found:
        assert found["w"].shape == (2, 3)


@pytest.mark.parametrize(("name", "is_said"), [("net.safetensors", True), ("page.html", False)])
def test_a_page_in_place_of_weights_is_said(hub: Hub, name: str, is_said: bool) -> None:
    uri = hub.file(name, b"<html><title>Log in</title></html>")
    said = f"{name} has no weights: it is a web page (Log in)"
    assert (said in cs.fetch(uri, dir="d").notes) == is_said
    assert files_in("d")[name].startswith(b"<html>")


def test_weights_from_a_web_address_are_not_taken_for_a_text(hub: Hub) -> None:
    assert cs.fetch(hub.file("net.safetensors", WEIGHTS), dir="d").notes == ()
