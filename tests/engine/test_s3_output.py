"""What goes wrong with an object store: the old model is there or the new one, and the next run cleans up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ..conftest import Result
from ..helpers.addresses import S3Place, s3_place
from ..helpers.s3 import DENIED, EXPIRED, LOST_PART, NO_UPLOAD, SLOW_DOWN
from .sharded import SHARD, files, write_sources

TRIES = 5
"""How often s3fs makes a request that is refused with 503."""


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources()
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Place]:
    with s3_place(monkeypatch) as found:
        yield found


@pytest.fixture
def old(place: S3Place) -> dict[str, bytes]:
    """What is there already: a model of five shards."""
    cs.apply(cs.convert("a.safetensors"), place.uri, max_shard_size=SHARD)
    place.server.requests.clear()
    return place.files()


def write(place: S3Place) -> cs.Receipt:
    return cs.apply(cs.convert("a.safetensors", dtype="float64"), place.uri, max_shard_size=SHARD, force=True)


def check_new(place: S3Place) -> None:
    cs.apply(cs.convert("a.safetensors", dtype="float64"), "local", max_shard_size=SHARD)
    assert place.files() == files("local")
    assert not place.pending()
    assert not os.listdir("scratch")


@pytest.mark.long
def test_nothing_appears_before_all_is_uploaded(place: S3Place, old: dict[str, bytes]) -> None:
    write(place)
    changed = [
        number
        for number, (method, path, query) in enumerate(place.server.requests)
        if (method == "DELETE" and ".ckpt-upload" not in path) or (method == "POST" and "uploadId" in query)
    ]
    sent = [number for number, (_, _, query) in enumerate(place.server.requests) if "partNumber" in query]
    assert max(sent) < min(changed)
    gone = [path for method, path, _ in place.server.requests if method == "DELETE"]
    assert gone[:2] == ["/bucket/model/ckptsurgeon.json", "/bucket/model/model.safetensors.index.json"]
    done = [path for method, path, query in place.server.requests if method == "POST" and "uploadId" in query]
    assert done[-2:] == ["/bucket/model/ckptsurgeon.json", "/bucket/model/model.safetensors.index.json"]


@pytest.mark.long
def test_a_busy_store_is_asked_again(place: S3Place, old: dict[str, bytes]) -> None:
    place.server.refuse("PUT", "model-00002-of-00005", SLOW_DOWN, times=2)
    place.server.refuse("POST", "model-00003-of-00005.safetensors?uploadId", SLOW_DOWN, times=2)
    write(place)
    check_new(place)


@pytest.mark.long
def test_a_store_that_stays_busy_keeps_the_old_model(place: S3Place, old: dict[str, bytes]) -> None:
    place.server.refuse("PUT", "model-00002-of-00005", SLOW_DOWN, times=TRIES)
    with pytest.raises(cs.OutputError, match=r"cannot write s3://bucket/model: .*reduce your request rate"):
        write(place)
    assert place.files() == old
    assert not place.pending()
    write(place)
    check_new(place)


@pytest.mark.long
def test_credentials_that_end_midway_keep_the_old_model(
    place: S3Place, old: dict[str, bytes], ckpt: Callable[..., Result]
) -> None:
    for method in ("PUT", "DELETE", "POST", "GET", "HEAD"):
        place.server.refuse(method, "", EXPIRED, times=None)
    for refusal in place.server.refusals:
        refusal.nth = 1 << 30
    place.server.before = lambda method, path, query: end() if "model-00003-of-00005" in path else None

    def end() -> None:
        for refusal in place.server.refusals:
            refusal.nth = 0

    done = ckpt("convert", "a.safetensors", "--dtype", "float64", "-o", place.uri, "--max-shard-size", SHARD, "--force")
    assert done.code == 5
    assert "token has expired" in done.err
    assert "Traceback" not in done.err
    assert "secret-of-s3" not in done.out + done.err
    place.server.refusals.clear()
    place.server.before = lambda method, path, query: None
    assert {name: data for name, data in place.files().items() if name != ".ckpt-upload"} == old
    assert cs.verify(place.uri).ok
    assert place.pending()  # which nobody could abort
    assert not os.listdir("scratch")
    write(place)
    check_new(place)


@pytest.mark.long
def test_a_part_that_is_lost_leaves_no_model(place: S3Place, old: dict[str, bytes]) -> None:
    place.server.refuse("POST", "model-00003-of-00005.safetensors?uploadId", LOST_PART)
    with pytest.raises(cs.OutputError, match="could not be found.*may now lack its index, or have files of two models"):
        write(place)
    assert not [name for name in place.files() if name.endswith(".json")]
    with pytest.raises(cs.CheckpointError):
        cs.open_checkpoint(place.uri)
    assert not place.pending()
    write(place)
    check_new(place)


@pytest.mark.long
def test_an_upload_that_somebody_aborts_keeps_a_single_file(place: S3Place) -> None:
    cs.apply(cs.convert("a.safetensors"), f"{place.uri}/x.safetensors")
    before = place.files()
    place.server.refuse("POST", "x.safetensors?uploadId", NO_UPLOAD)
    with pytest.raises(cs.OutputError, match="the bucket, folder or upload is not there"):
        cs.apply(cs.convert("b.safetensors"), f"{place.uri}/x.safetensors", force=True)
    assert place.files() == before
    assert not place.pending()


@pytest.mark.long
def test_a_store_that_may_not_be_written_to_is_found_before_the_work(place: S3Place) -> None:
    place.server.refuse("PUT", "", DENIED, times=None)
    with pytest.raises(cs.OutputError, match=r"access is denied \(Access Denied\).*credentials"):
        write(place)
    assert not [query for _, _, query in place.server.requests if "partNumber" in query]


@pytest.mark.long
def test_a_bucket_that_is_not_there(place: S3Place) -> None:
    with pytest.raises(cs.OutputError, match=r"s3://elsewhere/model: .*The specified bucket does not exist"):
        cs.apply(cs.convert("a.safetensors"), "s3://elsewhere/model")


@pytest.mark.long
def test_without_credentials(place: S3Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(cs.OutputError, match="there are no credentials"):
        write(place)


def test_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import _registry

    monkeypatch.delitem(_registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(cs.ConfigError, match=r"addresses of s3:// need a package .*Run pip install s3fs\."):
        cs.apply(cs.convert("a.safetensors"), "s3://bucket/model")


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("model-00003-of-00005.safetensors?partNumber", marks=pytest.mark.long),
        "model-00003-of-00005.safetensors?uploadId",
    ],
)
def test_a_killed_run_leaves_no_mixture_and_the_next_run_cleans_up(
    place: S3Place, old: dict[str, bytes], where: str
) -> None:
    command = [sys.executable, "-m", "ckptsurgeon", "convert", "a.safetensors", "--dtype", "float64"]
    command += ["-o", place.uri, "--max-shard-size", SHARD, "--force"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def kill(method: str, path: str, query: str) -> None:
        if where in f"{path}?{query}":
            process.send_signal(signal.SIGKILL)
            process.wait()

    place.server.before = kill
    assert process.wait() == -signal.SIGKILL
    place.server.before = lambda method, path, query: None
    place.fs.invalidate_cache()
    left = place.files()
    assert left.pop(".ckpt-upload")
    if "partNumber" in where:
        assert left == old
    else:  # between the first and the last file: there is no model, and nobody takes the shards for one
        assert not [name for name in left if name.endswith(".json")]
        assert all(old[name] != data for name, data in left.items())
        with pytest.raises(cs.CheckpointError):
            cs.open_checkpoint(place.uri)
    assert place.pending()
    assert os.listdir("scratch")
    write(place)
    check_new(place)


@pytest.mark.long
def test_uploads_of_others_are_let_be(place: S3Place, old: dict[str, bytes]) -> None:
    place.fill({".ckpt-upload": b"bucket/model/model.safetensors\n"})
    for name in ("model.safetensors", "mine.bin", "model.safetensors.part"):
        place.fs.call_s3("create_multipart_upload", Bucket="bucket", Key=f"model/{name}")
    write(place)
    assert sorted(place.pending()) == ["model/mine.bin", "model/model.safetensors.part"]
