"""A hub that wants to write elsewhere: whatever it calls a file, a commit or a path, nothing outside the cache changes.

Every class of names is sent wherever a hub says one. What lies outside of the cache is compared before and after.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.storage.read.hugging_face.answers import is_plain_path

from ...helpers.hub import faults
from ...helpers.hub.faults import Fault
from ...helpers.hub.repository import Repository
from ...helpers.hub.server import Hub
from ...promises.clauses import ELSEWHERE, clause

pytestmark = clause(ELSEWHERE)

WEIGHTS = bytes(range(256)) * 64
FILES: dict[str, bytes | Path] = {"config.json": b"{}", "model.safetensors": WEIGHTS}
OWN = {"models--org--net", ".locks", "CACHEDIR.TAG"}
"""What the client's cache has of a repository; all else is outside."""
WAYS = ("hf://org/net", "hf://org/net/model.safetensors", "hf://org/net/config.json")


@pytest.fixture
def net(hub: Hub, naps: list[float]) -> Repository:
    return hub.repository("org/net", FILES)


@pytest.fixture
def outside(tmp_path: Path, net: Repository) -> Iterator[Path]:
    """A folder with what must stay as it is, as all of the test's folder must, but for the cache."""
    folder = tmp_path / "home"
    (folder / "folder").mkdir(parents=True)
    for name in (".bashrc", "folder/key", "0" * 40, hashlib.sha256(b"x").hexdigest()):
        (folder / name).write_bytes(b"mine")
    before = everything(tmp_path)
    yield folder
    assert everything(tmp_path) == before


def everything(folder: Path) -> dict[str, object]:
    """All there is below a folder, and of its folders what they have; the hub's cache left out."""
    found: dict[str, object] = {}
    for at, folders, names in os.walk(folder):
        if Path(at) == folder / "hf/hub":
            folders[:] = [name for name in folders if name not in OWN]
            names = [name for name in names if name not in OWN]
        for name in (*folders, *names):
            path = Path(at, name)
            if path not in (folder / "hf", folder / "hf/hub"):
                link = os.readlink(path) if path.is_symlink() else ""
                found[str(path)] = link or (path.read_bytes() if path.is_file() else "folder")
    return found


def names(outside: Path) -> Iterator[str]:
    """Every class of what is no plain name, some with a digest in it."""
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    up = "../" * 12
    for path in (f"{outside}/.bashrc", f"{outside}/new", f"{outside}/{'0' * 40}"):
        yield from (path, up + path.lstrip("/"), f"{digest}/{up}{path}")
    yield from (f"{outside}/", f"{outside}/folder", f"./{outside}/new", f"//{outside}/new", f"W/{outside}/new")
    yield from (
        "",
        " ",
        ".",
        "..",
        "../..",
        "../config.json",
        "a/b",
        "a//b",
        "/",
        "~/.bashrc",
        "$HOME/.bashrc",
        "%2e%2e%2fx",
    )
    yield from ("a\\b", "..\\..\\x", "C:\\x", "C:x", "C:/x", "\\\\host\\share\\x", "CON", "a:stream")
    yield from ('"', '""', "'", 'a"b', '"../x', "`id`", "$(id)", "a;b", "a b", "-rf", "\x01\x1b[2J", "a\tb")
    yield from (
        "x" * 255,
        "x" * 256,
        "x" * 5000,
        "x/" * 2000 + "x",
        "é",
        "日本",
        "\u202egnp.exe",
        "０" * 40,
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    )
    yield from (
        digest[:39],
        digest[:41],
        digest[:63],
        digest + "0",
        digest.upper(),
        f"{digest}, {digest}",
        f"{digest}\x0b",
    )
    yield from (f"{digest[:40]}/../../x", f"{digest}.lock", f"{digest}.incomplete", "main", "null", "None", "0")


def tried(uri: str) -> int:
    """How a fetch ends: with 0, or with the code of an error of ours; nothing else is raised."""
    try:
        cs.fetch(uri)
    except cs.CheckpointError as error:
        return error.exit_code
    return 0


def forget_cache() -> None:
    shutil.rmtree("hf/hub", ignore_errors=True)


