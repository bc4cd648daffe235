"""Several processes write one output: its bytes are those of one process, and a process that fails ends all of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

import ckptsurgeon as cs
from ckptsurgeon.engine import part_worker, processes, staged_output
from ckptsurgeon.engine.apply_settings import MergeContext, memory_error
from ckptsurgeon.engine.compute import compute
from ckptsurgeon.engine.compute.reading import OutputBlock
from ckptsurgeon.engine.one_output_part import PartRun
from ckptsurgeon.engine.process_store import error_of, row_of
from ckptsurgeon.engine.processes import ProcessGroup, shared_out
from ckptsurgeon.storage.write.journal import JOURNAL
from ckptsurgeon.util.torchrun import cores_of_process, number_of_processes, rank_of_process

from ..helpers.forked import Forked, as_ckpt, forked_torchrun
from ..helpers.waiting import wait_until
from .sharded import SHARD, VERBS, files, transplant, write_sources

LOCAL = threading.local()


@pytest.fixture(autouse=True)
def inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    write_sources()
    monkeypatch.setattr(processes, "LOST_S", 5.0)
    monkeypatch.setattr(processes, "BYE_S", 2.0)


def together(
    number: int, plan: Callable[[], cs.Plan], monkeypatch: pytest.MonkeyPatch, store: Any = None, **options: Any
) -> list[Any]:
    """Apply a plan in so many threads that take themselves for processes; return what each gives or raises."""
    store, found = store or HashStore(), [None] * number  # type: ignore[var-annotated]
    plans = [plan() for _ in range(number)]

    @contextmanager
    def group() -> Iterator[ProcessGroup]:
        made = ProcessGroup(LOCAL.rank, number, store)
        made.join()
        with made.beating():
            yield made

    def run(rank: int) -> None:
        LOCAL.rank = rank
        try:
            how: dict[str, Any] = {"output": "out", "max_shard_size": SHARD, "processes": True}
            how |= options.get("of_each", {}).get(rank, options)
            found[rank] = cs.apply(plans[rank], **how)  # type: ignore[call-overload]
        except BaseException as error:
            found[rank] = error  # type: ignore[call-overload]

    monkeypatch.setattr(processes, "process_group", group)
    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.costly
@pytest.mark.parametrize("number", [1, 2, 4, 8])
@pytest.mark.parametrize("verb", VERBS)
def test_the_bytes_are_those_of_one_process(verb: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cs.apply(VERBS[verb](), "whole", max_shard_size=SHARD)
    first, *others = together(number, VERBS[verb], monkeypatch)
    assert isinstance(first, cs.Receipt), first
    assert files("out") == files("whole")
    assert (first.notes, first.rounded, first.counts) == (whole.notes, whole.rounded, whole.counts)
    assert (first.nbytes_read, first.nbytes_written) == (whole.nbytes_read, whole.nbytes_written)
    parts = len(list(Path("out").glob("*.safetensors")))
    assert sum(one.nbytes_written > 0 for one in others) == min(number, parts) - 1
    assert not [name for name in os.listdir() if ".ckpt-" in name]


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_parts_are_shared_out_by_their_bytes(number: int) -> None:
    class Layout:
        def __init__(self, size: int) -> None:
            self.size = size

    class Part:
        def __init__(self, name: str, size: int) -> None:
            self.name, self.layout = name, Layout(size)

    parts: list[Any] = [Part(f"{place:02}", 5 + place * 7 % 13) for place in range(40)]
    shares = shared_out(parts, number)
    assert sorted(part.name for share in shares for part in share) == [part.name for part in parts]
    assert all([part.name for part in share] == sorted(part.name for part in share) for share in shares)
    sizes = [sum(part.layout.size for part in share) for share in shares]
    assert max(sizes) - min(sizes) <= 5 + 12
    assert number < 8 or max(sizes) <= 0.16 * sum(sizes)


@pytest.mark.costly
@pytest.mark.parametrize("output", ["out", "out.safetensors", "out.pth"])
def test_one_file_is_written_by_the_first(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = together(2, VERBS["rename"], monkeypatch, output=output, max_shard_size=None)
    assert (first.nbytes_written > 0, second.nbytes_written) == (True, 0)
    assert cs.verify(output).ok


@pytest.mark.long
def test_the_parts_of_others_count_in_the_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    alone: list[tuple[int, int]] = []
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD, progress=lambda *pair: alone.append(pair))
    first = {"progress": lambda *pair: seen.append(pair)}
    together(2, VERBS["convert"], monkeypatch, of_each={0: first, 1: {}})
    assert max(seen) == max(alone)


def failing(at: str, error: BaseException, monkeypatch: pytest.MonkeyPatch, after: int = 0) -> None:
    """Make a process, "first" or "other", fail when so many of its parts are finished, and one more has its tensors."""
    done: list[PartRun] = []
    owner: Any = part_worker if at == "other" else __import__("ckptsurgeon.engine.staged_output", fromlist=["x"])
    write = owner.write_frame

    def frame(run: PartRun) -> None:
        if (LOCAL.rank == 0) == (at == "first"):
            if len(done) == after:
                raise error
            done.append(run)
        write(run)

    monkeypatch.setattr(owner, "write_frame", frame)


@pytest.mark.costly
@pytest.mark.parametrize(
    "error", [cs.OutputError("no space.", hint="Make some."), MemoryError("none"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("at", ["first", "other"])
def test_a_process_that_fails_ends_all(at: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing(at, error, patch)
        found = together(2, transplant, patch)
    mine, its = found if at == "first" else reversed(found)
    assert type(mine) is type(error)
    assert isinstance(its, cs.OutputError)
    said = "it was stopped" if isinstance(error, KeyboardInterrupt) else "no space"
    said = "there is not enough memory" if isinstance(error, MemoryError) else said
    assert f"process {'0' if at == 'first' else '1'}: {said}" in its.message
    assert not os.path.exists("out")
    cs.apply(transplant(), "out", max_shard_size=SHARD)
    assert cs.verify("out").ok


@pytest.mark.long
def test_a_folder_that_is_gone_is_explained_by_the_error_of_the_first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process removes the folder before it says why; the other may notice that first."""
    with monkeypatch.context() as patch:
        patch.setattr(ProcessGroup, "check", lambda self: None)
        patch.setattr(part_worker, "SEEN_S", 0.5)
        failing("first", cs.OutputError("no space.", hint="Make some."), patch)
        _, its = together(2, transplant, patch)
    assert isinstance(its, cs.OutputError)
    assert "process 0: no space" in its.message


