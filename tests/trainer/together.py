"""Several processes that train together, as torchrun would start them, and a toy that fails where it is told."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import load_file

from . import toy

ROOT = str(Path(__file__).parents[2])
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
    codes = _started().carry_out(orders)
    said = [(Path(order["folder"], order["out"]), Path(order["folder"], order["err"])) for order in orders]
    return [Ended(code, out.read_text(), err.read_text()) for code, (out, err) in zip(codes, said, strict=True)]


def alone(*words: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run ``ckpt`` in a folder, as the program that it is; returns its exit code, and what it printed and said."""
    said = Path("said.txt").absolute()
    said.unlink(missing_ok=True)
    order = {
        "program": MAIN, "arguments": ["ckpt", *words], "folder": str(folder), "environment": dict(environment),
        "out": str(said), "err": str(said),
    }  # fmt: skip
    (code,) = _started().carry_out([order], seconds=600)
    return code, said.read_text()


def train(*arguments: str, size: int = 2, **others: Any) -> list[Ended]:
    """Run ``ckpt train`` as so many processes, without what takes long beside: checks after the run, and pictures."""
    return together(TRAIN, "train", *arguments, size=size, **others)


MAIN = "import sys\nfrom ckptsurgeon.__main__ import main\nsys.exit(main())"

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

NURSERY = """
import faulthandler, functools, gc, importlib, json, os, pkgutil, select, signal, sys, time, traceback
import fsspec, numpy.fft, numpy.random, pydoc, rich.console, rich.progress, safetensors.torch, typer, yaml
import torch, torch._dynamo, torch._functorch.aot_autograd, torch.distributed.checkpoint, torch.distributed.fsdp
import torch.distributed.tensor, torch.nn.parallel, torch.profiler
import ckptsurgeon.__main__, ckptsurgeon.cli.run, ckptsurgeon.destinations, ckptsurgeon.render.train, ckptsurgeon.trainer

for package in (ckptsurgeon.destinations, ckptsurgeon.trainer):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(found.name)
ckptsurgeon.cli.run.application = functools.cache(ckptsurgeon.cli.run.application)
typer.main.get_command = functools.cache(typer.main.get_command)
typer.main.get_command(ckptsurgeon.cli.run.application(as_json=False))
gc.collect()
gc.freeze()  # each process that ends looks for garbage of its own alone

def born(order):
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    sys.argv = order["arguments"]
    sys.path.insert(0, "")
    try:
        exec(order["program"], {"__name__": "__main__"})
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 99
    return 0

def ended(pid, until):
    handle = os.pidfd_open(pid)
    if not select.select([handle], [], [], max(until - time.monotonic(), 0))[0]:
        os.kill(pid, signal.SIGUSR1)  # it says where it hangs
        select.select([handle], [], [], 1)
        os.kill(pid, 9)
    os.close(handle)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for line in sys.stdin:
    asked = json.loads(line)
    pids, until = [], time.monotonic() + asked["seconds"]
    for order in asked["orders"]:
        pid = os.fork()
        if not pid:
            code = born(order)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        pids.append(pid)
    print(json.dumps([ended(pid, until) for pid in pids]), flush=True)
"""
"""A process that has imported what takes seconds, and forks those that are asked for."""


class _Nursery:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},  # as ckpt train sets it
        )  # fmt: skip

    def carry_out(self, orders: Sequence[Mapping[str, Any]], seconds: int = 200) -> list[int]:
        """Run what is ordered, all of it at once, and no longer than so many seconds; returns the exit codes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"orders": orders, "seconds": seconds}) + "\n")
        self._process.stdin.flush()
        return list(json.loads(self._process.stdout.readline()))


@functools.cache
def _started() -> _Nursery:
    return _Nursery()


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