@pytest.mark.each_value
@pytest.mark.long
@pytest.mark.parametrize("name", ["ETag", "X-Linked-Etag"])
@pytest.mark.parametrize("form", ['"{}"', 'W/"{}"', "{}"])
def test_an_etag_is_a_name_only_if_it_is_a_digest(hub: Hub, outside: Path, name: str, form: str) -> None:
    for text, uri in zip(names(outside), cycle(WAYS), strict=False):
        hub.fail("*/resolve/*", faults.header(name, form.format(text)), method="HEAD", times=None)
        hub.fail("*/paths-info/*", faults.status(404), method="POST", times=None)
        code = tried(uri)
        if name == "X-Linked-Etag" and form.format(text).strip():
            assert code == 3, text
        hub.mend()
        forget_cache()


@pytest.mark.parametrize("uri", WAYS)
def test_a_digest_is_a_name_weak_or_strong_quoted_or_not(hub: Hub, outside: Path, uri: str) -> None:
    for form in ('"{}"', 'W/"{}"', "{}"):
        for name, data in FILES.items():
            assert isinstance(data, bytes)
            digest = hashlib.sha256(data).hexdigest()
            hub.fail(f"*/{name}", faults.header("X-Linked-Etag", form.format(digest)), method="HEAD", times=None)
        assert tried(uri) == 0
        hub.mend()
        forget_cache()


@pytest.mark.parametrize("code", [200, 404])
def test_a_commit_is_forty_digits_and_the_one_that_was_asked_for(hub: Hub, outside: Path, code: int) -> None:
    """With 404 the client notes, in a folder that is called by the commit, that there is no such file."""
    for text, uri in zip((*names(outside), "0" * 40), cycle(WAYS), strict=False):
        headers: dict[str, str | None] = {"X-Repo-Commit": text}
        if code == 404:
            headers["X-Error-Code"] = "EntryNotFound"
        hub.fail("*/resolve/*", Fault("commit", status=code % 200, headers=headers), method="HEAD", times=None)
        assert tried(uri) == 3, text
        hub.mend()
        forget_cache()


def test_what_a_repository_says_of_itself_is_a_commit(hub: Hub, outside: Path) -> None:
    """The client would write it into ``refs``, whatever it is."""
    for text, uri in zip(names(outside), cycle(WAYS), strict=False):
        hub.fail("/api/models/org/net*", faults.listing(lambda told, text=text: {**told, "sha": text}))
        assert tried(uri) == 3, text
        assert not Path("hf/hub/models--org--net/refs").exists()
        hub.mend()


@pytest.mark.parametrize("field", ["path", "oid", "lfs"])
def test_a_listing_has_plain_paths_and_digests(hub: Hub, outside: Path, field: str) -> None:
    for text in names(outside):
        said = {"oid": text, "size": 1, "pointerSize": 1} if field == "lfs" else text
        change = faults.listing(lambda rows, said=said: [{**row, field: said} for row in rows])
        hub.fail("*/tree/*", change, times=None)
        code = tried("hf://org/net")
        assert code == (3 if field != "path" or not is_plain_path(text) else code), text
        hub.mend()
        forget_cache()


@pytest.mark.parametrize("path", ["net.bin", "a/net.bin", "..net", "a..b/c", "ä" * 127])
def test_a_path_below_its_folder_is_plain(path: str) -> None:
    assert is_plain_path(path)


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../x", "a/../b", "a/..", "/x", "a//b", "a/", "a\\b", "C:x", "a/C:x", "a\0b", "ä" * 128, "\ud800", "a/" * 2100 + "b", None, 3],
)  # fmt: skip
def test_a_path_that_leads_elsewhere_or_nowhere_is_not_plain(path: object) -> None:
    assert not is_plain_path(path)


@pytest.mark.parametrize(
    "name", ["Location", "Content-Disposition", "Content-Location", "X-Xet-Hash", "Link", "X-Linked-Size"]
)
def test_other_headers_lead_nowhere(hub: Hub, outside: Path, name: str) -> None:
    for text in list(names(outside))[::3]:
        said = f'attachment; filename="{text}"' if name == "Content-Disposition" else text
        fault = Fault("header", status=302 if name == "Location" else 0, headers={name: said})
        hub.fail("*/resolve/*", fault, method="*", times=None)
        assert tried("hf://org/net/model.safetensors") in (0, 3), text
        hub.mend()
        forget_cache()