def test_other_plans_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = iter([transplant, VERBS["rename"]])
    first, second = together(2, lambda: next(plans)(), monkeypatch)
    assert isinstance(second, cs.OutputError)
    assert "its plan or its options differ from those of the first process" in second.message
    assert isinstance(first, cs.OutputError)


def test_other_options_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {0: {"max_shard_size": "2MB"}, 1: {"max_shard_size": "3MB"}}
    found = together(2, VERBS["convert"], monkeypatch, of_each=sizes)
    assert all("its plan or its options differ from those of the first process" in one.message for one in found)


def test_an_output_that_exists_is_an_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    cs.apply(transplant(), "out", max_shard_size=SHARD)
    before = files("out")
    first, second = together(2, transplant, monkeypatch)
    assert isinstance(first, cs.OutputError)
    assert isinstance(second, cs.OutputError)
    assert "holds a checkpoint" in second.message
    assert files("out") == before
    assert isinstance(together(2, transplant, monkeypatch, force=True)[0], cs.Receipt)


@pytest.mark.costly
@pytest.mark.parametrize("error", [cs.OutputError("no space."), MemoryError(), KeyboardInterrupt(), OSError(5, "x")])
def test_another_number_of_processes_goes_on(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        failing("other", error, patch, after=1)
        assert "The finished parts are kept" in together(2, VERBS["convert"], patch)[0].hint
    (left,) = [name for name in os.listdir() if ".ckpt-tmp" in name]
    done = len((Path(left) / JOURNAL).read_bytes().splitlines()) - 1
    receipt = together(3, VERBS["convert"], monkeypatch)[0]
    assert f"continued an interrupted run: {done} of 5 parts" in receipt.notes[0]
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


def test_a_process_without_signs_of_life_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

        def sleep(self, seconds: float) -> None:
            self.now += seconds

    clock, store = Clock(), HashStore()
    monkeypatch.setattr(processes, "time", clock)
    first, other = ProcessGroup(0, 2, store), ProcessGroup(1, 2, store)
    with first.beating(), other.beating():
        wait_until(lambda: store.check(["alive 0", "alive 1"]))
    for now, lost in ((0.0, False), (4.9, False), (5.1, True)):
        clock.now = now
        for check in (lambda: list(first.receipts()), other.check):
            with pytest.raises(cs.OutputError, match="has not responded for 5 s") if lost else nullcontext():
                check()


def test_a_process_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WAIT_S", 0.2)
    with pytest.raises(cs.ConfigError, match="of 3 processes, process 1, process 2 did not join within 0 s") as caught:
        ProcessGroup(0, 3, HashStore()).join()
    assert "unset RANK and WORLD_SIZE" in caught.value.hint
    with pytest.raises(cs.ConfigError, match="process 0, which waits for all 3 processes, did not answer within 0 s"):
        ProcessGroup(2, 3, HashStore()).join()


def test_an_error_of_another_process_keeps_its_class() -> None:
    found = error_of(row_of(memory_error("a tensor takes 2 GB of memory.", 2 << 30)), "process 1")
    assert type(found) is cs.PlanError
    assert found.message == "process 1: a tensor takes 2 GB of memory."


def test_a_process_that_waits_for_another_is_not_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "WAIT_S", 0.2)
    store = HashStore()
    store.set("here 1", '["0123"]')
    with pytest.raises(cs.ConfigError, match="of 3 processes, process 2 did not join within 0 s"):
        ProcessGroup(0, 3, store).join()


