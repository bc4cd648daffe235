"""Small JSON documents in the user's cache folder: whole, this user's own, under their key, and not too many."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptsurgeon.storage import cached_documents
from ckptsurgeon.storage.cached_documents import cached_document, document_key, keep_document

DOCUMENT = {"tensors": [["a", "float32", [2, 3]]], "ties": {}, "n": None}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS", raising=False)


def entries() -> list[Path]:
    return sorted(Path("cache/builds").iterdir())


def kept(document: Any = DOCUMENT, said: Any = "this") -> tuple[str, Path]:
    key = document_key(said)
    keep_document(key, document)
    return key, Path("cache/builds", f"{key}.json")


def test_a_document_comes_back_from_a_file_of_the_user_alone() -> None:
    key, path = kept()
    assert cached_document(key) == DOCUMENT
    assert keep_document(key, DOCUMENT)
    assert entries() == [path]
    assert json.loads(path.read_text())["document"] == DOCUMENT
    assert [stat.S_IMODE(one.stat().st_mode) for one in (path, path.parent)] == [0o600, 0o700]


def test_another_key_has_no_document() -> None:
    kept()
    assert cached_document(document_key("other")) is None
    assert cached_document("") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: "\x80\x04K\x01.",
        lambda text: text.replace("float32", "float16"),
        lambda text: text.replace('"key":"', '"key":"0'),
        lambda text: json.dumps({"key": json.loads(text)["key"], "document": {}}),
    ],
)
def test_a_damaged_file_is_not_there_and_is_written_again(damage: Callable[[str], str]) -> None:
    key, path = kept()
    path.write_text(damage(path.read_text()), encoding="latin-1")
    assert cached_document(key) is None
    kept()
    assert cached_document(key) == DOCUMENT


def test_a_file_of_another_key_is_not_taken() -> None:
    key, path = kept()
    other = document_key("other")
    path.rename(path.with_name(f"{other}.json"))
    assert cached_document(other) is None
    assert cached_document(key) is None


def test_a_link_a_folder_and_a_fifo_are_not_there() -> None:
    key, path = kept()
    path.rename("elsewhere")
    path.symlink_to(Path("elsewhere").absolute())
    assert cached_document(key) is None
    path.unlink()
    path.mkdir()
    assert cached_document(key) is None
    kept()  # and does not fail
    path.rmdir()
    os.mkfifo(path)
    assert cached_document(key) is None


def test_a_file_of_another_user_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    key, path = kept()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert cached_document(key) is None


def test_only_the_entries_that_were_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_documents, "MOST_FILES", 3)
    keys = []
    for number in range(5):
        key, path = kept(said=number)
        keys.append(key)
        os.utime(path, (number, number))
        if number == 3:
            assert cached_document(keys[1])  # which makes it the newest
    assert [cached_document(key) is not None for key in keys] == [False, True, False, True, True]


def test_the_cache_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_documents, "MOST_BYTES", 1000)
    for number in range(5):
        kept("x" * 300, number)
    assert len(entries()) == 2
    monkeypatch.setattr(cached_documents, "MOST_IN_ONE", 200)
    assert not keep_document(document_key("large"), "y" * 300)
    assert len(entries()) == 2


def test_a_failed_write_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fails)
        key = document_key("this")
        assert not keep_document(key, DOCUMENT)
    assert not entries()
    assert cached_document(key) is None


def test_temp_files_of_killed_runs_are_removed_after_a_day() -> None:
    kept()
    old, young = (Path("cache/builds", name) for name in ("a.tmp", "b.tmp"))
    for path in (old, young):
        path.write_text("")
    os.utime(old, (0, 0))
    kept(said="other")
    assert (old.exists(), young.exists()) == (False, True)


def test_a_cache_folder_that_cannot_be_written_is_no_error() -> None:
    Path("cache").write_text("")
    key = document_key("this")
    assert not keep_document(key, DOCUMENT)
    assert cached_document(key) is None


def test_a_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    key, path = kept()
    monkeypatch.setenv("CKPTSURGEON_NO_BUILDS", "1")
    assert key
    assert document_key("this") == ""
    path.unlink()
    keep_document(document_key("this"), DOCUMENT)
    assert not path.exists()


@pytest.mark.parametrize(
    "said", [{1: "a"}, {"a": (1,)}, {"a": {1, 2}}, [b"a"], {"a": object()}, 1 << 64, [-1 << 70], {"a": 16**5000}]
)
def test_what_json_would_change_or_cannot_write_has_no_key(said: object) -> None:
    assert document_key(said) == ""
    assert not keep_document(document_key("this"), said)
    assert cached_document(document_key("this")) is None


def test_keys_differ_by_order_type_and_value() -> None:
    said = [{"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1.0, "b": 2}, {"a": True, "b": 2}, {"a": "1", "b": 2}]
    assert len({document_key(one) for one in said}) == len(said)
