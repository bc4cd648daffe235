"""A process that is killed at any point of a run: the others end with one message, and what is saved is whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistBackendError

from ckptsurgeon.trainer.folder.run_folder import RunFolder
from ckptsurgeon.trainer.parallel import device_group
from ckptsurgeon.trainer.parallel.device_group import DeviceGroup

from .together import WRITES_AT_ONCE, apart, together, train, write

KILLS = """
import os, signal
import torch
from ckptsurgeon.trainer import loop
from ckptsurgeon.trainer.parallel import ranks
from ckptsurgeon.trainer.state import checkpointing
from ckptsurgeon.trainer.state.optimizer import Optimizer
from ckptsurgeon.trainer.state.training_state import TrainingState

ranks.DETECTION_S = 1.0  # on one machine
WHERE = {
    "before the forward pass": (loop, "begin_step"), "in the forward pass": (loop, "_forward"),
    "before the backward pass": (loop.StepCounts, "of_all"), "in the backward pass": (torch.Tensor, "backward"),
    "in the sums": (loop.LossSums, "item_count"), "in the optimizer": (Optimizer, "step"),
    "in a save": (TrainingState, "state_dict"), "while it writes": (checkpointing, "_write_checkpoint"),
    "in an evaluation": (loop, "evaluate_shared"),
}

def killed_in(owner, name, call):
    real, calls = getattr(owner, name), []
    def counted(*args, **options):
        calls.append(1)
        if len(calls) == call:
            if name != "backward":
                os.kill(os.getpid(), signal.SIGKILL)
            args[0].register_hook(lambda gradient: os.kill(os.getpid(), signal.SIGKILL))
        return real(*args, **options)
    setattr(owner, name, staticmethod(counted) if name == "of_all" else counted)

def arm():
    # After what is before the first step, which calls some of these functions, too.
    rank, call, where = os.environ["KILL"].split(maxsplit=2)
    if os.environ["RANK"] == rank:
        killed_in(*WHERE[where], int(call))

real = loop.try_longest_batch
def tried(state):
    real(state)
    arm()
loop.try_longest_batch = tried
"""


def message(ended: Any) -> str:
    return " ".join(ended.err.split())


@pytest.mark.long
@pytest.mark.parametrize(
    ("kill", "saved"),
    [
        *(
            pytest.param(f"1 {kill}", saved, marks=pytest.mark.long)
            for kill, saved in (
                ("4 before the forward pass", 3),
                ("4 in the forward pass", 3),
                ("4 before the backward pass", 3),
                ("4 in the sums", 3),
                ("4 in the optimizer", 4),
                ("2 in a save", 4),
                ("1 in an evaluation", 3),
            )
        ),
        ("1 4 in the backward pass", 3),
        ("0 2 while it writes", 2),
    ],
)
def test_the_others_end_with_one_message_and_the_run_goes_on(kill: str, saved: int) -> None:
    write(save_every=2, evaluate_every=3)
    ended = train("toy.yaml", "--run", "run", KILL=kill, BEFORE=WRITES_AT_ONCE + KILLS)
    lost = int(kill[0])
    survivor = ended[1 - lost]
    assert [ended[lost].code, survivor.code] == [-9, 1], ended
    said = f"rank {lost} ended, without giving a reason; step {saved} is saved, and --resume goes on"
    assert message(survivor).count(said) == 1, survivor
    assert "Traceback" not in survivor.err
    folder = RunFolder("run")
    assert folder.last_step() == saved
    folder.load()  # which compares the checksums of its files
    assert train("--run", "run", "--resume", size=1)[0].code == 0
    assert train("toy.yaml", "--run", "one", size=1)[0].code == 0
    assert apart("one", "run") < 1e-5


@pytest.mark.long
def test_all_others_end_where_there_are_three() -> None:
    write(save_every=2)
    ended = train("toy.yaml", "--run", "run", size=3, KILL="2 4 in the backward pass", BEFORE=WRITES_AT_ONCE + KILLS)
    assert [one.code for one in ended] == [1, 1, -9], ended
    assert "rank 2 ended, without giving a reason; step 3 is saved" in message(ended[0])
    assert (ended[1].out, ended[1].err) == ("", "")


# What only NCCL does, a GPU that waits for ever, with a GPU that is played.


class Backend:
    def __init__(self) -> None:
        self.aborts = 0

    def abort(self) -> None:
        self.aborts += 1


def failing() -> bool:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_gpu_that_ends_its_work_is_read() -> None:
    answers = [False, False, True]
    backend = Backend()
    group = DeviceGroup(backend, lambda: answers.pop(0))
    group.begin()
    assert group.settle()
    assert (answers, backend.aborts) == ([], 1)


@pytest.mark.parametrize("is_idle", [lambda: False, failing])
def test_a_gpu_that_does_not_is_made_to(is_idle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_group, "GRACE_S", 0.1)
    backend = Backend()
    group = DeviceGroup(backend, is_idle)
    group.begin()
    assert not group.settle()
    assert not group.settle()
    assert backend.aborts == 1
    with pytest.raises(DistBackendError, match="was aborted: a rank has ended"):
        group.confirm()


def test_a_gpu_that_waits_for_nobody_is_left_alone() -> None:
    backend = Backend()
    group = DeviceGroup(backend, lambda: True)
    group.begin()
    group.confirm()
    group.give_up()
    assert backend.aborts == 0
    group.begin()
    group.give_up()
    assert backend.aborts == 1
    assert not group.settle()  # what it has now is not to be believed


PLAYED = """
import threading
from contextlib import contextmanager
from dataclasses import replace
from torch import distributed
from ckptsurgeon.trainer.parallel import device_group, watch
from ckptsurgeon.trainer.parallel.process_group import NEVER
from ckptsurgeon.trainer.run import train as running

