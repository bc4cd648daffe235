"""The tasks of Ray write what one process writes, also if a node dies. ``make test-ray`` runs all of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api import ray_tasks
from ckptsurgeon.engine import staged_output

from ..conftest import Result
from .sharded import SHARD, VERBS, files, transplant, write_sources


@pytest.fixture(autouse=True)
def inputs() -> None:
    write_sources()


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(cs.ConfigError, match=r"needs the package ray. Run pip install 'ckptsurgeon\[ray\]'"):
        cs.apply(transplant(), "out", max_shard_size=SHARD, engine="ray")
    assert not os.path.exists("out")


@pytest.mark.parametrize("engine", ["spark", "rays", "http://host"])
def test_another_engine_is_an_error(engine: str) -> None:
    with pytest.raises(cs.ConfigError, match="is unknown. Use ray, or ray://HOST:PORT"):
        cs.apply(transplant(), "out", max_shard_size=SHARD, engine=engine)


def test_ranks_without_their_format_are_named_as_without_an_engine() -> None:
    with pytest.raises(cs.ConfigError, match='ranks needs to="fsdp"') as alone:
        cs.apply(transplant(), "out", ranks=2)
    with pytest.raises(cs.ConfigError) as caught:
        cs.apply(transplant(), "out", ranks=2, engine="ray")
    assert str(caught.value) == str(alone.value)


def test_a_source_in_memory_is_an_error() -> None:
    with pytest.raises(cs.PlanError, match="Ray tasks cannot use a source in memory"):
        cs.apply(cs.convert(load_file("a.safetensors")), "out", max_shard_size=SHARD, engine="ray")


# On a cluster.


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of three nodes on this machine, each with one processor, and this process connected to it."""
    ray = pytest.importorskip("ray", reason="make test-ray installs it")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("verb", VERBS)
def test_tasks_write_what_one_process_writes(verb: str, cluster: Any) -> None:
    whole = cs.apply(VERBS[verb](), "whole", max_shard_size=SHARD)
    receipt = cs.apply(VERBS[verb](), "out", max_shard_size=SHARD, engine="ray")
    assert files("out") == files("whole")
    assert (receipt.notes, receipt.rounded, receipt.counts) == (whole.notes, whole.rounded, whole.counts)
    assert receipt.nbytes_written == whole.nbytes_written
    assert not [name for name in os.listdir() if ".ckpt-" in name]


