"""A run on a disk that fills up for real. Needs root; ``make test-faults``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ckptsurgeon.trainer.run_folder import RunFolder

from ..trainer import toy
from .test_faults import small_disk  # noqa: F401 - a fixture

pytestmark = pytest.mark.faults


def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_the_run_goes_on_when_there_is_room(
    small_disk: Path,  # noqa: F811
) -> None:
    toy.write(model={"hidden": 128}, evaluate_every=100, keep=1)
    command = [sys.executable, "-m", "ckptsurgeon", "train", "toy.yaml", "--device", "cpu", "-q", "--run"]
    assert subprocess.run([*command, "whole"], capture_output=True).returncode == 0
    run = str(small_disk / "run")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_600_000))  # room for one checkpoint of 0.25 MB, not for two
    done = subprocess.run([*command, run], capture_output=True, text=True)
    assert done.returncode == 5, done.stderr
    assert "no space left" in done.stderr or "are free" in done.stderr
    assert RunFolder(run).last_step() == 4
    RunFolder(run).load()
    assert [name for name in os.listdir(os.path.join(run, "steps")) if "ckpt-tmp" in name] == []
    filler.unlink()
    assert subprocess.run([*command, run, "--resume"], capture_output=True).returncode == 0
    assert Path(run, "last/model.safetensors").read_bytes() == Path("whole/last/model.safetensors").read_bytes()
