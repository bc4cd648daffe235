"""A run's folder and what may befall it: two processes, a link that a copy lost, damage, an edited record."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon import cli
from ckptsurgeon.cli import stopping
from ckptsurgeon.trainer import loop
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.folder.run_folder import RunFolder, RunLock

from ..helpers.forked import Forked
from . import toy

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptsurgeon.trainer.run import run_job as running

    monkeypatch.setattr(running, "checks_after", lambda *args, **options: [Check("cheap", "NOT RUN", "a test")])


@contextmanager
def trained_elsewhere(folder: str) -> Iterator[Forked]:
    """Another process holds the folder while the block runs."""
    os.makedirs(folder, exist_ok=True)

    def hold() -> None:
        RunLock(folder).take()
        print("held", flush=True)
        signal.pause()

    process = Forked(hold)
    try:
        process.wait_until(lambda: bool(process.out))
        yield process
    finally:
        process.kill()


def refused(ckpt: Run, *flags: str, code: int) -> str:
    """What is said; nothing of the folder has changed."""
    before = tree("run")
    start = () if "--resume" in flags or "--report" in flags else toy.START
    done = ckpt("train", *start, *flags, "--device", "cpu")
    assert done.code == code, done
    assert tree("run") == before
    return " ".join(done.err.split()).rpartition("error: ")[2]


def tree(folder: str) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file() and path.name != ".ckpt-lock"
    }


def part(step: int) -> None:
    """A run of 12 steps that was stopped."""

    def observe(row: Any) -> None:
        if row.get("step") == step and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    cs.train(**toy.STARTED, device="cpu", observer=observe)


@pytest.mark.long
def test_one_process_trains_in_a_folder(ckpt: Run, init: str) -> None:
    part(5)
    with trained_elsewhere("run") as other:
        said = refused(ckpt, "--resume", code=5)
        assert said.startswith(f"run is being trained by process {other.pid}. Wait for that process")
        assert f"run is being trained by process {other.pid}" in refused(ckpt, code=5)
        assert ckpt("train", *toy.START, "--check-only", "--device", "cpu").code == 0
    assert ckpt("train", "--resume", "--device", "cpu").code == 0  # the other one was killed
    assert not os.path.exists("run/.ckpt-lock")


def test_a_run_that_began_meanwhile_is_not_overwritten(ckpt: Run, init: str) -> None:
    """Both found the folder free; the one that comes second to make it is told so."""
    from ckptsurgeon.trainer.run import run_job as running

    checks, entered = running.checks_before, []

    def slowly(*args: Any) -> Any:
        if not entered:
            entered.append(True)
            cs.train(**toy.STARTED, device="cpu", steps=4)
        return checks(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "checks_before", slowly)
        done = ckpt("train", *toy.START, "--device", "cpu", "--steps", "6")
    assert done.code == 2, done
    assert "run contains a run, at step 4" in done.err
    assert RunFolder("run").last_step() == 4


@pytest.mark.long
@pytest.mark.parametrize("how", ["lost", "dangling", "copied", "text"])
def test_a_run_whose_link_was_lost_goes_on(how: str, ckpt: Run, init: str) -> None:
    """By zip, rsync without -l, cp -rL, or a file system without links."""
    whole = cs.train(**toy.STARTED, device="cpu", run="whole")
    part(5)
    if how == "copied":
        shutil.copytree("run", "flat", symlinks=False)
        shutil.rmtree("run")
        os.rename("flat", "run")
    else:
        os.remove("run/last")
    if how == "dangling":
        os.symlink("steps/99", "run/last")
    if how == "text":
        Path("run/last").write_text("steps/5")
    assert "run contains a run, at step 5. Continue that run with --resume" in refused(ckpt, code=2)
    done = ckpt("train", "--resume", "--device", "cpu")
    assert done.code == 0, done
    assert "run/last did not point to a checkpoint; resuming from run/steps/5" in " ".join(done.err.split())
    assert os.readlink("run/last") == "steps/12"
    assert Path("run/last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()
    assert whole.step == 12


def test_a_folder_called_last_that_is_no_copy_is_not_removed(ckpt: Run, init: str) -> None:
    part(5)
    os.remove("run/last")
    os.mkdir("run/last")
    Path("run/last/thesis.txt").write_text("mine")
    said = refused(ckpt, "--resume", code=5)
    assert said.startswith(
        "run/last should be a link to a checkpoint, but is a folder that differs from every checkpoint in run/steps."
    )


def test_a_run_without_a_checkpoint_is_said_to_be_one(ckpt: Run, init: str) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=4)
    shutil.rmtree("run/steps")
    assert "run contains a run without a complete checkpoint" in refused(ckpt, "--resume", code=3)
    assert "which leaves the files of this run as they are" in refused(ckpt, code=3)


@pytest.mark.long
@pytest.mark.parametrize(("name", "how"), [("model.safetensors", "flip"), ("state.pth", "flip"), ("state.pth", "cut")])
def test_damage_is_noticed_and_the_checkpoint_before_it_is_named(name: str, how: str, ckpt: Run, init: str) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=12)
    path = Path("run/steps/12", name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data if how == "flip" else data[: len(data) // 2])
    said = refused(ckpt, "--resume", code=3)
    assert said == (
        f"run/steps/12/{name} is damaged: it has changed since it was written. run/steps/8 is complete: "
        "run mv run/steps/12 run.damaged; then --resume goes on from run/steps/8."
    )
    os.rename("run/steps/12", "run.damaged")
    assert ckpt("train", "--resume", "--device", "cpu").code == 0
    assert os.readlink("run/last") == "steps/12"


@pytest.mark.long
def test_damage_in_a_checkpoint_without_sums_is_said_in_our_words(ckpt: Run, init: str) -> None:
    """Those of earlier versions have none."""
    cs.train(**toy.STARTED, device="cpu", steps=4)
    os.remove("run/steps/4/sums.json")
    path = Path("run/steps/4/state.pth")
    path.write_bytes(path.read_bytes()[:1000])
    said = refused(ckpt, "--resume", code=3)
    assert said.startswith("run/steps/4/state.pth is damaged: it is truncated or overwritten. No other checkpoint")


@pytest.mark.long
def test_an_edited_record_is_said_not_to_be_read(ckpt: Run, init: str) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=4)
    assert "was edited" not in ckpt("train", "--resume", "--device", "cpu").err
    Path("run/config.yaml").write_text(Path("run/config.yaml").read_text().replace("lr: 0.01", "lr: 0.5"))
    done = ckpt("train", "--resume", "--device", "cpu")
    assert "run/config.yaml was edited; --resume does not read it" in " ".join(done.err.split())


@pytest.mark.long
def test_a_run_that_was_done_is_said_to_be(ckpt: Run, init: str) -> None:
    cs.train(**toy.STARTED, device="cpu", steps=4)
    said = " ".join(ckpt("train", "--resume", "--device", "cpu").err.split())
    assert (
        said.count("note: this run has already done all 4 steps: the model is not trained further, only checked again")
        == 1
    )


def test_a_folder_with_other_things_is_said(ckpt: Run, init: str) -> None:
    os.mkdir("wav")
    Path("wav/1.wav").touch()
    done = ckpt("train", *toy.START, "--run", "wav", "--device", "cpu")
    assert done.code == 0
    assert "wav also contains files that no run writes: 1.wav" in " ".join(done.err.split())
    Path("file").touch()
    assert "file is not a folder." in ckpt("train", *toy.START, "--run", "file", "--device", "cpu").err


@pytest.mark.long
def test_identical_runs_leave_identical_files(init: str) -> None:
    for run in ("a", "b", "c"):
        cs.train(**toy.STARTED, device="cpu", steps=4, run=run)
    for name in ("best.safetensors", "last/model.safetensors"):
        assert len({Path(run, name).read_bytes() for run in ("a", "b", "c")}) == 1
    with cs.open_checkpoint("a/best.safetensors") as best:
        assert list(best.metadata) == ["lineage", "step", "error"]


@pytest.mark.long
def test_one_batch_by_heart_stands_in_no_runs_way(ckpt: Run, init: str) -> None:
    assert ckpt("train", *toy.START, "--overfit-one-batch", "--steps", "40", "--device", "cpu").code == 0
    assert sorted(name for name in os.listdir() if name.startswith("run")) == ["run-overfit"]
    assert ckpt("train", *toy.START, "--steps", "4", "--device", "cpu").code == 0


@pytest.mark.long
def test_the_kept_configuration_is_a_configuration(ckpt: Run, init: str, tmp_path: Path) -> None:
    """From where it lies, and from elsewhere: its model's code, its task and its paths are found."""
    import yaml

    from ckptsurgeon.trainer.config.section import parse_settings
    from ckptsurgeon.trainer.config.settings import Settings

    cs.train(**toy.STARTED, device="cpu", steps=4, sets=["clip=null", "data.min_s=0.5"])
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert kept["relative_to"] == ".."
    assert set(kept["train"]) == set(Settings.__dataclass_fields__)
    assert parse_settings(kept["train"], "x").clip is None
    done = ckpt("train", "run/config.yaml", "--check-only", "--init", init, "--device", "cpu")
    assert done.code == 0, done
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    assert ckpt("train", "../run/config.yaml", "--check-only", "--device", "cpu").code == 0
    again = cs.train("../run/config.yaml", init=f"../{init}", device="cpu", run="again")
    assert Path("again/config.yaml").read_text().replace("../..", "..") == Path("../run/config.yaml").read_text()
    assert again.step == 4
    ours, theirs = (Path(run, "last/model.safetensors").read_bytes() for run in ("again", "../run"))
    assert ours == theirs


@pytest.mark.long
def test_a_second_signal_says_what_is_saved(init: str) -> None:
    """It does not wait for the step, which here never ends."""

    def work() -> int:
        stopping.IMPATIENT_S = 0
        real, steps = loop.TrainingLoop._step, []

        def step(*given: Any) -> Any:
            steps.append(1)
            if len(steps) == 6:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGTERM)
            return real(*given)

        loop.TrainingLoop._step = step  # type: ignore[method-assign]
        return cli.main(["train", *toy.START, "--run", "r", "--device", "cpu"])

    done = Forked(work)
    assert done.ended() == 143, done.err
    assert "r/steps/4 is saved; ckpt train --run r --resume continues." in " ".join(done.err.split())
