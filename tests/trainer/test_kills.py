"""Killed at any moment a run leaves the last good checkpoint, and goes on to what it would have come to."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ckptsurgeon.trainer.folder.checkpoint_files import finish, saving
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.state.model_tensors import SafetensorsLayout

from . import toy

Counted = Callable[[FrameType, str, Any], bool]


def killed(work: Callable[[], object], at: int | None, counted: Counted) -> int | None:
    """Do ``work`` in a process of its own that is killed at the ``at``-th event that counts, in whichever thread.

    Returns how many events there were; None where it was killed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking: there is one thread
        reader, writer = os.pipe()
        child = os.fork()
    if child == 0:
        seen = 0

        def watch(frame: FrameType, event: str, what: Any) -> None:
            nonlocal seen
            if counted(frame, event, what):
                if at is not None and seen >= at:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        try:
            threading.setprofile(watch)  # of the thread that writes checkpoints
            sys.setprofile(watch)
            work()
            sys.setprofile(None)
            os.write(writer, str(seen).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL)
    return int(said) if status == 0 else None


LOOKS = {
    "_path_normpath", "fspath", "fstat", "getcwd", "listdir", "lstat", "scandir", "stat", "statvfs", "urandom",
}  # fmt: skip
"""Calls that change nothing: what is on disk before one of them is what is on disk before the next one that does."""


def os_call(frame: FrameType, event: str, what: Any) -> bool:
    """Before each call of the operating system that may change something; a function of ours is around those of ctypes."""
    if event == "call":
        return frame.f_code.co_name in ("exchange", "reserve")
    return event == "c_call" and getattr(what, "__module__", None) in ("posix", "fcntl") and what.__name__ not in LOOKS


def python_call(frame: FrameType, event: str, what: Any) -> bool:
    return event in ("call", "c_call")


class Saves:
    """Checkpoints that know by their bytes which step they are of."""

    def __init__(self, path: str, keep: int = 1) -> None:
        self.folder, self.keep = RunFolder(path), keep

    def save(self, step: int) -> None:
        layout = SafetensorsLayout({"step": torch.tensor([step])})
        with saving(self.folder.path, step, keep=self.keep, nbytes=layout.nbytes) as staged:
            layout.write(staged.file("model.safetensors", layout.nbytes))
            finish(staged, {"step": step})

    def whole(self) -> int:
        """Return which checkpoint ``last`` leads to; fails where it is not whole."""
        tensors, state = self.folder.load()
        assert int(tensors["step"]) == state["step"] == self.folder.last_step()
        return int(state["step"])

    def steps(self) -> list[str]:
        return sorted(os.listdir(self.folder.of("steps")))


def unpointed(saves: Saves, step: int) -> None:
    """Leave a checkpoint as a run does that is killed when it is in place, and before ``last`` leads to it."""
    aside = saves.folder.of("aside")
    last = os.readlink(saves.folder.of("last")) if saves.folder.holds_a_run else None
    kept = Saves(saves.folder.path, keep=99)
    kept.save(step)
    os.unlink(saves.folder.of("last"))
    if last is not None:
        os.symlink(last, aside)
        os.rename(aside, saves.folder.of("last"))


@pytest.fixture
def saves() -> Saves:
    made = Saves("run")
    made.folder.create()
    return made


def test_what_last_leads_to_outlives_a_checkpoint_of_a_future_that_did_not_happen(saves: Saves) -> None:
    """Killed between the rename of steps/9 and the link to it, resumed from 6, saved at 7."""
    saves.save(6)
    unpointed(saves, 9)
    assert (saves.whole(), saves.steps()) == (6, ["6", "9"])
    saves.save(7)
    assert (saves.whole(), saves.steps()) == (7, ["7"])


def test_a_run_begun_anew_is_not_older_than_what_a_killed_one_left(saves: Saves) -> None:
    unpointed(saves, 12)
    assert saves.folder.last_step() == 12  # there was no time to link it
    for step in (4, 8):
        saves.save(step)
        assert (saves.whole(), saves.steps()) == (step, [str(step)])


def test_as_many_as_are_kept_are_those_that_lead_to_last(saves: Saves) -> None:
    saves.keep = 2
    for step in (2, 4, 6):
        saves.save(step)
    unpointed(saves, 9)
    saves.save(7)
    assert (saves.whole(), saves.steps()) == (7, ["6", "7"])


