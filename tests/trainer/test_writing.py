"""Checkpoints are written while the run goes on, and what is written is what the weights were then."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.storage.write.staged_file import StagedFile
from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.state.checkpointing import Snapshot
from ckptsurgeon.trainer.state.model_tensors import state_tensors

from . import toy


def test_the_run_goes_on_while_a_checkpoint_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writing thread is held up until a later step has changed the weights."""
    loop = toy.loop(folder="run", steps=4, save_every=2, evaluate_every=99)
    went_on, real, seen = threading.Event(), StagedFile.write, []

    def write(self: StagedFile, offset: int, data: Any) -> None:
        if "steps" in self.shown:
            assert threading.current_thread() is not threading.main_thread()
            assert went_on.wait(60)
        real(self, offset, data)

    def observe(row: Any) -> None:
        if row.get("step") == 2:
            seen.append({key: value.detach().clone() for key, value in state_tensors(loop.model).items()})
        if row.get("step") == 3:
            assert not RunFolder("run").saved_steps
            monkeypatch.setattr(StagedFile, "write", real)
            went_on.set()

    monkeypatch.setattr(StagedFile, "write", write)
    loop._observer = observe
    loop.run()
    saved = load_file("run/steps/2/model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in seen[0].items())
    assert any(not torch.equal(saved[key], value) for key, value in state_tensors(loop.model).items())


@pytest.mark.parametrize("at", [2, 4])
def test_a_disk_that_is_full_in_the_thread_ends_the_run_with_the_last_checkpoint_whole(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = toy.loop(folder="run", steps=4, save_every=1, evaluate_every=99, keep=1)
    real = os.pwrite

    def full(fd: int, data: Any, offset: int) -> int:
        if f"{os.sep}.{at}." in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "no space")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(cs.OutputError, match=f"cannot write .*steps/{at}.*: there is no space left"):
        loop.run()
    assert RunFolder("run").saved_steps == [at - 1]
    RunFolder("run").load()
    assert not [name for name in os.listdir("run/steps") if not name.isdigit()]


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = toy.loop(folder="run", steps=4, save_every=1, evaluate_every=99)

    def full(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    def observe(row: Any) -> None:
        monkeypatch.setattr(os, "pwrite", full)
        if row.get("step") == 2:
            raise ValueError("of the run")

    loop._observer = observe
    with pytest.raises(ValueError, match="of the run"):
        loop.run()


def test_outside_of_a_run_a_checkpoint_is_written_at_once() -> None:
    loop = toy.loop(folder="run")
    loop.run(until=1)
    loop.checkpoints.save()
    assert Path("run/last/model.safetensors").exists()
    assert RunFolder("run").load()[1]["standing"]["step"] == 1


def test_a_snapshot_uses_its_memory_again() -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).T, "b": [torch.ones(2, dtype=torch.bfloat16)], "c": (1, "x")}
    snapshot = Snapshot()
    first = snapshot.take(tensors)
    assert torch.equal(first["a"], tensors["a"])
    assert first["a"].stride() == tensors["a"].stride()
    places = first["a"].data_ptr(), first["b"][0].data_ptr()
    tensors["a"].add_(1)
    assert not torch.equal(first["a"], tensors["a"])
    second = snapshot.take(tensors)
    assert torch.equal(second["a"], tensors["a"])
    assert (second["a"].data_ptr(), second["b"][0].data_ptr()) == places
    assert second["c"] == (1, "x")
    tied = torch.ones(3)
    both = snapshot.take({"x": tied, "y": tied})
    assert both["x"] is both["y"]
    other = snapshot.take({"x": torch.zeros(5), "y": torch.ones(5)})
    assert (other["x"].sum(), other["y"].sum()) == (0, 5)
