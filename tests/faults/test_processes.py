"""Several processes that write one output: one is killed at each phase, the clock jumps, files are seen late."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

import ckptsurgeon as cs
from ckptsurgeon.engine import part_worker, processes, staged_output
from ckptsurgeon.engine.processes import ProcessGroup
from ckptsurgeon.storage.write import folders
from ckptsurgeon.storage.write.folders import StagedFolder

from ..engine.sharded import SHARD, files, write_sources
from ..helpers.forked import Forked, as_ckpt
from ..helpers.waiting import wait_until
from ..promises.clauses import PROCESSES, clause

pytestmark = clause(PROCESSES)

NUMBER = 2
WORDS = ("convert", "a.safetensors", "--dtype", "float64", "-o", "out", "--max-shard-size", SHARD)
LOST = ("has not responded", "the first process or its torchrun has stopped")


@pytest.fixture(autouse=True)
def inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources()
    monkeypatch.setattr(processes, "LOST_S", 4.0)
    monkeypatch.setattr(processes, "BEAT_S", 0.2)
    monkeypatch.setattr(processes, "BYE_S", 1.0)
    monkeypatch.setattr(processes, "WAIT_S", 30.0)


def converted(dtype: str = "float64") -> cs.Plan:
    return cs.convert("a.safetensors", dtype=dtype)


def bytes_of(dtype: str) -> dict[str, bytes]:
    cs.apply(converted(dtype), f"whole-{dtype}", max_shard_size=SHARD)
    return files(f"whole-{dtype}")


def address() -> dict[str, str]:
    """Where processes that are started by hand find each other: torchrun would end the others itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {"WORLD_SIZE": str(NUMBER), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}


def started(of_each: Callable[[int], int]) -> list[Forked]:
    """Start the processes; each does what is returned for its number."""
    where = address()
    return [
        Forked(partial(of_each, rank), environment={**os.environ, **where, "RANK": str(rank)}) for rank in range(NUMBER)
    ]


