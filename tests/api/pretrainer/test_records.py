"""What a collected file was collected from: it is never taken for what it is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import ckptsurgeon as cs

from .cases import CASES, pretrainer


@pytest.mark.costly
@pytest.mark.parametrize("strategy", ["symlink", "copy"])
def test_a_file_of_unknown_origin_is_never_replaced_unasked(strategy: str, server: SimpleNamespace) -> None:
    Path("collected").mkdir()
    mine = Path("collected/enc.ckpt")
    mine.write_bytes(Path("other/enc.ckpt").read_bytes())
    for source in ("source", f"{server.url}/web", "org/repo"):
        with pytest.raises(cs.OutputError, match=r"its origin is unknown\. Pass FetchConfig\(overwrite=True\)"):
            pretrainer()[0].collect_files(source, strategy)
        assert mine.read_bytes() == Path("other/enc.ckpt").read_bytes()
        assert os.listdir("collected") == ["enc.ckpt"]
    pretrainer()[0].collect_files("other", strategy)  # the same bytes: nothing is lost
    pretrainer()[0].collect_files("source", strategy, cs.FetchConfig(overwrite=True))
    assert mine.read_bytes() == Path("source/enc.ckpt").read_bytes()


def test_a_file_that_changed_behind_is_neither_loaded_nor_replaced(server: SimpleNamespace) -> None:
    ours, module = pretrainer()
    ours.collect_files(f"{server.url}/web")
    Path("collected/enc.ckpt").write_bytes(Path("other/enc.ckpt").read_bytes())
    before = CASES.values_of(module)
    with pytest.raises(cs.PlanError, match="has changed since it was collected from http://127.0.0.1"):
        ours.load_collected()
    with pytest.raises(cs.OutputError, match="it has changed since it was collected"):
        pretrainer()[0].collect_files("source")
    assert CASES.count_changed(before, CASES.values_of(module)) == "0 of 4"


def test_a_file_that_was_only_touched_is_the_same(server: SimpleNamespace) -> None:
    ours, _ = pretrainer()
    ours.collect_files(f"{server.url}/web")
    os.utime("collected/enc.ckpt", (1, 1))
    assert ours.load_collected().counts == {"copied": 4}


def test_the_record_says_the_commit_of_the_hub(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files("org/repo", fetch_config=cs.FetchConfig(revision="v2", huggingface_cache_dir="cache"))
    record = json.loads(Path("collected/.enc.ckpt.collected.json").read_text())
    assert (record["kind"], record["source"], record["commit"]) == ("hub", "org/repo/enc.ckpt", CASES.OTHER_COMMIT)


def test_a_broken_record_is_no_record(server: SimpleNamespace) -> None:
    pretrainer()[0].collect_files(f"{server.url}/web")
    for text in ("", "[]", "{}", '{"kind": 3}', "nonsense"):
        Path("collected/.enc.ckpt.collected.json").write_text(text)
        server.asked.clear()
        pretrainer()[0].collect_files(f"{server.url}/web")
        assert server.asked == ["GET /web/enc.ckpt"]
