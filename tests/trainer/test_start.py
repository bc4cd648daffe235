"""What a run may write over: what a run wrote. Nothing of the user's, and nothing that it is made of."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.folder.run_folder import RunFolder, RunLock
from ckptsurgeon.trainer.run import start as claim

from . import toy

Run = Callable[..., Any]


def contents(folder: str) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix != ".pyc" and path.is_file()
    }


def refused(ckpt: Run, folder: str, *args: str, code: int = 5) -> str:
    before = contents(folder)
    done = ckpt("train", *args, "--run", folder, "--device", "cpu", "--steps", "4")
    assert done.code == code, done
    assert contents(folder) == before
    return " ".join(done.err.split()).rpartition("error: ")[2]


def moved_into(folder: str, *names: str) -> None:
    os.mkdir(folder)
    for name in names:
        shutil.move(name, folder)


def test_a_configuration_of_the_name_of_a_runs_is_not_written_over(ckpt: Run) -> None:
    toy.write("config.yaml")
    moved_into("exp", "config.yaml", "toy_net.py", "toy_task.py")
    said = refused(ckpt, "exp", "exp/config.yaml")
    assert said == (
        "exp/config.yaml is in the way: a run writes a file with this name, and there is no readable lineage.json "
        "of a run. "
        "Give the run another folder: --run DIR."
    )


@pytest.mark.long
def test_an_init_of_the_name_of_a_runs_is_not_written_over(ckpt: Run, init: str) -> None:
    os.mkdir("prior")
    shutil.move(init, "prior/best.safetensors")
    assert refused(ckpt, "prior", "toy.yaml", "--init", "prior/best.safetensors").startswith(
        "prior/best.safetensors is in"
    )


@pytest.mark.parametrize("name", claim.WRITTEN)
def test_a_file_of_the_users_is_not_written_over(name: str, ckpt: Run) -> None:
    toy.write()
    os.mkdir("mine")
    Path("mine", name).write_text("{}")
    assert refused(ckpt, "mine", "toy.yaml").startswith(f"mine/{name} is in the way")


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_other_files_may_be_there_and_stay(ckpt: Run) -> None:
    toy.write("toy.yaml")
    moved_into("exp", "toy.yaml", "toy_net.py", "toy_task.py")
    before = contents("exp")
    assert ckpt("train", "exp/toy.yaml", "--run", "exp", "--device", "cpu", "--steps", "4").code == 0
    assert before.items() <= contents("exp").items()


@pytest.mark.long
def test_everything_that_a_run_leaves_is_known(ckpt: Run) -> None:
    toy.write()
    assert ckpt("train", "toy.yaml", "--device", "cpu", "--steps", "4").code == 0
    of_others = {
        "adapter",
        "dev.hypotheses.jsonl",
        "test.hypotheses.jsonl",
        "loggers.json",
    }  # of train.lora, of tasks that read texts, and of loggers
    assert set(os.listdir("run")) == set(claim.WRITTEN) - of_others


@pytest.fixture
def begun(ckpt: Run, init: str, cheap: None) -> str:
    """The folder of a run that was killed before it saved: it may be begun anew."""
    assert ckpt("train", "toy.yaml", "--init", init, "--device", "cpu", "--steps", "4").code == 0
    for name in ("last", "result.json", "steps/4/state.pth"):
        os.unlink(f"run/{name}")
    return "run"


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_run_that_was_killed_before_it_saved_may_be_begun_anew_and_leaves_nothing(begun: str, ckpt: Run) -> None:
    Path("run/best.safetensors").write_bytes(b"of the first")
    done = ckpt("train", "toy.yaml", "--device", "cpu", "--set", "task=toy_task.py:NoFigure", "--run", begun)
    assert done.code == 1, done  # what it evaluates to is no number
    assert not os.path.exists("run/best.safetensors")


@pytest.mark.costly
@pytest.mark.parametrize("name", ["best.safetensors", "steps/4/model.safetensors"])
@pytest.mark.usefixtures("cheap")
def test_what_a_killed_run_left_is_no_init_of_the_run_that_replaces_it(name: str, begun: str, ckpt: Run) -> None:
    said = refused(ckpt, begun, "toy.yaml", "--init", f"run/{name}")
    assert said.startswith(f"run/{name} is an input, and the run would overwrite it.")


@pytest.mark.long
@pytest.mark.usefixtures("cheap")
def test_a_killed_runs_configuration_is_no_configuration_of_the_run_that_replaces_it(begun: str, ckpt: Run) -> None:
    for name in ("toy_net.py", "toy_task.py"):
        shutil.copy(name, begun)
    assert refused(ckpt, begun, "run/config.yaml").startswith("run/config.yaml is an input")


@pytest.mark.usefixtures("cheap")
def test_a_run_is_not_begun_over_another(ckpt: Run) -> None:
    toy.write()
    assert ckpt("train", "toy.yaml", "--device", "cpu", "--steps", "4").code == 0
    assert "run contains a run, at step 4. Continue that run with --resume" in refused(ckpt, "run", "toy.yaml", code=2)


@pytest.mark.long
def test_a_run_that_could_write_nothing_is_begun_again(ckpt: Any) -> None:
    """Killed before its first record, it leaves an empty folder for its steps; nobody's files are in the way."""
    Path("run/steps").mkdir(parents=True)
    toy.write(steps=4)
    assert ckpt("train", "toy.yaml", "--run", "run", "--device", "cpu", "-q").code == 0


@pytest.mark.long
def test_a_run_that_only_told_what_it_is_is_begun_again(ckpt: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write(steps=4)

    def full(self: RunFolder, name: str, data: bytes) -> None:
        if name == "config.yaml":
            raise cs.OutputError("there is no space left on the disk.")
        write(self, name, data)

    write = RunFolder.write
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", full)
        assert ckpt("train", "toy.yaml", "--run", "run", "--device", "cpu", "-q").code == 5
    assert ckpt("train", "toy.yaml", "--run", "run", "--device", "cpu", "-q").code == 0


def test_a_folder_without_room_for_its_lock_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    os.mkdir("run")
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(cs.OutputError, match=r"cannot write run/\.ckpt-lock: there is no space left"):
        RunLock("run").take()
    assert os.listdir("run") == []
