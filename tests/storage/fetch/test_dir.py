"""``--dir``: files of its own, all or none, never through a link, and what stood there before survives a failure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ...helpers.hub import faults
from ...helpers.hub.repository import Repository
from ...helpers.hub.server import Hub
from ...promises.clauses import PLACED, clause
from .test_fetch import FILES, WEIGHTS, files_in, net

__all__ = ["net"]

pytestmark = clause(PLACED)

Run = Callable[..., Any]


@pytest.fixture(params=["repository", "file", "address"])
def uri(request: pytest.FixtureRequest, hub: Hub, net: Repository) -> str:
    """Each has one file called model.safetensors."""
    address = hub.file("model.safetensors", WEIGHTS)
    return {"repository": "hf://org/net", "file": "hf://org/net/model.safetensors", "address": address}[request.param]


def tree(folder: str) -> dict[str, bytes | str]:
    """All there is in a folder: bytes of files, targets of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in Path(folder).rglob("*") if path.is_symlink() or path.is_file()
    }  # fmt: skip


def test_files_are_real_and_know_where_they_are_from(uri: str, net: Repository) -> None:
    found = cs.fetch(uri, dir="a/b")
    assert all(Path(one.path).is_relative_to(Path("a/b").resolve()) for one in found.files)
    for one in found.files:
        path = Path(one.path)
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
        record = json.loads(path.with_name(f".{path.name}.collected.json").read_text())
        assert (record["sha256"], record["commit"]) == (one.sha256, net.main if uri.startswith("hf") else "")
    assert files_in("a/b") == (FILES if uri == "hf://org/net" else {"model.safetensors": WEIGHTS})
    Path(found.files[-1].path).write_bytes(b"mine")  # of nobody else
    assert cs.fetch(uri).files[-1].sha256 == found.files[-1].sha256


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_the_second_time_nothing_is_sent(uri: str, hub: Hub, net: Repository) -> None:
    first = cs.fetch(uri, dir="out")
    before = {path: os.stat(path).st_ino for path in Path("out").rglob("*")}
    hub.forget()
    assert cs.fetch(uri, dir="out").files == first.files
    assert not [one for one in hub.requests if "/api/" not in one.path and one.sent]
    assert {path: os.stat(path).st_ino for path in Path("out").rglob("*")} == before


def test_another_file_in_the_way_is_kept_without_force(uri: str, ckpt: Run) -> None:
    Path("out").mkdir()
    Path("out/model.safetensors").write_bytes(b"mine")
    before = tree("out")
    done = ckpt("fetch", uri, "--dir", "out")
    assert (done.code, done.out) == (5, "")
    assert "exists and is not the requested file; its origin is unknown" in done.err
    assert "--force" in done.err
    assert tree("out") == before
    assert ckpt("fetch", uri, "--dir", "out", "--force").code == 0
    assert Path("out/model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_was_fetched_and_changed_is_kept_and_an_older_one_replaced(hub: Hub, net: Repository) -> None:
    cs.fetch("hf://org/net", dir="out")
    net.commit({**FILES, "config.json": b"new"})
    cs.fetch("hf://org/net", dir="out")
    assert Path("out/config.json").read_bytes() == b"new"
    Path("out/config.json").write_bytes(b"mine")
    net.commit({**FILES, "config.json": b"newer"})
    with pytest.raises(cs.OutputError, match="it has changed since it was collected from org/net/config.json"):
        cs.fetch("hf://org/net", dir="out")
    assert Path("out/config.json").read_bytes() == b"mine"


def test_a_link_is_replaced_and_never_written_through(uri: str) -> None:
    Path("precious").write_bytes(b"precious")
    Path("out").mkdir()
    Path("out/model.safetensors").symlink_to(Path("precious").resolve())
    cs.fetch(uri, dir="out")
    assert Path("precious").read_bytes() == b"precious"
    assert not Path("out/model.safetensors").is_symlink()


def test_a_link_into_the_cache_becomes_a_file(net: Repository) -> None:
    kept = cs.fetch("hf://org/net/model.safetensors").path
    Path("out").mkdir()
    for target in (kept, os.path.realpath(kept)):
        Path("out/model.safetensors").unlink(missing_ok=True)
        Path("out/model.safetensors").symlink_to(target)
        cs.fetch("hf://org/net/model.safetensors", dir="out")
        assert not Path("out/model.safetensors").is_symlink()
    assert Path(kept).read_bytes() == WEIGHTS


def test_a_folder_that_is_a_link_is_not_entered(net: Repository) -> None:
    Path("elsewhere").mkdir()
    Path("out").mkdir()
    Path("out/sub").symlink_to(Path("elsewhere").resolve())
    with pytest.raises(cs.OutputError, match=r"sub is a link; nothing is written through it"):
        cs.fetch("hf://org/net", dir="out", force=True)
    assert tree("out") == {"sub": str(Path("elsewhere").resolve())}
    assert not list(Path("elsewhere").iterdir())


def test_something_else_in_the_way_is_never_replaced(net: Repository) -> None:
    Path("out/model.safetensors").mkdir(parents=True)
    with pytest.raises(cs.OutputError, match="model.safetensors is not a regular file|cannot write"):
        cs.fetch("hf://org/net", dir="out", force=False)
    assert sorted(os.listdir("out")) == ["model.safetensors"]
    Path("file").touch()
    with pytest.raises(cs.OutputError, match="cannot make the folder"):
        cs.fetch("hf://org/net", dir="file")


def test_all_files_are_placed_or_none(net: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    cs.fetch("hf://org/net", dir="out")
    before = tree("out")
    net.commit({name: b"2" + bytes(3) for name in FILES})
    real = os.replace

    def replace(path: str, to: str) -> None:
        if str(to).endswith("note.txt") and str(path).endswith(".ckpt-tmp"):
            monkeypatch.setattr(os, "replace", real)  # what is put back is put back
            raise OSError(5, "broken")
        real(path, to)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(cs.OutputError, match="the disk reports an error"):
        cs.fetch("hf://org/net", dir="out")
    assert tree("out") == before


def test_an_address_that_fails_leaves_what_stood_there(hub: Hub) -> None:
    url = hub.file("model.safetensors", WEIGHTS)
    cs.fetch(url, dir="out")
    before = tree("out")
    hub.file("model.safetensors", WEIGHTS[::-1])
    hub.fail("/files/*", faults.status(404))
    with pytest.raises(cs.SourceError):
        cs.fetch(url, dir="out")
    assert tree("out") == before


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\x", ".model.bin.collected.json", "a//x"])
def test_a_hostile_listing_writes_nothing_outside(hub: Hub, name: str) -> None:
    hub.repository("org/bad", {"model.bin": b"1", name: b"2"})
    with pytest.raises(cs.CheckpointError) as error:
        cs.fetch("hf://org/bad", dir="out")
    assert error.value.exit_code == 3
    assert not Path("out").exists()
    assert not [path for path in Path().rglob("x") if path.parts[:2] != ("hf", "hub")]


def test_a_copy_is_the_same_where_the_kernel_does_not_copy(net: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    cs.fetch("hf://org/net", dir="out")
    assert files_in("out") == FILES
