"""One writer of an output at a time, whatever its format: the second is told, or waits."""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.storage.write import folders, staged_file
from ckptsurgeon.storage.write.output_paths import output_lock

KINDS: dict[str, dict[str, Any]] = {
    "shards": {"max_shard_size": "4kB"},
    "pth shards": {"to": "pth", "max_shard_size": "4kB"},
    "dcp": {"to": "dcp"},
}
HOLDER = """
import sys
from ckptsurgeon.storage.write.output_paths import output_lock
with output_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def inputs() -> None:
    for value in (0.0, 1.0):
        torch.save({f"t{n}": torch.full((500,), value) for n in range(6)}, f"{value}.pth")


def write(value: float, output: str = "out", **options: Any) -> cs.Receipt:
    with cs.open_checkpoint(f"{value}.pth") as source:
        return cs.apply(cs.convert(source), output, **options)


def written(output: str = "out") -> float:
    """Return the value of all tensors of an output that is whole; fails for a mixture."""
    cs.verify(output).raise_if_failed()
    with cs.open_checkpoint(output) as found:
        values = {found.tensor(key)[0].item() for key in found}
    (value,) = values
    return float(value)


def left() -> list[str]:
    return sorted(name for name in os.listdir() if name not in ("out", "out.pth", "0.0.pth", "1.0.pth"))


@contextmanager
def in_commit(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Hold the first writer where it puts its output in place: one event is that it is there, one lets it go on."""
    there, on = threading.Event(), threading.Event()

    def holding(real: Callable[..., None]) -> Callable[..., None]:
        def place(*args: Any, **options: Any) -> None:
            first = not there.is_set()
            there.set()
            assert not first or on.wait(60)
            real(*args, **options)

        return place

    monkeypatch.setattr(folders, "place_folder", holding(folders.place_folder))
    monkeypatch.setattr(staged_file, "_place", holding(staged_file._place))
    try:
        yield there, on
    finally:
        on.set()


