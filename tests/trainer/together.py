"""Several processes that train together, as torchrun would start them, and a toy that fails where it is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file

from ..helpers.nursery import COMMAND, ROOT, with_torch
from . import toy

SAME: dict[str, Any] = {"model": {"norm": False, "dropout": 0.0}, "batch_size": 16, "steps": 8, "warmup": 2}
"""A toy whose steps do not depend on how a batch is shared out."""

FAULTY = """
class Faulty(Toy):
    '''Does what FAULT says (rank, how many losses before, what) in the middle of training.'''

    def loss(self, model, batch):
        rank, after, what = os.environ.get("FAULT", "-1 0 nothing").split()
        if torch.is_grad_enabled() and os.environ.get("RANK", "0") == rank and str(self.calls) == after:
            self.calls += 1
            fault(what)
        return super().loss(model, batch)

    def evaluate(self, model, batches):
        rank, after, what = os.environ.get("FAULT", "-1 0 nothing").split()
        self.evaluated = getattr(self, "evaluated", 0) + (self.calls > 0)
        if os.environ.get("RANK", "0") == rank and after.startswith("e") and self.evaluated == int(after[1:]):
            fault(what)
        return super().evaluate(model, batches)

class FaultyTest(Faulty):
    def splits(self):
        return {**super().splits(), "test": Clips(3, 20, 1, self)}

def fault(what):
    import signal
    if what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))  # Python runs the handler before the next line
    elif what == "raise":
        raise ValueError("what this task cannot do")
"""


@dataclass(frozen=True)
class Ended:
    """How one of the processes ended."""

    code: int
    out: str
    err: str


def environment(rank: int, size: int, port: int, **others: str) -> dict[str, str]:
    """What torchrun tells a process."""
    return {
        **os.environ, "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True", "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1", "COLUMNS": "120", **others,
    }  # fmt: skip


def together(
    program: str, *arguments: str, size: int = 2, folders: Mapping[int, str] | None = None, **others: str
) -> list[Ended]:
    """Run a program in as many processes, each in a folder of its own if it is named; returns how each ended."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    orders = [
        {
            "program": program, "arguments": ["ckpt", *arguments], "folder": os.path.abspath((folders or {}).get(rank, ".")),
            "environment": environment(rank, size, port, **others), "out": f"out-{rank}.txt", "err": f"err-{rank}.txt",
        }
        for rank in range(size)
    ]  # fmt: skip
    codes = with_torch().carry_out(orders)
    said = [(Path(order["folder"], order["out"]), Path(order["folder"], order["err"])) for order in orders]
    return [Ended(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, said, strict=True)]


def alone(*words: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run ``ckpt`` in a folder, as the program that it is; returns its exit code, and what it printed and said."""
    said = Path("said.txt").absolute()
    said.unlink(missing_ok=True)
    order = {
        "program": COMMAND, "arguments": ["ckpt", *words], "folder": str(folder), "environment": dict(environment),
        "out": str(said), "err": str(said),
    }  # fmt: skip
    (code,) = with_torch().carry_out([order], seconds=600)
    return code, said.read_text()


def train(*arguments: str, size: int = 2, **others: Any) -> list[Ended]:
    """Run ``ckpt train`` as so many processes, without what takes long beside: checks after the run, and pictures."""
    return together(TRAIN, "train", *arguments, size=size, **others)


TRAIN = """
import os, sys
exec(os.environ.get("BEFORE", ""))
from ckptsurgeon.__main__ import main
from ckptsurgeon.trainer.run import run_job as running
from ckptsurgeon.trainer.checks.check import Check
from ckptsurgeon.trainer.run import records
from ckptsurgeon.trainer.loggers.tensorboard import TensorBoard
TensorBoard.is_automatic = False
records.curves_png = lambda *args, **options: None
running.checks_after = lambda *args, **options: [Check("left out", "NOT RUN", "a test")]
sys.exit(main())
"""

WRITES_AT_ONCE = """
from ckptsurgeon.trainer.state.checkpointing import CheckpointWriter
CheckpointWriter.__enter__, CheckpointWriter.__exit__ = (lambda self: self), (lambda self, *error: None)
"""
"""Checkpoints are written by no thread: a process that is killed has written what it saved before."""


def write(task: str = "Faulty", **settings: Any) -> str:
    """Write the toy that does not depend on how a batch is shared out; returns its configuration's path."""
    given = {**SAME, **settings}
    path = toy.write(**{"save_every": 100, "evaluate_every": 4, **given, "task": f"faulty.py:{task}"})
    Path("faulty.py").write_text(toy.TASK + FAULTY)
    return path


def apart(one: str, other: str, name: str = "last/model.safetensors") -> float:
    """The largest difference between the weights of two runs."""
    found, wanted = load_file(f"{one}/{name}"), load_file(f"{other}/{name}")
    assert found.keys() == wanted.keys()
    return max(float((found[key] - wanted[key]).abs().max()) for key in found)


def same_bits(one: str, other: str) -> bool:
    """Whether two runs have come to the same, bit for bit: weights, moments, generators, position."""
    states = [torch.load(f"{run}/last/state.pth", weights_only=True) for run in (one, other)]
    for state in states:
        state["standing"]["seconds"] = 0.0
    return apart(one, other) == 0 and _same(*states)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return bool(one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items()))
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