def left_by_kills(work: Callable[[], object]) -> list[str]:
    """Do ``work``, and return copies of the run: what a process leaves that is killed before each call that changes something.

    A process that is killed loses nothing that it has given to the operating system, and what it has not is in no copy.
    """
    copies: list[str] = []

    def watch(frame: FrameType, event: str, what: Any) -> None:
        if os_call(frame, event, what):
            copies.append(f"killed/{len(copies)}")
            shutil.copytree("run", copies[-1], symlinks=True)

    sys.setprofile(watch)
    try:
        work()
    finally:
        sys.setprofile(None)
    return copies


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    ("before", "left", "step"), [(6, 9, 7), (6, 9, 9)], ids=["below a left-over", "over a left-over"]
)
def test_killed_at_every_call_of_a_save_there_is_a_whole_checkpoint(
    before: int, left: int, step: int, saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # so that this is quick
    saves.save(before)
    unpointed(saves, left)
    copies = left_by_kills(lambda: saves.save(step))
    assert saves.whole() == step
    seen: set[int] = set()
    for copy in copies:
        shutil.rmtree("run")
        os.rename(copy, "run")
        now = saves.whole()
        seen.add(now)
        after = now + 1  # as a run that goes on, whatever the killed one left
        saves.save(after)
        assert (saves.whole(), saves.steps()) == (after, [str(after)])
        assert [name for name in os.listdir("run") if "ckpt-tmp" in name] == []
    assert seen == {before, step}
    assert len(copies) > 20


def test_every_checkpoint_is_on_disk_before_last_leads_to_it_and_an_old_name_is_gone_before_its_files(
    saves: Saves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut may undo: a change of a folder that was not flushed. The order on disk is the order of calls."""
    saves.save(4)
    calls: list[str] = []
    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, _told(calls, name, getattr(os, name)))
    saves.save(8)
    steps, run = f"fsync {os.path.realpath('run/steps')}", f"fsync {os.path.realpath('run')}"
    placed = next(i for i, call in enumerate(calls) if call.startswith("rename") and call.endswith("/8"))
    pointed = next(i for i, call in enumerate(calls) if call.startswith("replace") and call.endswith("/last"))
    pruned = next(i for i, call in enumerate(calls) if call.startswith("rename") and "steps/4 " in call)
    emptied = next(i for i, call in enumerate(calls) if call.split()[0] in ("unlink", "rmdir"))
    assert any(call.startswith("fsync") and call.endswith("ckpt-tmp") for call in calls[:placed])
    assert steps in calls[placed:pointed]
    assert run in calls[pointed:pruned]
    assert steps in calls[pruned:emptied]


def _told(calls: list[str], name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def told(*args: Any, **options: Any) -> Any:
        shown = [os.path.realpath(f"/proc/self/fd/{arg}") if isinstance(arg, int) else str(arg) for arg in args]
        calls.append(" ".join([name, *shown]))
        return real(*args, **options)

    return told


def test_a_folder_that_is_made_is_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", _told(calls, "fsync", os.fsync))
    RunFolder("runs/ru").create()
    here = Path.cwd().resolve()
    assert sorted(calls) == [f"fsync {place}" for place in (here, here / "runs", here / "runs" / "ru")]


def test_the_log_of_the_steps_before_a_checkpoint_is_on_disk_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = toy.loop(folder="run", save_every=2, evaluate_every=99)
    calls: list[str] = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, _told(calls, name, getattr(os, name)))
    loop.run(until=2)
    log, pointed = f"fsync {Path.cwd().resolve() / 'run' / 'log.jsonl'}", len(calls) - 1
    while not calls[pointed].endswith("/last"):
        pointed -= 1
    assert log in calls[:pointed]


STEPS, EVERY = 48, 3


def a_run() -> toy.TrainingLoop:
    """A run about to begin, or to go on."""
    loop = toy.loop(folder="run", steps=STEPS, save_every=EVERY, keep=2)
    if RunFolder("run").holds_a_run:
        loop.state.restore(*RunFolder("run").load())
    return loop


@pytest.mark.long
def test_killed_at_twenty_moments_it_ends_with_the_weights_of_a_run_that_was_not() -> None:
    """The moments are counted in calls, not in seconds: the same on a machine that is slow or busy."""
    calls = killed(a_run().run, None, python_call)
    assert calls is not None
    wanted = {name: load_file(f"run/{name}.safetensors") for name in ("last/model", "best")}
    os.rename("run", "unkilled")
    chance, steps, kills = random.Random(0), [0], 0
    while kills < 20:
        loop = a_run()
        left = calls * (STEPS - loop.state.progress.step) // STEPS
        moment = chance.randrange(min(calls * 3 * EVERY // STEPS, left))
        kills += killed(loop.run, moment, python_call) is None
        if RunFolder("run").holds_a_run:
            RunFolder("run").load()
            steps.append(RunFolder("run").last_step())
    assert steps == sorted(steps)
    assert len(set(steps)) > 3
    assert killed(a_run().run, None, python_call) is not None
    for name, known in wanted.items():
        found = load_file(f"run/{name}.safetensors")
        assert all(torch.equal(found[key], value) for key, value in known.items()), name
    assert {name for name in os.listdir("run/steps") if not name.isdigit()} == set()
    assert len(os.listdir("run/steps")) == 2