def dying(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_before(owner: Any, name: str) -> None:
    setattr(owner, name, dying)


def dies_after(owner: Any, name: str) -> None:
    does = getattr(owner, name)

    def then_dying(*args: Any, **options: Any) -> None:
        does(*args, **options)
        dying()

    setattr(owner, name, then_dying)


PHASES: dict[str, tuple[int, Callable[[], None]]] = {
    "the first before it shares out": (0, lambda: dies_before(ProcessGroup, "share_out")),
    "the first when it has shared out": (0, lambda: dies_after(ProcessGroup, "share_out")),
    "the first while it waits for others": (0, lambda: dies_before(staged_output.StagedOutput, "wait_for_others")),
    "the first before it publishes": (0, lambda: dies_before(folders, "place_folder")),
    "the first before it says that it has published": (0, lambda: dies_before(ProcessGroup, "_end")),
    "another before it is assigned parts": (1, lambda: dies_before(ProcessGroup, "assignment")),
    "another before it writes": (1, lambda: dies_before(part_worker, "write_parts")),
    "another before it reports a part": (1, lambda: dies_before(ProcessGroup, "report")),
    "another when it has reported a part": (1, lambda: dies_after(ProcessGroup, "report")),
}


@pytest.mark.faults
@pytest.mark.parametrize("over", [False, True], ids=["first", "over another"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_process_killed_at_a_phase_leaves_the_old_or_the_new(phase: str, over: bool) -> None:
    old, new = bytes_of("float16") if over else None, bytes_of("float64")
    if over:
        cs.apply(converted("float16"), "out", max_shard_size=SHARD)
    killed, prepare = PHASES[phase]

    def of_each(rank: int) -> int:
        if rank == killed:
            prepare()
        return as_ckpt(*WORDS, *(["--force"] if over else []))

    both = started(of_each)
    codes = [one.ended() for one in both]
    said = both[1 - killed].err
    assert codes[killed] == -signal.SIGKILL, both[killed].err
    assert codes[1 - killed] == 5, said
    assert any(why in said for why in LOST), said
    assert "Traceback" not in said
    found = files("out") if os.path.exists("out") else None
    assert found == (new if "has published" in phase else old)
    cs.apply(converted(), "out", max_shard_size=SHARD, force=True)
    assert files("out") == new
    assert not [name for name in os.listdir() if ".ckpt-" in name]


@pytest.mark.faults
def test_a_process_killed_when_all_its_parts_are_reported_is_not_missed() -> None:
    def of_each(rank: int) -> int:
        if rank:
            dies_before(ProcessGroup, "wait_for_end")
        return as_ckpt(*WORDS)

    first, other = started(of_each)
    assert (first.ended(), other.ended()) == (0, -signal.SIGKILL), first.err
    assert files("out") == bytes_of("float64")


@pytest.mark.faults
def test_two_groups_of_processes_write_one_output() -> None:
    """One group has the lock until the other has said that it cannot have it."""

    def of_each(rank: int, group: str) -> int:
        if group == "holds" and not rank:
            publish = folders.place_folder

            def later(*args: Any) -> None:
                open("holds", "w").close()
                wait_until(lambda: os.path.exists("refused"))
                publish(*args)

            folders.place_folder = later
        return as_ckpt(*WORDS)

    holding = started(partial(of_each, group="holds"))
    wait_until(lambda: os.path.exists("holds"))
    refused = started(partial(of_each, group="refused"))
    assert [one.ended() for one in refused] == [5, 5], [one.err for one in refused]
    assert all("is being written by process" in one.err and "Traceback" not in one.err for one in refused), [
        one.err for one in refused
    ]
    open("refused", "w").close()
    assert [one.ended() for one in holding] == [0, 0], [one.err for one in holding]
    assert files("out") == bytes_of("float64")
    assert not [name for name in os.listdir() if ".ckpt-" in name]


# In threads that take themselves for processes.

LOCAL = threading.local()


def together(monkeypatch: pytest.MonkeyPatch, output: str = "out") -> list[Any]:
    """Write the output in two threads; return what each gives or raises."""
    store, found = HashStore(), [None] * NUMBER  # type: ignore[var-annotated]
    plans = [converted() for _ in range(NUMBER)]

    @contextmanager
    def group() -> Iterator[ProcessGroup]:
        made = ProcessGroup(LOCAL.rank, NUMBER, store)
        made.join()
        with made.beating():
            yield made

    def run(rank: int) -> None:
        LOCAL.rank = rank
        try:
            found[rank] = cs.apply(plans[rank], output, max_shard_size=SHARD, processes=True)  # type: ignore[call-overload]
        except BaseException as error:
            found[rank] = error  # type: ignore[call-overload]

    monkeypatch.setattr(processes, "process_group", group)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(NUMBER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("jump", [86_400.0, -86_400.0], ids=["forward", "back"])
def test_a_clock_that_jumps_changes_nothing(jump: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that somebody reads the clock, it is another day."""
    now, days = time.time(), [0.0]

    def jumping() -> float:
        days[0] += jump
        return now + days[0]

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", lambda: int(jumping() * 1e9))
    first, _ = together(monkeypatch)
    assert isinstance(first, cs.Receipt), first
    assert 0 <= first.elapsed_s < 3600
    assert files("out") == bytes_of("float64")


def seen_late(monkeypatch: pytest.MonkeyPatch, looks: float) -> list[str]:
    """Let the first process see no file of others before it has looked so many times; return the names it looks for."""
    looked: list[str] = []
    find = StagedFolder.open_existing

    def late(folder: StagedFolder, name: str, size: int) -> Any:
        looked.append(name)
        return find(folder, name, size) if looked.count(name) > looks else None

    monkeypatch.setattr(StagedFolder, "open_existing", late)
    return looked


def test_a_part_that_is_seen_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = seen_late(monkeypatch, looks=3)
    first, _ = together(monkeypatch)
    assert isinstance(first, cs.Receipt), first
    assert len(looked) == 4 * len(set(looked)) > 0
    assert files("out") == bytes_of("float64")


def test_a_part_that_is_never_seen_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        seen_late(patch, looks=float("inf"))
        patch.setattr(staged_output, "SEEN_S", 0.2)
        first, other = together(patch)
    assert isinstance(first, cs.OutputError)
    assert "which another process has written, is incomplete when this process reads it" in first.message
    assert isinstance(other, cs.OutputError)
    assert not Path("out").exists()
    assert isinstance(together(monkeypatch)[0], cs.Receipt)
    assert files("out") == bytes_of("float64")


def test_a_folder_that_is_seen_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process sees the folder of the first only when it has looked for it a few times."""
    looks, found = [3], os.path.isdir

    def late(path: Any) -> bool:
        if getattr(LOCAL, "rank", 0) and ".ckpt-tmp" in str(path) and looks[0]:
            looks[0] -= 1
            return False
        return found(path)

    monkeypatch.setattr(part_worker.os.path, "isdir", late)
    first, other = together(monkeypatch)
    assert isinstance(first, cs.Receipt), first
    assert (looks, other.nbytes_written > 0) == ([0], True)
    assert files("out") == bytes_of("float64")
