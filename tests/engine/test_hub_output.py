"""Outputs in a repository of the hub: one commit of all files, or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.storage.upload import hub as upload

from ..conftest import Result
from ..helpers.addresses import HubPlace, hub_place
from ..helpers.hub.faults import first, forbidden, status
from ..helpers.hub.server import Hub
from .sharded import SHARD, files, write_sources

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # of huggingface_hub's own uploads

COMMIT = "/api/models/org/model-1.5/commit/main"


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(upload, "WAITS_S", (0.0, 0.0, 0.0))


@pytest.fixture
def place(hub: Hub, naps: list[float]) -> HubPlace:
    return hub_place(hub)


@pytest.fixture
def old(place: HubPlace) -> dict[str, bytes]:
    """What is there already: a model of five shards."""
    cs.apply(cs.convert("a.safetensors"), place.uri, max_shard_size=SHARD)
    place.hub.forget()
    return place.files()


def write(place: HubPlace) -> cs.Receipt:
    return cs.apply(cs.convert("a.safetensors", dtype="float64"), place.uri, max_shard_size="3MB", force=True)


def check_new(place: HubPlace) -> None:
    cs.apply(cs.convert("a.safetensors", dtype="float64"), "local", max_shard_size="3MB")
    assert place.files() == files("local") | {".gitattributes": place.files()[".gitattributes"]}
    assert not os.listdir("scratch")


@pytest.mark.long
def test_parts_are_uploaded_one_by_one_and_one_commit_replaces_the_model(
    place: HubPlace, old: dict[str, bytes]
) -> None:
    commits = len(place.repository.commits)
    write(place)
    check_new(place)
    assert len(place.repository.commits) == commits + 1
    kinds = [one.path.split("/")[1] for one in place.hub.requests if one.method == "PUT" or one.path == COMMIT]
    assert kinds[-1] == "api"
    assert set(kinds[:-1]) == {"lfs"}
    assert len(place.hub.asked("/lfs/*", "PUT")) >= 3


@pytest.mark.long
def test_a_branch_and_a_folder_in_it(place: HubPlace) -> None:
    place.repository.commit({"README": b"of dev"}, branch="dev")
    cs.apply(cs.convert("a.safetensors"), f"{place.uri}@dev/nets/a", max_shard_size=SHARD)
    stored = place.repository.commits[place.repository.branches["dev"]]
    cs.apply(cs.convert("a.safetensors"), "local", max_shard_size=SHARD)
    assert set(stored) == {"README", *(f"nets/a/{name}" for name in files("local"))}
    assert cs.verify(f"{place.uri}@dev/nets/a").ok
    assert list(place.files()) == [".gitattributes"]


@pytest.mark.long
def test_a_model_of_the_repository_is_converted_in_place(place: HubPlace, old: dict[str, bytes]) -> None:
    """The commit that is read stays, so that no input is changed."""
    cs.apply(cs.convert(place.uri, dtype="float64"), place.uri, force=True)
    assert "model.safetensors" in place.files()


@pytest.mark.long
def test_a_busy_hub_is_asked_again(place: HubPlace, old: dict[str, bytes], naps: list[float]) -> None:
    place.hub.fail("/lfs/*", status(503), method="PUT", nth=2, times=2)
    place.hub.fail(COMMIT, status(503), method="POST", times=2)
    write(place)
    check_new(place)
    assert naps


@pytest.mark.long
@pytest.mark.parametrize(("path", "method"), [("/lfs/*", "PUT"), (COMMIT, "POST")])
def test_a_hub_that_stays_busy_keeps_the_old_model(
    place: HubPlace, old: dict[str, bytes], path: str, method: str
) -> None:
    place.hub.fail(path, status(503), method=method, times=None)
    with pytest.raises(cs.OutputError, match=r"org/model-1\.5 at main cannot be written: .*503"):
        write(place)
    assert place.files() == old
    assert not os.listdir("scratch")
    place.hub.mend()
    write(place)
    check_new(place)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(place: HubPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    made, make = [], HfApi.create_commit

    def lose(self: HfApi, *given: object, **options: object) -> object:
        made.append(make(self, *given, **options))  # type: ignore[arg-type]
        raise upload._BusyError("the answer is lost.")

    monkeypatch.setattr(HfApi, "create_commit", lose)
    write(place)
    check_new(place)
    assert len(made) == 1


@pytest.mark.long
def test_a_commit_of_somebody_else_between_is_an_error(place: HubPlace, old: dict[str, bytes]) -> None:
    place.hub.fail("/lfs/*", first(lambda: place.fill({"notes.txt": b"mine"})), method="PUT")
    with pytest.raises(cs.OutputError, match="Another commit was made during the upload: run the command again"):
        write(place)
    assert place.files() == old | {"notes.txt": b"mine"}
    write(place)
    assert place.files()["notes.txt"] == b"mine"


@pytest.mark.long
def test_a_part_that_is_lost_keeps_the_old_model(place: HubPlace, old: dict[str, bytes]) -> None:
    place.hub.fail(COMMIT, first(place.hub.stored.clear), method="POST")
    with pytest.raises(cs.OutputError, match=r"The LFS object of .* was not uploaded"):
        write(place)
    assert place.files() == old


@pytest.mark.long
def test_credentials_that_end_midway_keep_the_old_model(
    place: HubPlace, old: dict[str, bytes], ckpt: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    place.hub.fail("*", status(401), method="POST", nth=6, times=None)
    done = ckpt("convert", "a.safetensors", "--dtype", "float64", "-o", place.uri, "--max-shard-size", "3MB", "--force")
    assert done.code == 5
    assert "hf auth login" in done.err
    assert "hf_of_nobody" not in done.out + done.err
    assert "Traceback" not in done.err
    assert place.files() == old


def test_a_repository_that_may_not_be_written_to_is_found_before_the_work(place: HubPlace) -> None:
    place.repository.read_only = True
    with pytest.raises(cs.OutputError, match=r"You don't have the right to write.*hf auth login"):
        write(place)
    place.repository.read_only = False
    place.hub.fail("*/preupload/*", forbidden(), method="POST")
    with pytest.raises(cs.OutputError, match=r"Your token may not read this.*hf auth login"):
        write(place)
    assert not place.hub.asked("/lfs/*", "PUT")


def test_a_repository_or_branch_that_is_not_there(place: HubPlace) -> None:
    with pytest.raises(cs.OutputError, match="there is no hub repository org/none"):
        cs.apply(cs.convert("a.safetensors"), "hf://org/none")
    with pytest.raises(cs.OutputError, match="has no revision none"):
        cs.apply(cs.convert("a.safetensors"), f"{place.uri}@none")
    with pytest.raises(cs.OutputError, match="a commit cannot be changed. Use a branch"):
        cs.apply(cs.convert("a.safetensors"), f"{place.uri}@{place.repository.main}")


@pytest.mark.long
def test_a_file_that_the_repository_ignores_is_an_error(
    place: HubPlace, old: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ..helpers.hub import uploads

    mode = uploads._mode
    monkeypatch.setattr(uploads, "_mode", lambda row: mode(row) | {"shouldIgnore": row["path"] == "ckptsurgeon.json"})
    with pytest.raises(cs.OutputError, match=r"the \.gitignore of hf://org/model-1\.5 excludes ckptsurgeon\.json"):
        write(place)
    assert place.files() == old