device_group.GRACE_S = watch.GRACE_S = 0.2
aborted = threading.Event()

class Backend:
    def abort(self):
        print("aborted by", threading.current_thread().name, flush=True)
        aborted.set()

def is_idle():
    return True

@contextmanager
def played(env, device, real=running.process_group):
    with real(env, device) as made:
        group = distributed.new_group(backend="gloo", timeout=NEVER)
        yield replace(made, device=device_group.DeviceGroup(Backend(), lambda: is_idle()), watching=group)

running.process_group = played
"""
"""Each process has a group of GPUs that is played, beside gloo, which sums."""

HANGS = """
rows = loop.log_rows
def fetched(pending, *args, **options):
    if os.environ["RANK"] == "0" and pending[-1][0] == 4:
        aborted.wait()  # as .cpu() does behind a sum of which the other GPU has no part any more
    return rows(pending, *args, **options)
loop.log_rows = fetched
"""

BEHIND = """
is_idle = lambda: False  # the GPU has not done the last step, and never will
"""


@pytest.mark.long
def test_a_process_that_waits_for_its_gpu_is_freed_and_saves_nothing_of_that_step() -> None:
    write(save_every=3)
    before = WRITES_AT_ONCE + KILLS + PLAYED + HANGS
    ended = train("toy.yaml", "--run", "run", KILL="1 4 in the optimizer", BEFORE=before)
    assert [one.code for one in ended] == [1, -9], ended
    assert "aborted by watch of the ranks" in ended[0].out
    assert "rank 1 ended, without giving a reason; step 3 is saved, and --resume goes on" in message(ended[0])
    rows = [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3]


def test_one_that_notices_itself_gives_the_gpu_up_before_it_reads_it() -> None:
    write(save_every=3)
    before = WRITES_AT_ONCE + KILLS + PLAYED + BEHIND
    ended = train("toy.yaml", "--run", "run", KILL="1 5 in the forward pass", BEFORE=before)
    assert [one.code for one in ended] == [1, -9], ended
    assert "aborted by MainThread" in ended[0].out
    assert "step 3 is saved, and --resume goes on" in message(ended[0])


@pytest.mark.long
def test_the_watch_ends_with_the_run() -> None:
    write()
    ended = train(
        "toy.yaml", "--run", "run", BEFORE="\n".join(["from ckptsurgeon.trainer.parallel import ranks", PLAYED])
    )
    assert [one.code for one in ended] == [0, 0], ended
    assert "aborted" not in ended[0].out + ended[1].out


RING = """
import os, threading
import torch
from torch import distributed
from ckptsurgeon.trainer.parallel import watch
from ckptsurgeon.trainer.parallel.process_group import NEVER, process_group, read_torchrun_env

watch.GRACE_S = 0.1
with process_group(read_torchrun_env(os.environ), torch.device("cpu")) as ranks:
    freed = threading.Event()
    group = distributed.new_group(backend="gloo", timeout=NEVER)
    try:
        with watch.RankWatch(group, ranks.rank, ranks.size, freed.set):
            if ranks.rank == 1:
                if HOW == "killed":
                    os.kill(os.getpid(), 9)
                if HOW == "raises":
                    raise ValueError("enough")
            if HOW != "well":
                freed.wait()
    except ValueError:
        pass
    print("freed" if freed.is_set() else "not freed", flush=True)
"""


@pytest.mark.costly
@pytest.mark.parametrize(
    ("how", "said"),
    [("killed", ["freed", "", "freed", "freed"]), ("raises", ["freed", "not freed", "freed", "freed"]),
     ("well", ["not freed"] * 4)],
)  # fmt: skip
def test_each_of_four_hears_of_one_that_ends(how: str, said: list[str]) -> None:
    ended = together(f"HOW = {how!r}\n{RING}", size=4)
    assert [one.out.strip() for one in ended] == said, ended
    assert all(re.fullmatch("0|-9", str(one.code)) for one in ended)
    assert os.listdir()  # their output


DEAF = """
import os, signal
import torch
from torch import distributed
from ckptsurgeon.trainer.parallel import watch
from ckptsurgeon.trainer.parallel.process_group import NEVER, process_group, read_torchrun_env

watch.SEND_S = 0.2
with process_group(read_torchrun_env(os.environ), torch.device("cpu")) as ranks:
    group = distributed.new_group(backend="gloo", timeout=NEVER)
    signal.alarm(60)
    if ranks.rank == 0:
        watch.RankWatch(group, ranks.rank, ranks.size, print)._send(watch.BYE)
    with open("sent", "r" if ranks.rank else "w"):  # a pipe: each waits here for the other
        print("sent", flush=True)
    os._exit(0)
"""


@pytest.mark.long
def test_a_message_is_not_waited_for_if_the_next_process_never_takes_it() -> None:
    """As where that process dies while the message is sent, which gloo sometimes never notices."""
    os.mkfifo("sent")
    ended = together(DEAF)
    assert [(one.code, one.out.strip()) for one in ended] == [(0, "sent")] * 2, ended
