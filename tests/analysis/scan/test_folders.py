"""Folders, on this machine and far away: every file judged, none left out in silence, and no more fetched than it takes."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from huggingface_hub import constants, hf_hub_download

import ckptsurgeon as cs
from ckptsurgeon.analysis.scan import walk
from ckptsurgeon.formats.base import limits

from ...helpers.hub.faults import Fault, status
from ...helpers.hub.server import Hub
from ...helpers.torch_files import saved
from ...storage.read.conftest import _connections, waits
from ...storage.read.test_headers import sparse
from .hostile import CANARY, as_torch_zip, payload

__all__ = ["_connections", "waits"]

Run = Callable[..., Any]
PLAIN = pickle.dumps({"a": 1})
BIG = {f"layers.{i}.weight": torch.zeros(500, 500) for i in range(40)}


def verdicts(found: cs.Scan) -> dict[str, str]:
    worst: dict[str, cs.Verdict] = {}
    for one in found.found:
        worst[one.path] = max(worst.get(one.path, cs.Verdict.PLAIN), one.verdict)
    return {path: str(verdict) for path, verdict in worst.items()}


# Far away.


@pytest.mark.long
def test_every_file_of_a_repository_is_judged(hub: Hub, ckpt: Run) -> None:
    fine = {"README.md": b"# A model\n", "weights.pth": saved(BIG), "sub/deep/plain.pkl": PLAIN}
    hub.repository("org/fine", fine)
    assert ckpt("scan", "hf://org/fine").code == 0
    repository = hub.repository(
        "org/net", {**fine, "sub/deep/evil.bin": payload(), "sub/evil.pth": as_torch_zip(payload())}
    )
    done = ckpt("scan", "hf://org/net", "--json")
    assert done.code == 1
    said = json.loads(done.out)
    assert (said["path"], said["files"]) == ("hf://org/net", 5), said["found"]
    assert verdicts(cs.scan("hf://org/net")) == {
        "README.md": "plain data", "weights.pth": "tensor rebuilding", "sub/deep/evil.bin": "unknown code",
        "sub/deep/plain.pkl": "plain data", "sub/evil.pth": "unknown code",
    }  # fmt: skip
    assert verdicts(cs.scan(f"hf://org/net@{repository.main}/sub")).keys() == {
        "deep/evil.bin",
        "deep/plain.pkl",
        "evil.pth",
    }
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_two_gigabytes_are_scanned_with_less_than_one_megabyte(hub: Hub, tmp_path: Path, ckpt: Run, kind: str) -> None:
    url = hub.file(f"big.{kind}", sparse(tmp_path / f"big.{kind}", kind), etag='"1"')
    done = ckpt("scan", url)
    print(f"{kind}: {hub.sent} bytes, {len(hub.requests)} requests")
    assert (done.code, hub.sent <= 1_000_000, len(hub.requests) <= 12) == (0, True, True), done


@pytest.mark.costly
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_the_tensors_of_torch_are_not_fetched(hub: Hub, legacy: bool) -> None:
    data = saved(BIG, _use_new_zipfile_serialization=not legacy)
    found = cs.scan(hub.file("x.pth", data, etag='"1"'))
    assert found.verdict is cs.Verdict.TENSORS
    assert found.ok
    print(f"{hub.sent} of {len(data)} bytes, {len(hub.requests)} requests")
    assert hub.sent < 300_000 < len(data) / 100


def test_files_of_a_repository_that_the_cache_lacks_are_noted(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    at = f"hf://org/net@{hub.repository('org/net', {'a.pkl': PLAIN, 'sub/evil.bin': payload()}).main}"
    hf_hub_download("org/net", "a.pkl")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    others = f"HF_HUB_OFFLINE is set: of {at} only the files in the cache are read, and others may be missing"
    assert cs.scan("hf://org/net").notes == (others,)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    whole = cs.fetch("hf://org/net")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert not cs.scan("hf://org/net").notes
    Path(whole.path, "sub/evil.bin").unlink()
    lacking = f"HF_HUB_OFFLINE is set, and sub/evil.bin of {at} cannot be read: not in the cache"
    assert cs.scan("hf://org/net").notes == (lacking,)


def test_a_web_page_is_scanned_as_its_file_with_a_note(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repository("org/net", {"a.pkl": PLAIN})
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    page = f"{hub.url}/org/net/blob/main/a.pkl"
    said = f"{page} is a web page: the file {hub.url}/org/net/resolve/main/a.pkl is used instead"
    assert cs.scan(page).notes == (said,)


def test_what_is_packed_is_fetched_whole(hub: Hub) -> None:
    assert cs.scan(hub.file("x.pkl.gz", gzip.compress(payload()), etag='"1"')).verdict is cs.Verdict.CODE


def test_a_file_that_cannot_be_fetched_is_not_judged(hub: Hub) -> None:
    hub.repository("org/net", {"a.pkl": PLAIN, "b.pkl": PLAIN})
    hub.fail("*/a.pkl", status(404), method="*", times=None)
    found = cs.scan("hf://org/net")
    assert [(one.path, one.fault.kind if one.fault else "") for one in found.found] == [
        ("a.pkl", "unreadable"),
        ("b.pkl", ""),
    ]
    assert not found.ok


def test_a_folder_that_fsspec_reads_is_judged_with_those_in_it(ckpt: Run) -> None:
    fs = fsspec.filesystem("memory")
    for name, data in (("a.pth", saved(BIG)), ("sub/b.pkl", payload()), ("sub/c.txt", b"text")):
        fs.pipe_file(f"/bucket/net/{name}", data)
    try:
        assert verdicts(cs.scan("memory://bucket/net")) == {
            "a.pth": "tensor rebuilding", "sub/b.pkl": "unknown code", "sub/c.txt": "plain data",
        }  # fmt: skip
        assert ckpt("scan", "memory://bucket/net").code == 1
    finally:
        fs.store.clear()


def test_folders_far_away_have_bounds_too(hub: Hub, monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> None:
    hub.repository("org/net", {"a/b/c.pkl": PLAIN, "d.pkl": PLAIN})
    monkeypatch.setattr(limits, "SCAN_FOLDERS", 2)
    assert cs.scan("hf://org/net").ok
    monkeypatch.setattr(limits, "SCAN_FOLDERS", 1)
    assert [one.fault.why for one in cs.scan("hf://org/net").beyond if one.fault] == ["it is over 1 folders deep"]
    monkeypatch.setattr(limits, "SCAN_FILES", 1)
    assert ckpt("scan", "hf://org/net").code == 3


# On this machine.


def test_what_git_keeps_is_not_looked_at_and_this_is_said(ckpt: Run) -> None:
    for name in (".git/objects/x", "sub/.git/y", ".hidden/z.pkl", "a.pkl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(payload() if ".git" in name else PLAIN)
    done = ckpt("scan", ".")
    assert done.code == 0
    assert "not scanned: .git, sub/.git" in done.out
    found = cs.scan(".")
    assert [one.path for one in found.found] == [".hidden/z.pkl", "a.pkl"]
    assert found.notes == ("not scanned: .git, sub/.git",)
    assert json.loads(ckpt("scan", ".", "--json").out)["notes"] == ["not scanned: .git, sub/.git"]
    assert cs.scan(".git").verdict is cs.Verdict.CODE


def test_hidden_files_and_folders_are_looked_at() -> None:
    Path(".cache").mkdir()
    Path(".cache/.x").write_bytes(payload())
    assert cs.scan(".").verdict is cs.Verdict.CODE


def special(kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo("x")
    elif kind == "link to nowhere":
        os.symlink("nowhere", "x")
    elif kind == "link to itself":
        os.symlink("x", "x")
    elif kind == "links in a circle":
        os.symlink("y", "x")
        os.symlink("x", "y")
    elif kind == "link out":
        os.symlink("/etc/hostname", "x")
    elif kind == "link to a folder outside":
        os.symlink("/etc", "x")
    elif kind == "link to the folder around it":
        os.symlink("..", "x")
    else:
        os.symlink("/dev/zero", "x")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "kind",
    [
        "FIFO",
        "link to nowhere",
        "link to itself",
        "links in a circle",
        "link out",
        "link to a folder outside",
        "link to the folder around it",
        "link to a device",
    ],
)
def test_what_is_no_file_in_the_folder_is_not_opened_and_said(kind: str, ckpt: Run) -> None:
    Path("in").mkdir()
    os.chdir("in")
    special(kind)
    Path("a.pkl").write_bytes(PLAIN)
    done = ckpt("scan", ".")
    assert (done.code, "UNREADABLE" in done.out, "not scanned completely" in done.out) == (1, True, True), done


def test_a_file_that_cannot_be_read_is_said(monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> None:
    for name in ("a.pkl", "b.pkl"):
        Path(name).write_bytes(PLAIN)
    real = os.open

    def opened(path: Any, *args: Any, **named: Any) -> int:
        if str(path).endswith("a.pkl"):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **named)

    monkeypatch.setattr(os, "open", opened)
    done = ckpt("scan", ".")
    assert (done.code, "Permission denied" in done.out) == (1, True), done
    assert verdicts(cs.scan(".")).keys() == {"a.pkl", "b.pkl"}


def test_a_link_whose_target_cannot_be_opened_is_not_said_to_lead_nowhere() -> None:
    Path("d").mkdir()
    os.symlink("x", "d/x")
    (found,) = cs.scan("d").found
    assert found.fault is not None
    assert found.fault.why == "it is a link whose target cannot be opened: Too many levels of symbolic links"


@pytest.mark.long
def test_thousands_of_files_are_all_judged() -> None:
    Path("d").mkdir()
    for i in range(3000):
        Path(f"d/{i}.pkl").write_bytes(payload() if i == 2500 else PLAIN)
    found = cs.scan("d")
    assert (found.files, [one.path for one in found.beyond]) == (3000, ["2500.pkl"])


def test_links_to_one_file_and_to_a_folder_inside_end() -> None:
    Path("d").mkdir()
    Path("d/a.pkl").write_bytes(PLAIN)
    os.symlink(".", "d/round")
    os.symlink("a.pkl", "d/b.pkl")
    found = cs.scan("d")
    assert [one.path for one in found.found] == ["a.pkl", "b.pkl", "round"]
    assert [one.path for one in found.beyond] == ["round"]


def test_folders_here_have_bounds(monkeypatch: pytest.MonkeyPatch, ckpt: Run) -> None:
    os.makedirs("d/e/f")
    Path("d/e/f/x").write_bytes(payload())
    monkeypatch.setattr(limits, "SCAN_FOLDERS", 2)
    assert cs.scan("d").verdict is cs.Verdict.CODE
    monkeypatch.setattr(limits, "SCAN_FOLDERS", 1)
    assert [one.fault.why for one in cs.scan("d").beyond if one.fault] == ["it is over 1 folders deep"]
    Path("d/y").write_bytes(b"")
    monkeypatch.setattr(limits, "SCAN_FILES", 2)
    assert len(list(walk.files_of("d", []))) == 2
    monkeypatch.setattr(limits, "SCAN_FILES", 1)
    done = ckpt("scan", "d")
    assert (done.code, "more than 1 files" in done.err) == (3, True)


def test_credentials_in_an_address_are_not_shown(hub: Hub, ckpt: Run) -> None:
    url = hub.file("x.pkl", payload(), user="me:secret").replace("://", "://me:secret@")
    done = ckpt("scan", url, "--json")
    assert (done.code, "secret" in done.out + done.err) == (1, False), done
    assert "secret" not in ckpt("scan", url).out


@pytest.mark.parametrize("with_index", [True, False])
def test_missing_shards_are_noted(with_index: bool, ckpt: Run) -> None:
    names = [f"model-0000{number}-of-00003.bin" for number in (1, 2, 3)]
    os.mkdir("m")
    for name in names[:1]:
        torch.save({"w": torch.ones(1)}, f"m/{name}")
    if with_index:
        Path("m/pytorch_model.bin.index.json").write_text(
            json.dumps({"weight_map": dict(zip("abc", names, strict=True))})
        )
    note = f"2 shards are missing, so they were not scanned: {names[1]}, {names[2]}"
    assert cs.scan("m").notes == (note,)
    assert note in " ".join(ckpt("scan", "m").out.split())
    assert f"m/{names[1]}" in cs.scan(".").notes[0]
    for name in names[1:]:
        torch.save({"w": torch.ones(1)}, f"m/{name}")
    assert not cs.scan("m").notes


def test_an_index_without_any_of_its_shards_beside_other_weights_is_left_over() -> None:
    """As after a download of nothing but safetensors."""
    Path("m").mkdir()
    torch.save({"a": torch.ones(1)}, "m/model.bin")
    Path("m/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "one.bin", "b": "two.bin"}}))
    assert cs.scan("m").notes == ()


def test_a_shard_in_a_folder_of_the_index_is_not_missing() -> None:
    Path("m/sub").mkdir(parents=True)
    torch.save({"a": torch.ones(1)}, "m/sub/a.bin")
    Path("m/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "sub/a.bin"}}))
    assert cs.scan("m").notes == ()


def test_a_shard_without_numbers_that_the_index_names_is_missing() -> None:
    os.mkdir("m")
    torch.save({"w": torch.ones(1)}, "m/a.bin")
    Path("m/x.bin.index.json").write_text(json.dumps({"weight_map": {"w": "a.bin", "v": "b.bin"}}))
    assert cs.scan("m").notes == ("1 shard is missing, so it was not scanned: b.bin",)
    Path("m/x.bin.index.json").write_text("{")
    assert not cs.scan("m").notes


@pytest.mark.parametrize("number", [1, 5])
def test_files_that_a_server_sent_as_a_whole_are_said_in_one_note(number: int, hub: Hub) -> None:
    hub.repository("org/model", {f"{name}.json": b"{}" for name in "abcde"[:number]})
    hub.fail("*/resolve/*", Fault("no ranges", ignore_range=True), times=None)
    said = {
        1: "1 file was fetched as a whole (2 B): a.json",
        5: "5 files were fetched as a whole (10 B): a.json, b.json, c.json, and 2 more",
    }
    assert cs.scan("hf://org/model").notes == (f"the server does not support range requests: {said[number]}",)
    hub.mend()
    assert cs.scan("hf://org/model").notes == ()