@pytest.mark.long
def test_what_processes_said_before_they_were_started_again_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun keeps its store: what a failed attempt left there must not be taken for this one's."""
    store = HashStore()
    for _ in range(3):
        with monkeypatch.context() as patch:
            failing("other", cs.OutputError("no space."), patch)
            assert "process 1: no space." in together(2, VERBS["convert"], patch, store=store, restart=True)[0].message
    assert isinstance(together(2, VERBS["convert"], monkeypatch, store=store)[0], cs.Receipt)
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


@pytest.mark.parametrize(
    ("environment", "rank", "size"),
    [
        ({}, 0, 1),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1, 2),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 0, 1),
        ({"RANK": "x", "WORLD_SIZE": "2"}, 0, 1),
        ({"WORLD_SIZE": "2"}, 0, 1),
    ],
)
def test_the_environment_says_which_process_this_is(
    environment: dict[str, str], rank: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (rank_of_process(), number_of_processes()) == (rank, size)


@pytest.mark.parametrize(
    ("environment", "cores"),
    [
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}, 4),
        ({}, 8),
        ({"RANK": "1", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3"}, 2),
        ({"RANK": "1", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "16"}, 1),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 8),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "0"}, 8),
        ({"LOCAL_WORLD_SIZE": "2"}, 8),
    ],
)
def test_processes_of_a_machine_share_its_cores(
    environment: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cores_of_process() == cores


def test_cores_to_which_a_process_is_bound_are_not_divided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {4, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    assert cores_of_process() == 2


def test_the_number_of_threads_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of Ray has one core, though its process sees all of them."""
    plan = cs.convert("a.safetensors", dtype="float64")
    step, places = plan.steps[0], [OutputBlock(0, 0, ((0, 1),))] * 4
    monkeypatch.setattr(compute, "THREADS", 8)
    assert [compute.threads_of(step, places, MergeContext(threads=number)) for number in (0, 1, 3)] == [8, 1, 3]


@pytest.mark.costly
@pytest.mark.parametrize("is_begun_anew", [True, False])
def test_a_file_of_another_process_that_was_replaced_is_an_error(
    monkeypatch: pytest.MonkeyPatch, *, is_begun_anew: bool
) -> None:
    """A process of an earlier run, which was taken for dead, removes a finished part and begins it anew."""
    take, replaced = staged_output.StagedOutput._take, []

    def taken(output: Any, receipt: Any, folder: Any) -> bool:
        there = take(output, receipt, folder)
        if not replaced:
            path = Path(folder.path) / receipt.name
            size = path.stat().st_size
            path.unlink()
            if is_begun_anew:
                path.write_bytes(bytes(size))
            replaced.append(receipt.name)
        return there

    monkeypatch.setattr(staged_output.StagedOutput, "_take", taken)
    first, second = together(2, VERBS["convert"], monkeypatch)
    assert isinstance(first, cs.OutputError), first
    assert f"out/{replaced[0]} was replaced after it was written: another process writes it" in first.message
    assert isinstance(second, cs.OutputError), second
    assert not os.path.exists("out")
    assert not [name for name in os.listdir() if ".ckpt-" in name]


# Real processes.

WORDS = ["convert", "a.safetensors", "--dtype", "float64", "-o", "out", "--max-shard-size", SHARD]


def torchrun(number: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(number), "-m", "ckptsurgeon"]
    return subprocess.run([*command, *words], capture_output=True, text=True, env=environment(), timeout=300)


def convert() -> int:
    """Write as ckpt does."""
    return as_ckpt(*WORDS)


def torchrun_forked(number: int, *options: str, work: Callable[[], int] = convert) -> Forked:
    words = ["--nproc-per-node", str(number), *options, "-m", "ckptsurgeon"]
    return forked_torchrun(words, work, environment=environment())


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


@pytest.mark.long
def test_torchrun_writes_what_one_process_writes() -> None:
    done = torchrun(2, *WORDS, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "ckpt.receipt"  # one answer, of the first process
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


@pytest.mark.long
def test_what_processes_of_torchrun_draw_is_what_one_process_draws() -> None:
    words = ["transplant", "a.safetensors", "dst.yaml", "--exclude", "layers.1", *WORDS[4:]]
    done = torchrun_forked(3, work=lambda: as_ckpt(*words, "--json"))
    assert done.ended() == 0, done.err
    assert json.loads(done.out)["kind"] == "ckpt.receipt"
    cs.apply(transplant(), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


ALONE = {
    "lora extract": "lora extract a.safetensors b.safetensors --rank 4 -o {}/",
    "lora concat": "lora concat adapter adapter -o {}/",
    "lora resize": "lora resize adapter --rank 2 -o {}/",
    "to fsdp": "convert a.safetensors --to fsdp --ranks 2 -o {}/",
    "to tp": "convert a.safetensors --to tp --ranks 2 --axis **=0 -o {}/",
    "to dcp": "convert a.safetensors --to dcp -o {}/",
    "one file": "average a.safetensors b.safetensors -o {}.safetensors",
    "windows": "average a.safetensors b.safetensors c.safetensors --window 2 -o {}/",
    "patch make": "patch make a.safetensors b.safetensors -o {}.ckptpatch",
    "patch apply": "patch apply a.safetensors ab.ckptpatch -o {}.safetensors",
    "in place": "rename in-{}.safetensors --in-place --map layers=blocks",
    "recipe for ranks": "apply ranks.yaml -o {}/",
    "view": "view a.safetensors -o {}.html",
    "init": "init a.safetensors -o {}.yaml",
    "match": "match a.safetensors renamed.safetensors -o {}.yaml",
    "fetch": "fetch a.safetensors --dir {}",
    "search": "search search.yaml --evaluate 'PYTHON judge.py {{model}}' --maximize --trials 3 --sampler sobol -o {}.safetensors",
    "greedy": "average a.safetensors b.safetensors --greedy --evaluate 'PYTHON judge.py {{model}}' --maximize -o {}.safetensors",
}
"""Commands whose output is not shared out, or is a single file."""
NAMES = "one-process", "two-processes"

JUDGE = """import os, sys
assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & set(os.environ)
from safetensors.numpy import load_file
print(sum(float(abs(w).mean()) for w in load_file(sys.argv[1]).values()))
"""
SEARCHED = """
merge_method: linear
models:
  - {model: b.safetensors, parameters: {weight: {search: [0, 1]}}}
  - {model: c.safetensors, parameters: {weight: 1}}
"""


def write_arguments() -> None:
    """Write what the commands in ``ALONE`` need, besides the sources."""
    cs.make_patch("a.safetensors", "b.safetensors", "ab.ckptpatch")
    for name in NAMES:
        Path(f"in-{name}.safetensors").write_bytes(Path("a.safetensors").read_bytes())
    cs.apply(VERBS["rename"](), "renamed.safetensors")
    Path("ranks.yaml").write_text("verb: convert\nsource: a.safetensors\nto: fsdp\nranks: 2\n")
    Path("judge.py").write_text(JUDGE)
    Path("search.yaml").write_text(SEARCHED)


@pytest.mark.long
@pytest.mark.parametrize("what", ALONE)
def test_the_first_process_writes_what_is_not_shared_out(what: str) -> None:
    write_arguments()
    alone = Forked(lambda: as_ckpt(*words_of(what, NAMES[0])), environment=environment())
    assert alone.ended() == 0, alone.err
    done = torchrun_forked(2, work=lambda: as_ckpt(*words_of(what, NAMES[1]), "--json"))
    assert done.ended() == 0, done.err
    json.loads(done.out)  # one answer, of the first process
    assert written_by(NAMES[1]) == written_by(NAMES[0]) != {}


def words_of(what: str, name: str) -> list[str]:
    return shlex.split(ALONE[what].format(name).replace("PYTHON", sys.executable))


def written_by(name: str) -> dict[str, bytes]:
    """Return the bytes of all files of an output; texts and file names may have the name of the output in them.

    Left out are the log of a search and the record of new names, which have times, and the record of a download.
    """
    found: dict[str, bytes] = {}
    for path in sorted(Path().rglob("*")):
        logs = ".study" in str(path) or path.name.startswith(".") or path.name.endswith(".rename.json")
        if path.is_file() and name in str(path) and not logs:
            data = path.read_bytes()
            found[str(path).replace(name, "")] = data.replace(name.encode(), b"") if path.suffix == ".yaml" else data
    return found


@pytest.mark.long
def test_an_error_of_the_first_process_ends_all() -> None:
    done = torchrun_forked(2, work=lambda: as_ckpt("patch", "make", "a.safetensors", "none.safetensors", "-o", "p"))
    assert done.ended() != 0
    assert "none.safetensors does not exist" in done.err
    assert not os.path.exists("p")


@pytest.mark.long
def test_torchrun_says_that_an_output_exists() -> None:
    cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD)
    done = torchrun_forked(2)
    assert done.ended() != 0
    assert re.search("^error: (process 0: )?out holds a checkpoint", done.err, re.M), (
        done.err
    )  # torchrun ends one first


@pytest.mark.long
def test_torchrun_starts_the_processes_again() -> None:
    """One process is killed once, when it has finished a part; torchrun starts both again, and they go on."""

    def dying() -> int:
        write = part_worker.write_frame

        def written(run: PartRun) -> None:
            write(run)
            if not os.path.exists("died"):
                open("died", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)

        part_worker.write_frame = written
        return convert()

    done = torchrun_forked(2, "--max-restarts", "3", work=dying)
    assert done.ended() == 0, done.err
    assert os.path.exists("died")
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


def pausing(after: int) -> int:
    """Write as ckpt does, but for ever at the end of one part, after so many others."""
    processes.LOST_S, processes.BEAT_S, processes.BYE_S = 4.0, 0.2, 1.0
    left = [after]

    def later(run: PartRun, write: Callable[[PartRun], None]) -> None:
        if not left[0]:
            open("paused", "w").close()
            signal.pause()
        left[0] -= 1
        write(run)

    for module in (part_worker, staged_output):
        module.write_frame = partial(later, write=module.write_frame)
    return convert()


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
@pytest.mark.parametrize("parts", [0, 1])
def test_a_process_that_is_killed_ends_the_others_and_the_next_run_goes_on(killed: int, parts: int) -> None:
    """The processes are started by hand: torchrun would end the others itself."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        Forked(partial(pausing, parts if rank == killed else 9), environment=environment(RANK=str(rank), **address))
        for rank in range(2)
    ]
    wait_until(lambda: os.path.exists("paused"))
    started[killed].kill()
    codes = [one.ended() for one in started]
    said = started[1 - killed].err
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 5, said
    assert "Traceback" not in said
    assert "has not responded" in said or "the first process or its torchrun has stopped" in said
    assert not os.path.exists("out")
    found = [Path(name) / JOURNAL for name in os.listdir() if ".ckpt-tmp" in name]
    done = sum(len(path.read_bytes().splitlines()) - 1 for path in found if path.exists())
    assert done >= parts
    receipt = cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD)
    assert any("continued an interrupted run" in note for note in receipt.notes) == (done > 0)
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


def test_an_address_is_written_by_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        cs.ConfigError, match="several processes are not possible for the output at memory://bucket/out"
    ):
        raise together(2, VERBS["convert"], monkeypatch, output="memory://bucket/out")[0]
