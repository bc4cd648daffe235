"""What a program sees of the ``torchrun`` job that is hidden from it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ckptsurgeon.util import torchrun
from ckptsurgeon.util.torchrun import alone, is_started_again, number_of_processes

JOB = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_ERROR_FILE": "/x/error.json",
    "TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1",
}  # fmt: skip
"""What torchrun sets."""


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)


def seen() -> set[str]:
    """The variables of the job that a program sees."""
    program = "import os; print(*os.environ)"
    return JOB.keys() & set(subprocess.check_output([sys.executable, "-ISc", program], text=True).split())


def test_a_program_sees_nothing_of_the_job() -> None:
    """Lightning and torch take RUN_ID, and torch's ``record`` ERROR_FILE, for those of their own job."""
    assert seen() == JOB.keys()
    with alone():
        assert seen() == {"TORCHELASTIC_RESTART_COUNT"}
        assert is_started_again()
        assert number_of_processes() == 1
        assert not torch.distributed.is_torchelastic_launched()
    assert {name: os.environ[name] for name in JOB} == JOB


@pytest.mark.parametrize("given", [{"OMP_NUM_THREADS": "3"}, {"LOCAL_WORLD_SIZE": "1"}], ids=str)
def test_a_number_of_threads_that_the_user_chose_stays(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchrun sets it only for several processes on a machine, and only to 1."""
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = torch.get_num_threads()
    with alone():
        assert "OMP_NUM_THREADS" in seen()
        assert torch.get_num_threads() == before


def test_torch_computes_on_all_cores_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "cores_of_process", lambda: 3)
    before = torch.get_num_threads()
    assert before != 3
    with alone():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
