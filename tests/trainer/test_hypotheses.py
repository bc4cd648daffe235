"""What a model read of each clip is kept beside the text of the clip, most errors first, and is what figures are of."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
import yaml

import ckptsurgeon as cs
from ckptsurgeon.trainer.data.source import whole_batches
from ckptsurgeon.trainer.folder.hypotheses import hypotheses
from ckptsurgeon.trainer.job.assembly import build_job
from ckptsurgeon.trainer.parallel.ranks import Ranks

from .sounds import corpus

TEXTS = ["a", "b", "ab", "c", "ca", "abc", "bb"]


def configuration(**settings: Any) -> str:
    """Write a CTC configuration with seven clips in each split."""
    for name in ("train", "dev", "test"):
        corpus(f"{name}.csv", TEXTS)
    Path("alphabet.txt").write_text("a\nb\nc\n")
    section = {
        "task": "ctc", "steps": 4, "batch_size": 3, "features": {"size": 10, "stack": 2}, "evaluate_every": 2,
        "data": {"train": "train.csv", "dev": "dev.csv", "test": "test.csv", "tokens": "alphabet.txt"}, **settings,
    }  # fmt: skip
    model = {"name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8}
    Path("x.yaml").write_text(yaml.safe_dump({"model": model, "train": section}))
    return "x.yaml"


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_keeps_what_its_best_weights_read_of_dev_and_test() -> None:
    found = cs.train(configuration(), run="run", keep_going=True)
    for split, figures in (("dev", found.figures), ("test", found.test)):
        rows = lines(f"run/{split}.hypotheses.jsonl")
        assert sorted(row["reference"] for row in rows) == sorted(TEXTS)
        assert [row["errors"] for row in rows] == sorted((row["errors"] for row in rows), reverse=True)
        letters = sum(len(row["reference"]) for row in rows)
        if split == "test" or found.best_step == found.step:
            assert sum(row["errors"] for row in rows) / letters == pytest.approx(figures["cer"])
        assert all(f"{split}.csv" in row["clip"] for row in rows)
        lengths = [0.2 + 0.01 * TEXTS.index(row["reference"]) for row in rows]
        assert [row["seconds"] for row in rows] == pytest.approx(lengths, abs=1e-3)
        places = [f"../{split}-{TEXTS.index(row['reference'])}.wav" for row in rows]
        assert [(row["sound"], row["begin_s"]) for row in rows] == [(place, 0.0) for place in places]


def test_errors_are_letters_and_the_worst_come_first() -> None:
    pairs = [("abc", "abc"), ("abc", ""), ("ab", "xbyy"), ("a b", "ab")]
    rows = [{"clip": f"c:{n}", "reference": right, "hypothesis": read} for n, (right, read) in enumerate(pairs)]
    made = [json.loads(line) for line in hypotheses(rows).splitlines()]
    assert [(row["clip"], row["errors"], row["cer"]) for row in made] == [
        ("c:2", 3, 1.5), ("c:1", 3, 1.0), ("c:3", 1, 0.3333), ("c:0", 0, 0.0),
    ]  # fmt: skip
    assert all(row["cer"] == pytest.approx(jiwer.cer(row["reference"], row["hypothesis"]), abs=1e-4) for row in made)


def test_a_task_without_texts_leaves_no_file() -> None:
    assert hypotheses([{"loss": 1.0}]) == b""
    assert hypotheses([]) == b""


@pytest.mark.costly
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_share_whole_batches_of_which_each_is_that_of_one_process(size: int) -> None:
    dev = build_job(configuration(), device="cpu").dev
    assert dev is not None
    whole = list(dev.read(0, 0))
    shares = [list(whole_batches(dev, Ranks(rank, size))) for rank in range(size)]
    numbers = [[number for number, _ in share] for share in shares]
    assert sorted(chain(*numbers)) == [0, 1, 2]
    for number, batch in chain(*shares):
        assert batch.names == whole[number].names
        assert torch.equal(batch.inputs, whole[number].inputs)
