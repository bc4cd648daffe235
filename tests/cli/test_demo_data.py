"""``ckpt demo-data``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., Any]


def test_it_says_what_was_made_and_what_to_do_next(ckpt: Run) -> None:
    done = ckpt("demo-data", "demo", "--n", 3)
    assert done.code == 0, done
    assert "train 3 dev 1 test 1" in " ".join(done.out.split())
    assert "next: ckpt train demo/en.yaml" in done.out
    assert Path("demo/en/train.csv").exists()


def test_it_answers_in_json_and_says_nothing_when_told(ckpt: Run) -> None:
    done = ckpt("demo-data", "demo", "--n", 2, "--lang", "de", "--lang", "pl", "--json")
    found = json.loads(done.out)
    assert found.pop("seconds") > 1
    assert found == {
        "kind": "ckpt.demo-data", "version": 1, "folder": "demo", "languages": ["de", "pl"],
        "clips": {"train": 4, "dev": 2, "test": 2}, "configs": ["demo/de.yaml", "demo/pl.yaml"],
    }  # fmt: skip
    quiet = ckpt("demo-data", "other", "--n", 1, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_words_go_with_a_language(ckpt: Run) -> None:
    Path("w.txt").write_text("un dau tri\n")
    assert ckpt("demo-data", "a", "--n", 1, "--lang", "cy", "--words", "w.txt").code == 0
    assert ckpt("demo-data", "b", "--n", 1, "--lang", "cy", "--lang", "en", "--words", "cy=w.txt").code == 0
    done = ckpt("demo-data", "c", "--lang", "cy", "--lang", "en", "--words", "w.txt")
    assert (done.code, "--words w.txt does not name a language" in done.err) == (2, True)


def test_it_ends_as_documented(ckpt: Run) -> None:
    assert ckpt("demo-data", "demo", "--lang", "zz").code == 2
    assert ckpt("demo-data", "demo", "--n", 1).code == 0
    done = ckpt("demo-data", "demo", "--n", 1)
    assert (done.code, "the folder demo is not empty. Use --force" in " ".join(done.err.split())) == (5, True)
    assert ckpt("demo-data", "demo", "--n", 1, "--force").code == 0
