"""A process may have few files open: more are read and written than that, and what the limit refuses is one line."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.storage.read.uri import open_source

from ..helpers.depth import some_of
from ..helpers.forked import Forked, as_ckpt


def shards(folder: str, number: int) -> None:
    """Write a checkpoint of as many shards."""
    os.mkdir(folder)
    names = {f"layers.{n}.weight": f"model-{n + 1:05}-of-{number:05}.safetensors" for n in range(number)}
    for n, (key, name) in enumerate(names.items()):
        save_file({key: torch.full((2,), float(n))}, f"{folder}/{name}")
    index = {"metadata": {"total_size": 8 * number}, "weight_map": names}
    Path(folder, "model.safetensors.index.json").write_text(json.dumps(index))


def limited(most: int, *args: str) -> Forked:
    """Run ckpt in a process that may have so many files open."""

    def work() -> int:
        os.closerange(3, 256)  # what the process that tests had open counts, too
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        return as_ckpt(*args)

    return Forked(work)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "most"),
    [(60, 48), pytest.param(1000, 256, marks=pytest.mark.faults), pytest.param(10_000, 1024, marks=pytest.mark.faults)],
)
def test_more_shards_than_files_may_be_open(number: int, most: int) -> None:
    shards("m", number)
    for verb in (
        ("inspect", "m"),
        ("convert", "m", "-o", "one.safetensors"),
        ("convert", "one.safetensors", "--max-shard-size", "17B", "-o", "many"),
        ("convert", "m", "--to", "pth", "--max-shard-size", "17B", "-o", "pths"),
        ("convert", "m", "--to", "dcp", "--max-shard-size", "17B", "-o", "dcp"),
        *(("verify", name) for name in ("one.safetensors", "many", "pths", "dcp")),
        ("diff", "--values", "many", "m"),
        ("merge", "many", "pths", "m", "--method", "linear", "--weights", "1,1,1", "-o", "merged.safetensors"),
    ):
        done = limited(most, *verb)
        assert done.ended() == 0, (verb, done.err)


REFUSED = """
import json, os, resource, sys
from importlib import import_module

def begin():
    for name in ("ckptsurgeon.__main__", "ckptsurgeon.cli.application", "ckptsurgeon.cli.failing", "ckptsurgeon.cli.verbs.convert"):
        import_module(name)

def ended(most, work):
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.closerange(3, 99)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            code = work() or 0
            sys.stdout.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), open("said").read()

fewest = next(most for most in range(4, 32) if ended(most, begin)[0] == 0)
begin()
from ckptsurgeon.__main__ import main

def ckpt(*args):
    sys.argv = ["ckpt", *args]
    return main()

found = []
for most in json.loads(sys.argv[1]):
    for verb in (["inspect", "a.pth"], ["convert", "a.pth", "-o", f"{most}/"], ["inspect", "a.pth", "--json"]):
        found.append(ended(fewest + most, lambda: ckpt(*verb)))
print("\\n" + json.dumps(found))
"""
"""Finds the fewest files with which ckpt starts, and runs it with few more, each in a process that has just started."""


@pytest.mark.long
def test_what_the_limit_refuses_is_one_line() -> None:
    torch.save({"a": torch.zeros(2)}, "a.pth")
    more = json.dumps([0, *some_of(range(2, 12, 2)), 12])
    done = subprocess.run([sys.executable, "-c", REFUSED, more], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    for code, said in ends:
        assert code in (0, 3, 5), said
        assert "Traceback" not in said
        if code:
            assert len(said.splitlines()) == 1
    assert {code for code, _ in ends} > {0}


def test_a_file_that_was_closed_in_between_is_taken_again_only_if_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ckptsurgeon.storage.descriptors._budget", lambda: 2)
    for n in range(4):
        Path(f"{n}").write_text(f"{n}" * 8)
    files = [open_source(f"{n}") for n in range(4)]
    assert [file.read(0, 2) for file in files] == [b"00", b"11", b"22", b"33"]  # type: ignore[union-attr]
    Path("new").write_text("0" * 8)
    os.replace("new", "0")
    with pytest.raises(cs.SourceError, match="0 has changed since it was opened"):
        files[0].read(0, 2)  # type: ignore[union-attr]
    for file in files:
        file.close()  # type: ignore[union-attr]


def test_no_more_are_open_than_may_be_and_none_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptsurgeon.storage.descriptors._budget", lambda: 8)
    shards("m", 40)
    before = len(os.listdir("/proc/self/fd"))
    with cs.open_checkpoint("m") as found:
        assert len(os.listdir("/proc/self/fd")) <= before + 8
        assert [found.tensor(key)[0].item() for key in found] == list(range(40))
        assert len(os.listdir("/proc/self/fd")) <= before + 8
    assert len(os.listdir("/proc/self/fd")) == before
    cs.open_checkpoint("m")  # and is forgotten
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_path_of_errors_imports_nothing() -> None:
    look = """
import sys
from ckptsurgeon.cli.application import application
from ckptsurgeon.cli.failing import failed
from ckptsurgeon.errors import SourceError
before = set(sys.modules)
failed(SourceError("it is gone.", hint="Look elsewhere."), [], as_json=False)
failed(SourceError("it is gone.", hint="Look elsewhere."), [], as_json=True)
assert set(sys.modules) == before, set(sys.modules) - before
"""
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: it is gone. Look elsewhere.\n{")