@pytest.mark.parametrize(("first", "second"), [*permutations(KINDS, 2), ("dcp", "dcp")])
@pytest.mark.parametrize("force", [False, True])
def test_a_second_writer_of_a_folder_is_told(
    first: str, second: str, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool, in_commit(monkeypatch) as (there, on):
        began = pool.submit(write, 0.0, force=force, **KINDS[first])
        assert there.wait(60)
        with pytest.raises(cs.OutputError, match=rf"out is being written by process {os.getpid()}\. .*wait=") as told:
            write(1.0, force=force, **KINDS[second])
        assert told.value.exit_code == 5
        on.set()
        began.result()
    assert (written(), left()) == (0.0, [])


def test_a_second_writer_of_a_file_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as pool, in_commit(monkeypatch) as (there, on):
        began = pool.submit(write, 0.0, "out.pth")
        assert there.wait(60)
        with pytest.raises(cs.OutputError, match=r"out\.pth is being written by process"):
            cs.init_config("1.0.pth", output="out.pth", force=True)
        on.set()
        began.result()
    assert (written("out.pth"), left()) == (0.0, [])


@pytest.mark.costly
@pytest.mark.parametrize("wait", [30, math.inf])
def test_a_second_writer_waits_and_then_sees_what_the_first_wrote(wait: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(3) as pool, in_commit(monkeypatch) as (there, on):
        began = pool.submit(write, 0.0, **KINDS["dcp"])
        assert there.wait(60)
        others = [pool.submit(write, 1.0, force=force, wait=wait, **KINDS["shards"]) for force in (False, True)]
        on.set()
        began.result()
        with pytest.raises(cs.OutputError, match="out (holds a checkpoint|is a folder|exists)"):
            others[0].result(60)
        others[1].result(60)
    assert (written(), left()) == (1.0, [])
    assert ".metadata" not in os.listdir("out")


@pytest.mark.long
@pytest.mark.each_value
@pytest.mark.costly
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("first", "second"), [("shards", "dcp"), ("pth shards", "dcp"), ("shards", "pth shards")])
def test_of_many_races_none_leaves_a_mixture(first: str, second: str, force: bool) -> None:
    for number in range(12):
        output = f"out{number}"
        start = threading.Barrier(2)

        def one(value: float, kind: str, output: str = output, start: threading.Barrier = start) -> bool:
            start.wait(60)
            with suppress(cs.OutputError):
                write(value, output, force=force, **KINDS[kind])
                return True
            return False

        with ThreadPoolExecutor(2) as pool:
            ends = [pool.submit(one, 0.0, first), pool.submit(one, 1.0, second)]
            done = [end.result(60) for end in ends]
        assert any(done)
        assert force or not all(done)
        assert written(output) in [float(value) for value, well in enumerate(done) if well]
        assert not [name for name in os.listdir() if name.startswith(".")]


def holder(path: str) -> subprocess.Popen[str]:
    """Start a process that holds the lock of an output."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_what_a_killed_writer_held_is_free_and_its_file_is_removed() -> None:
    with holder("out") as process:
        with pytest.raises(cs.OutputError, match=f"written by process {process.pid}"):
            write(0.0)
        process.send_signal(signal.SIGKILL)
    assert left() == [".out.ckpt-lock"]
    write(0.0)
    assert (written(), left()) == (0.0, [])


def test_the_same_place_under_another_name_is_the_same_output() -> None:
    os.mkdir("out")
    os.symlink("out", "link")
    os.symlink(".", "here")
    with output_lock("out"):
        for name in ("link", "here/out", "../" + os.path.basename(os.getcwd()) + "/out/"):
            with pytest.raises(cs.OutputError, match="is being written"):
                write(0.0, name)
    write(0.0, "link")
    assert written() == 0.0


def test_others_beside_are_written_at_the_same_time() -> None:
    with output_lock("out"), output_lock("out.pth"):
        write(0.0, "out2")
    assert written("out2") == 0.0


def test_a_folder_around_it_may_be_renamed_meanwhile() -> None:
    os.mkdir("old")
    with output_lock("old/out"):
        os.rename("old", "new")
        with pytest.raises(cs.OutputError, match="is being written"):
            write(0.0, "new/out")
    assert os.listdir("new") == []


@pytest.mark.parametrize("output", ["0.0.pth/out.pth", "0.0.pth/new/out.pth"])
def test_an_output_below_a_file_is_refused_as_such(output: str) -> None:
    with pytest.raises(cs.OutputError, match=r"0\.0\.pth is not a folder\. Name another output\.$"):
        write(1.0, output)
    with pytest.raises(cs.OutputError, match=r"the folder .*/new does not exist\. Make that folder first\.$"):
        write(1.0, "new/out.pth")


@pytest.mark.costly
@pytest.mark.parametrize(("wait", "hint"), [(None, "Use wait=SECONDS, or"), (0.01, "Use a longer wait, or")])
def test_the_hint_of_a_second_writer_is_to_wait_longer(wait: float | None, hint: str) -> None:
    with holder("out.pth") as process:
        with pytest.raises(cs.OutputError, match=hint):
            write(0.0, "out.pth", wait=wait)
        process.communicate(timeout=60)


def test_where_no_folder_can_be_made_the_file_system_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    make = os.mkdir

    def mkdir(path: str, *mode: int) -> None:
        if path.endswith(".ckpt-tmp"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        make(path, *mode)

    os.mkdir("out")
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(cs.OutputError, match=r"^cannot write .*/out: permission denied\.$"):
        write(0.0, "out", force=True, **KINDS["shards"])


def test_without_room_for_an_upload_the_hint_is_another_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs(".")
    small = os.statvfs_result((found.f_bsize, 1, found.f_blocks, 3, 3, *tuple(found)[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with pytest.raises(cs.OutputError, match="or set TMPDIR to another folder"):
        write(0.0, "memory://bucket/out.pth")


@pytest.mark.parametrize("seconds", [-1, math.nan])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(cs.ConfigError, match="is not a valid time"):
        write(0.0, wait=seconds)
    assert left() == []


@pytest.mark.costly
@pytest.mark.parametrize("given", [(), ("30",)])
def test_the_command_waits_when_it_is_told_to(given: tuple[str, ...], ckpt: Callable[..., Any]) -> None:
    with holder("out.pth") as process:
        told = ckpt("convert", "0.0.pth", "-o", "out.pth")
        assert told.code == 5
        assert f"out.pth is being written by process {process.pid}" in told.err
        with ThreadPoolExecutor(1) as pool:
            waited = pool.submit(process.communicate, timeout=60)  # which ends it
            assert ckpt("convert", "--wait", *given, "0.0.pth", "-o", "out.pth").code == 0
            waited.result()
    assert (written("out.pth"), left()) == (0.0, [])


@pytest.mark.parametrize("kind", [*KINDS, "file"])
def test_what_is_begun_in_a_folder_that_is_renamed_is_removed_there(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir("old")
    with ThreadPoolExecutor(1) as pool, in_commit(monkeypatch) as (there, on):
        began = pool.submit(write, 0.0, "old/out.pth" if kind == "file" else "old/out", **KINDS.get(kind, {}))
        assert there.wait(60)
        os.rename("old", "new")
        assert len(os.listdir("new")) == 2  # the temp and the lock
        on.set()
        with pytest.raises(cs.OutputError, match="cannot write .*old/out"):
            began.result(60)
    assert os.listdir("new") == []


@pytest.mark.parametrize("recipe", [False, True])
def test_an_output_whose_path_has_the_character_nul_is_refused(recipe: bool) -> None:
    if recipe:
        Path("r.yaml").write_text('verb: convert\nsource: a.pth\noutput: "a\\0b.pth"\n')
    torch.save({"w": torch.ones(2)}, "a.pth")
    with pytest.raises(cs.OutputError, match=r"cannot write a\\x00b.pth: the path has the character NUL"):
        cs.apply("r.yaml" if recipe else cs.convert("a.pth"), None if recipe else "a\0b.pth")