@pytest.mark.parametrize("nth", [1, 2])
def test_the_second_answer_is_checked_as_the_first(hub: Hub, outside: Path, nth: int) -> None:
    """The bytes are wrong, so that the file is asked for twice; a check of one's own beforehand would see the first."""
    hub.fail("*/resolve/*", faults.wrong_bytes(), times=None)
    hub.fail("*/resolve/*", faults.header("X-Linked-Etag", f'"{outside}/.bashrc"'), method="HEAD", nth=nth, times=None)
    hub.fail("*/paths-info/*", faults.status(404), method="POST", times=None)
    assert tried("hf://org/net/model.safetensors") == 3


# What somebody has put into the cache.


@pytest.fixture
def cached(outside: Path, net: Repository) -> Path:
    """The folder of a repository that was fetched."""
    assert tried("hf://org/net") == 0
    return Path("hf/hub/models--org--net")


def planted(path: Path, to: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


@pytest.mark.parametrize(
    "where",
    [
        "../models--org--net", "blobs", "snapshots", "snapshots/{commit}", "refs", "refs/main", "trees", ".no_exist",
        ".no_exist/{commit}", ".no_exist/{commit}/other.json", "snapshots/{commit}/sub", "../.locks",
        "../.locks/models--org--net", "../.locks/models--org--net/{etag}.lock", "../CACHEDIR.TAG",
    ],
)  # fmt: skip
@pytest.mark.parametrize("target", ["folder", "new"])
def test_a_link_in_the_cache_is_not_written_through(
    hub: Hub, outside: Path, net: Repository, cached: Path, where: str, target: str
) -> None:
    etag = hashlib.sha256(WEIGHTS).hexdigest()
    path = Path(os.path.normpath(cached / where.format(commit=net.main, etag=etag)))
    planted(path, outside / target)
    before = everything(outside)
    net.commit({**FILES, "sub/a.txt": b"deep", "model.safetensors": WEIGHTS[:-1]})
    for uri in ("hf://org/net", "hf://org/net/sub/a.txt", "hf://org/net/other.json"):
        with pytest.raises(cs.OutputError, match="is a link; nothing is written through it"):
            cs.fetch(uri)
    assert everything(outside) == before


@pytest.mark.parametrize("target", [".bashrc", "0" * 40, hashlib.sha256(b"x").hexdigest(), "new", "folder/key"])
def test_a_link_of_a_snapshot_to_elsewhere_is_neither_read_nor_followed_by_a_removal(
    hub: Hub, outside: Path, net: Repository, cached: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(cached / "snapshots" / net.main / "model.safetensors", outside / target)
    for uri in ("hf://org/net/model.safetensors", f"hf://org/net@{net.main}"):
        assert tried(uri) == 5
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert tried("hf://org/net/model.safetensors") == 3


def test_a_folder_of_a_snapshot_that_leads_elsewhere_loses_nothing_offline(
    hub: Hub, outside: Path, net: Repository, cached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (outside / "folder/config.json").write_bytes(b"mine")
    planted(cached / "snapshots" / net.main, outside / "folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tried("hf://org/net/config.json")
    assert (outside / "folder/config.json").read_bytes() == b"mine"
    (outside / "folder/config.json").unlink()


@pytest.mark.parametrize(
    "where", ["refs/main", "blobs/{etag}", "trees/{commit}.json", "snapshots/{commit}/model.safetensors"]
)
def test_what_is_no_file_in_the_cache_is_not_waited_for(
    hub: Hub, outside: Path, net: Repository, cached: Path, where: str
) -> None:
    path = cached / where.format(commit=net.main, etag=hashlib.sha256(WEIGHTS).hexdigest())
    path.unlink()
    os.mkfifo(path)
    assert tried("hf://org/net/model.safetensors") == 5


def test_a_cache_that_is_a_link_itself_is_the_users_own(
    hub: Hub, net: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf/hub").symlink_to(tmp_path / "disk")
    found = cs.fetch("hf://org/net")
    assert Path(found.path).is_relative_to(tmp_path / "disk")
    assert {one.checked for one in found.files} == {"git", "sha256"}


def test_no_request_goes_to_a_file(hub: Hub, net: Repository, ckpt: Callable[..., Any]) -> None:
    """What a hub is asked for stays below its own names, whatever the address says."""
    for uri in ("hf://org/net/../../x", "hf://org/net@../../x/y", "hf://org/net/a\\..\\b"):
        assert ckpt("fetch", uri).code == 2
    assert not hub.requests
