"""A file that is asked for and already lies where it is collected, under another name: it is never replaced by itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptsurgeon as cs

WEIGHTS = b"the only copy"


def _collecting_into_a_link() -> None:
    Path("source").mkdir()
    Path("source/enc.ckpt").write_bytes(WEIGHTS)
    Path("collected").symlink_to("source")


def _collecting_from_a_link() -> None:
    Path("collected").mkdir()
    Path("collected/enc.ckpt").write_bytes(WEIGHTS)
    Path("source").symlink_to("collected")


def _the_file_a_link() -> None:
    for name in ("source", "collected"):
        Path(name).mkdir()
    Path("collected/enc.ckpt").write_bytes(WEIGHTS)
    Path("source/enc.ckpt").symlink_to(Path("collected/enc.ckpt").absolute())


def _the_file_a_link_to_a_link() -> None:
    _the_file_a_link()
    Path("source/enc.ckpt").rename("source/other")
    Path("source/enc.ckpt").symlink_to("other")


def _the_collected_file_a_link_that_both_folders_have() -> None:
    _collecting_from_a_link()
    Path("collected/enc.ckpt").rename("weights")
    Path("collected/enc.ckpt").symlink_to("../weights")


def _a_hard_link() -> None:
    for name in ("source", "collected"):
        Path(name).mkdir()
    Path("source/enc.ckpt").write_bytes(WEIGHTS)
    os.link("source/enc.ckpt", "collected/enc.ckpt")


FORMS = [
    _collecting_into_a_link, _collecting_from_a_link, _the_file_a_link, _the_file_a_link_to_a_link,
    _the_collected_file_a_link_that_both_folders_have, _a_hard_link,
]  # fmt: skip


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("strategy", ["symlink", "copy", "no_link"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__.strip("_"))
def test_a_file_is_never_replaced_by_a_link_to_itself(form: Callable[[], None], strategy: str, overwrite: bool) -> None:
    form()
    before = os.lstat("collected/enc.ckpt").st_ino
    ours = cs.Pretrainer("collected", {"enc": object()})
    found = ours.collect_files("source", strategy, cs.FetchConfig(overwrite=overwrite))
    for path in (found["enc"], Path("source/enc.ckpt"), Path("collected/enc.ckpt")):
        assert path.read_bytes() == WEIGHTS
    assert os.lstat("collected/enc.ckpt").st_ino == before
    assert not list(Path("collected").glob(".*"))


def test_a_folder_that_links_to_the_hub_s_cache_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    commit, digest = "c" * 40, hashlib.sha256(WEIGHTS).hexdigest()
    cache = Path("cache/models--org--repo/snapshots", commit)
    cache.mkdir(parents=True)
    blob = Path("../../blobs", digest)
    Path("cache/models--org--repo/blobs").mkdir()
    (cache / blob).write_bytes(WEIGHTS)
    (cache / "enc.ckpt").symlink_to(blob)
    Path("collected").symlink_to(cache)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(Path("cache").absolute()))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda **_: str((cache / "enc.ckpt").absolute()))
    for strategy in ("symlink", "copy"):
        ours = cs.Pretrainer("collected", {"enc": object()})
        ours.collect_files("org/repo", strategy, cs.FetchConfig(revision=commit))
        assert (cache / "enc.ckpt").readlink() == blob
        assert Path("collected/enc.ckpt").read_bytes() == WEIGHTS


def test_a_changed_file_that_is_named_itself_is_taken() -> None:
    """What the error about a changed file advises: its record speaks of another file now."""
    Path("source").mkdir()
    Path("source/enc.ckpt").write_bytes(WEIGHTS)
    cs.Pretrainer("collected", {"enc": object()}).collect_files("source", "copy")
    Path("collected/enc.ckpt").write_bytes(b"mine")
    named = cs.Pretrainer("collected", {"enc": {}}, {"enc": "collected/enc.ckpt"}, {"enc": _read})
    named.collect_files()
    named.load_collected()
    assert named.loadables["enc"] == {"read": b"mine"}
    assert not list(Path("collected").glob(".*"))


def test_the_record_of_a_file_that_is_named_itself_stays_while_it_is_true() -> None:
    Path("source").mkdir()
    Path("source/enc.ckpt").write_bytes(WEIGHTS)
    cs.Pretrainer("collected", {"enc": object()}).collect_files("source", "copy")
    cs.Pretrainer("collected", {"enc": object()}).collect_files("collected")
    record = json.loads(Path("collected/.enc.ckpt.collected.json").read_text())
    assert record["source"].endswith("source/enc.ckpt")


def _read(thing: dict[str, bytes], path: str) -> None:
    thing["read"] = Path(path).read_bytes()
