"""The cache is filled before the first step, and a terminal shows how far that is."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import ckptsurgeon as cs
from ckptsurgeon.cli.printing import Printer
from ckptsurgeon.cli.verbs.train import RunEvents
from ckptsurgeon.trainer.checks.check import Check

from .sounds import corpus

Run = Callable[..., Any]
MODEL = {"name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8, "dropout": 0}
DATA = {"train": "train.csv", "dev": "dev.csv", "tokens": "alphabet.txt", "cache": "cache"}
TRAIN = {"task": "ctc", "steps": 2, "batch_size": 4, "features": {"size": 10, "stack": 2}, "data": DATA}


@pytest.fixture(autouse=True)
def files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve tones, in groups of four; without the checks that train again or start a process."""
    from ckptsurgeon.trainer.run import run_job as running

    monkeypatch.setattr(running, "checks_after", lambda *args, **options: [Check("left out", "NOT RUN", "")])
    monkeypatch.setattr("ckptsurgeon.trainer.data.cache.MOST_CLIPS", 4)
    Path("alphabet.txt").write_text("a\nb\nc\n")
    corpus("train.csv", ["a", "b", "c", "ab", "bc", "ca", "ac", "ba"])
    corpus("dev.csv", ["a", "b", "c", "ab"])
    Path("x.yaml").write_text(yaml.safe_dump({"model": MODEL, "train": TRAIN}))


WHOLE = [("train", 0, 8), ("train", 4, 8), ("train", 8, 8), ("dev", 0, 4), ("dev", 4, 4)]


def told(**options: Any) -> list[Any]:
    """What an observer is told: of progress the figures, of everything else what it is."""
    seen: list[Any] = []

    def observe(row: Any) -> None:
        if row.get("event") == "checking":
            return
        known = (row["split"], row["clips"], row["of"]) if row.get("event") == "progress" else None
        seen.append(known or row.get("event") or ("dev" if "dev" in row else "step"))

    cs.train("x.yaml", device="cpu", observer=observe, **options)
    return seen


@pytest.mark.long
def test_all_splits_are_filled_before_the_first_check() -> None:
    assert told() == ["notes", *WHOLE, "filled", "checks", "begin", "step", "step", "dev"]
    assert told(run="again") == ["notes", *WHOLE, "checks", "begin", "step", "step", "dev"]  # nothing was lacking


def test_preparing_tells_as_much() -> None:
    assert told(preprocess_only=True) == ["notes", *WHOLE]


@pytest.mark.long
def test_a_look_at_the_first_batch_keeps_nothing() -> None:
    assert told(check_only=True) == ["notes"]
    assert not Path("cache").exists()
    assert told(overfit_one_batch=True)[1:4] == WHOLE[:3]


@pytest.mark.long
def test_checks_alone_say_what_they_do_not_read() -> None:
    rest = "the checks read only the first batch of train; the values in "
    more = f"{rest}1 more batch of train and in dev are not checked; --preprocess-only reads all sounds"
    assert cs.train("x.yaml", device="cpu", check_only=True).notes[-1] == more
    np.save("array.npy", np.ones((9, 20), dtype=np.float32))
    Path("dev.csv").write_text("wav_filename,transcript\narray.npy,a\n")
    assert cs.train("x.yaml", device="cpu", check_only=True).notes[-1] == f"{more}, but no arrays (.npy)"
    prepared = cs.train("x.yaml", preprocess_only=True, device="cpu").notes
    assert prepared[-1] == "dev: 1 clip, 0.0 min; 0 clips computed; 1 array (.npy) not read"
    last = cs.train("x.yaml", device="cpu", check_only=True, sets=["batch_size=8", "data.dev=[]"]).notes[-1]
    assert not last.startswith(rest)


def test_a_sound_of_dev_that_cannot_be_used_is_found_before_the_first_step() -> None:
    import soundfile

    soundfile.write("dev-2.wav", np.zeros(3200), 16_000)
    with pytest.raises(cs.SourceError, match=r"^dev.csv, line 4: dev-2.wav is silent"):
        told()
    assert not Path("run").exists()


@pytest.mark.long
def test_a_run_that_cannot_go_on_computes_nothing() -> None:
    told()
    Path("cache").rename("old")
    with pytest.raises(cs.ConfigError, match="other settings"):
        cs.train(resume=True, device="cpu", sets=["lr=0.5"])
    assert not Path("cache").exists()


@pytest.mark.long
def test_without_a_terminal_a_line_says_what_was_computed(ckpt: Run) -> None:
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    said = ckpt("train", "../x.yaml", "--device", "cpu").err.splitlines()
    assert [line for line in said if "features" in line] == ["  features of 12 clips computed, kept in ../cache"]
    os.chdir("..")
    said = ckpt("train", "x.yaml", "--run", "again").err.splitlines()
    assert [line for line in said if "features" in line] == []
    Path("cache").rename("old")
    said = ckpt("train", "x.yaml", "--preprocess-only").err.splitlines()
    assert [line for line in said if "note" not in line] == []


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [False, True])
def test_on_a_terminal_a_line_lives(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 0.1, 60.0, 60.0, 90.0))  # the second is too soon to be seen; the fourth is when it was drawn
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with closing(RunEvents(Printer(quiet=quiet))) as watch:
        for clips in (0, 2, 1200, 2400):
            watch.observe({"event": "progress", "split": "train", "clips": clips, "of": 2400})
        after = terminal.getvalue()
        watch.observe({"event": "filled", "clips": 2400, "cache": "cache"})
    seen = {line[line.index("  features") :] for line in re.split(r"[\r\n]", after) if "features" in line}
    assert seen == (set() if quiet else {"  features  train  1 200/2 400 clips  1:00 left"})
    assert quiet or after.endswith("\x1b[2K")  # and was taken away
    assert ("features of 2400 clips computed, kept in cache" in terminal.getvalue()) is not quiet
