"""Signals: the first ends a run after its step, saved; the second does what it did before; workers hear none."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.system.signals import catch_stop_signals

from ..helpers.forked import Forked, as_ckpt
from .sounds import corpus

Run = Callable[..., Any]
ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def heard(number: int) -> Iterator[list[int]]:
    """Give a list of signals that a handler of the caller's hears."""
    found: list[int] = []

    def hear(number: int, frame: object) -> None:
        found.append(number)

    before = signal.signal(number, hear)
    try:
        yield found
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_is_noted_and_the_second_does_what_it_did_before(number: int) -> None:
    with heard(number) as before:
        with catch_stop_signals() as stop:
            signal.raise_signal(number)
            assert (stop.name, before) == (signal.Signals(number).name, [])
            signal.raise_signal(number)
            assert before == [number]
        assert stop.exit_code == 128 + number


def test_a_second_signal_of_another_kind_does_what_it_did_before_too() -> None:
    with heard(signal.SIGTERM) as before, catch_stop_signals() as stop:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        assert before == [signal.SIGTERM]
        assert stop.name == "SIGHUP"


@pytest.mark.parametrize("number", ALL)
@pytest.mark.parametrize("fails", [False, True])
def test_without_a_signal_the_handlers_are_given_back(number: int, fails: bool) -> None:
    with heard(number) as before:
        try:
            with catch_stop_signals() as stop:
                assert not fails or 1 / 0
        except ZeroDivisionError:
            pass
        signal.raise_signal(number)
        assert (stop.name, stop.exit_code, before) == ("", 0, [number])


def test_what_whoever_started_us_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with catch_stop_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.name == ""
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


MODEL = {"name": "deepspeech", "alphabet": "alphabet.txt", "n_input": 20, "n_context": 1, "n_hidden": 8, "dropout": 0}


@pytest.fixture
def sounds() -> None:
    """A run of tones that two workers read, and that takes longer than any test."""
    Path("alphabet.txt").write_text("a\nb\nc\n")
    corpus("train.csv", ["a", "b", "c", "ab", "bc", "ca"])
    data = {"train": "train.csv", "dev": "train.csv", "tokens": "alphabet.txt", "workers": 2}
    train = {
        "task": "ctc", "steps": 100_000, "batch_size": 2, "features": {"size": 10, "stack": 2}, "data": data,
        "save_every": 100_000, "evaluate_every": 5, "schedule": "constant", "metric": "loss",
    }  # fmt: skip
    Path("x.yaml").write_text(yaml.safe_dump({"model": MODEL, "train": train}))


@pytest.mark.long
@pytest.mark.usefixtures("sounds")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_not_heard_by_workers(number: int, ckpt: Run) -> None:
    """As Ctrl-C sends it, and what stops a service or a job."""

    def work() -> int:
        os.setsid()
        return as_ckpt("train", "x.yaml", "--device", "cpu")

    process = Forked(work)
    process.wait_until(lambda: re.search("^  step.*dev", process.err, re.M) is not None)
    before = process.err.rindex("\n") + 1
    os.killpg(process.pid, number)
    code, out, err = process.ended(), process.out, process.err[before:]
    assert code == 128 + number, err
    assert "it finished its step and saved" in out
    assert all(line.startswith("  step") for line in err.splitlines()), err
    step = RunFolder("run").last_step()
    assert json.loads(Path("run/result.json").read_text())["step"] == step > 0
    assert out.rstrip().endswith("next: ckpt train --resume")
    RunFolder("run").load()
    load_file("run/best.safetensors")


@pytest.mark.long
@pytest.mark.usefixtures("sounds")
def test_workers_end_with_the_program_that_does_not_tidy_up() -> None:
    """A worker that hears no SIGTERM would be waited for for ever."""
    script = """
        import sys
        from ckptsurgeon.trainer.job.assembly import build_job
        job = build_job("x.yaml", device="cpu")
        kept = iter(job.train.read(0, 0))
        next(kept)
        sys.kept = kept, job
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