@pytest.mark.timeout(600)
def test_a_node_that_dies_loses_nothing(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the nodes is killed when the first part is finished; others do its work again."""
    save_file({f"layers.{n}.weight": t for n, t in enumerate(load_file("a.safetensors").values())}, "more.safetensors")
    plan: Callable[[], cs.Plan] = lambda: cs.average(["a.safetensors", "b.safetensors", "more.safetensors"])  # noqa: E731
    cs.apply(plan(), "whole", max_shard_size=SHARD)
    killed: list[threading.Thread] = []
    add = staged_output.StagedOutput._add

    def added(output: staged_output.StagedOutput, receipt: Any) -> None:
        add(output, receipt)
        if not killed:
            node = cluster.add_node(num_cpus=1)
            others = [one for one in cluster.worker_nodes if one is not node]
            killed.append(threading.Thread(target=cluster.remove_node, args=(others[0], False)))
            killed[0].start()

    monkeypatch.setattr(staged_output.StagedOutput, "_add", added)
    cs.apply(plan(), "out", max_shard_size=SHARD, engine="ray")
    killed[0].join()
    assert files("out") == files("whole")


def dying_once(name: str, *, after: bool) -> Callable[..., Any]:
    """Return a task whose process is killed once: where it calls a function of ``part_worker``, or when that is done.

    Ray sends it to its processes by value, as it is no function of a module.
    """
    mark = os.path.abspath("died")

    def task(*args: Any) -> Any:
        from ckptsurgeon.api import ray_tasks
        from ckptsurgeon.engine import part_worker

        does = getattr(part_worker, name)

        def dying(*given: Any, **options: Any) -> Any:
            done = does(*given, **options) if after else None
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return done if after else does(*given, **options)

        setattr(part_worker, name, dying)
        try:
            return ray_tasks._write_part(*args)
        finally:
            setattr(part_worker, name, does)

    return task


@pytest.mark.timeout(600)
@pytest.mark.parametrize("over", [False, True], ids=["first", "over another"])
@pytest.mark.parametrize(
    ("name", "after"),
    [("lay_out", False), ("_wait_until_seen", True), ("write_parts", False), ("write_parts", True)],
    ids=["before it plans", "when it sees the folder", "before it writes", "when it has written"],
)
def test_a_task_whose_process_is_killed_is_done_again(
    name: str, after: bool, over: bool, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if over:
        cs.apply(VERBS["rename"](), "out", max_shard_size=SHARD)
    with monkeypatch.context() as patch:
        task = dying_once(name, after=after)
        write, remote = ray_tasks._write_part, ray_tasks.RayTasks.share_out

        def share_out(tasks: ray_tasks.RayTasks, *args: Any) -> Any:
            patch.setattr(ray_tasks, "_write_part", task)
            try:
                return remote(tasks, *args)
            finally:
                patch.setattr(ray_tasks, "_write_part", write)

        patch.setattr(ray_tasks.RayTasks, "share_out", share_out)
        cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD, engine="ray", force=over)
    assert os.path.exists("died")
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")
    assert not [name for name in os.listdir() if ".ckpt-" in name]


@pytest.mark.timeout(600)
def test_the_process_that_starts_the_tasks_is_killed_and_the_next_run_goes_on(cluster: Any) -> None:
    words = ["convert", "a.safetensors", "--dtype", "float64", "-o", "out", "--max-shard-size", SHARD]
    code = """
import os, signal, sys
from ckptsurgeon.cli import main
from ckptsurgeon.engine import staged_output
add = staged_output.StagedOutput._add
def added(output, receipt):
    add(output, receipt)
    os.kill(os.getpid(), signal.SIGKILL)
staged_output.StagedOutput._add = added
main(sys.argv[1:])
"""
    command = [sys.executable, "-c", code, *words, "--engine", "ray"]
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": cluster.address}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not os.path.exists("out")
    receipt = cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD, engine="ray")
    assert "continued an interrupted run: 1 of 5 parts" in receipt.notes[0]
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")
    assert not [name for name in os.listdir() if ".ckpt-" in name]


@pytest.mark.timeout(600)
def test_sources_of_another_folder_are_read_anew(cluster: Any) -> None:
    """The same command in two folders, whose files have the same names, sizes and times."""
    for number in range(2):
        os.mkdir(str(number))
        with chdir(str(number)):
            save_file({f"layers.{n}.weight": torch.full((300, 1000), number + 1.0) for n in range(5)}, "a.safetensors")
            os.utime("a.safetensors", ns=(10**18, 10**18))
            cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD, engine="ray")
            found = cs.open_checkpoint("out").tensor("layers.4.weight")
            assert (found == number + 1).all()


@pytest.mark.timeout(600)
def test_an_error_of_a_task_ends_all_and_the_next_run_goes_on(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link lies where a part is to be written: it cannot be removed, since it is a folder."""
    share = ray_tasks.RayTasks.share_out

    def in_the_way(tasks: ray_tasks.RayTasks, plan: str, folder: str, parts: Any) -> Any:
        (Path(folder) / parts[-1].name).mkdir()
        return share(tasks, plan, folder, parts)

    with monkeypatch.context() as patch:
        patch.setattr(ray_tasks.RayTasks, "share_out", in_the_way)
        with pytest.raises(cs.OutputError, match="a Ray task: cannot write"):
            cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD, engine="ray")
    assert not os.path.exists("out")
    cs.apply(VERBS["convert"](), "out", max_shard_size=SHARD, engine="ray")
    cs.apply(VERBS["convert"](), "whole", max_shard_size=SHARD)
    assert files("out") == files("whole")


@pytest.mark.timeout(600)
def test_sources_that_change_are_an_error(cluster: Any) -> None:
    plan = VERBS["convert"]()
    os.utime("a.safetensors", ns=(1, 1))
    with pytest.raises(cs.PlanError, match="has changed since its header was read"):
        cs.apply(plan, "out", max_shard_size=SHARD, engine="ray")


@pytest.mark.timeout(600)
def test_the_command_takes_an_engine(cluster: Any, ckpt: Callable[..., Result]) -> None:
    done = ckpt(
        "rename", "a.safetensors", "--map", "layers=blocks", "-o", "out/", "--max-shard-size", SHARD, "--engine", "ray"
    )
    assert done.code == 0, done.err
    assert cs.verify("out").ok
