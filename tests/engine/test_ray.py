"""The tasks of Ray write what one process writes, also if a node dies. ``make test-ray`` runs all of it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
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
    save_file({f"layers.{n}.weight": t for n, t in enumerate(load_file("a.safetensors").values())}, "more.safetensors")
    plan: Callable[[], cs.Plan] = lambda: cs.average(["a.safetensors", "b.safetensors", "more.safetensors"])  # noqa: E731
    cs.apply(plan(), "whole", max_shard_size=SHARD)
    killed.clear()
    cs.apply(plan(), "out", max_shard_size=SHARD, engine="ray")
    killed[0].join()
    assert files("out") == files("whole")


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
    with pytest.raises(cs.PlanError, match="has changed since the plan was made"):
        cs.apply(plan, "out", max_shard_size=SHARD, engine="ray")


@pytest.mark.timeout(600)
def test_the_command_takes_an_engine(cluster: Any, ckpt: Callable[..., Result]) -> None:
    done = ckpt(
        "rename", "a.safetensors", "--map", "layers=blocks", "-o", "out/", "--max-shard-size", SHARD, "--engine", "ray"
    )
    assert done.code == 0, done.err
    assert cs.verify("out").ok
