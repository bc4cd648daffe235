"""Writes the parts of an output as Ray tasks, on the nodes of a cluster that share a file system.

If a node dies, Ray runs its tasks again on another node:
https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..engine.inputs import PlanInputs
from ..engine.output.layout import OutputFile, OutputOptions
from ..engine.part_receipt import PartReceipt
from ..engine.part_worker import PartWorker
from ..engine.process_store import error_of, row_of
from ..errors import CheckpointError, ConfigError, OutputError, PlanError
from ..planning.plan.plan import Plan
from ..util.text import escape
from .inputs.inputs import close_inputs
from .inputs.reopening import inputs_of

__all__ = ["RayTasks", "ray_tasks"]

RETRIES = 3
"""A task is run again at most this many times if its node or its process dies."""
CORES = 1
"""The cores, and threads, of a task: Ray runs as many tasks on a node as it has cores."""
WAIT_S = 0.05
END_S = 10.0
"""How many seconds to wait until cancelled tasks have ended."""
NAME = "ray"


class RayTasks:
    """The Ray tasks that write the parts of one output; this process only moves the finished output to its path."""

    def __init__(self, ray: Any, plan: Plan, options: OutputOptions, memory: int) -> None:
        self._ray, self._options = ray, options
        self._work = ray.put((json.dumps(plan.to_json()), os.getcwd(), memory))
        self._tasks: list[Any] = []

    def share_out(self, identity: str, folder: str, parts: Sequence[OutputFile]) -> Sequence[OutputFile]:
        """Start a task for each part, the largest first; return [], because this process writes no part itself.

        ``identity`` identifies the output, and ``folder`` is its temporary folder.
        """
        task = self._ray.remote(max_retries=RETRIES, num_cpus=CORES)(_write_part)
        order = sorted(parts, key=lambda part: -part.layout.size)
        self._tasks = [task.remote(self._work, identity, self._options, folder, part.name) for part in order]
        return []

    def receipts(self) -> Iterator[PartReceipt]:
        """Yield the receipts of the tasks that finished since the last call.

        Raises the error of a task that failed, or OutputError for a task that was lost ``RETRIES`` + 1 times.
        """
        if not self._tasks:
            return
        done, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=WAIT_S)
        failed: list[CheckpointError] = []
        for task in done:  # yield the receipts of all finished tasks before the error of a failed one is raised
            try:
                row, error = self._ray.get(task)
            except self._ray.exceptions.RayError as lost:
                why = escape(str(lost).strip().splitlines()[0], 200)
                failed.append(OutputError(f"a Ray task was lost {RETRIES + 1} times: {why}."))
                continue
            if error is not None:
                failed.append(error_of(error, "a Ray task"))
            else:
                yield PartReceipt.from_json(row)
        if failed:
            raise failed[0]

    def cancel(self) -> None:
        """Cancel the unfinished tasks, and wait until none of them writes: the next run may use their folder."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        if self._tasks:
            self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=END_S)


@contextmanager
def ray_tasks(engine: str, plan: Plan, inputs: PlanInputs, options: OutputOptions) -> Iterator[RayTasks]:
    """Connect to the Ray cluster ``engine`` for one output: ``ray`` or ``ray://HOST:PORT``.

    ``ray`` is the cluster at RAY_ADDRESS, or the cluster of this machine; if there is none, a local cluster is started.
    Raises ConfigError if Ray is not installed or the cluster cannot be reached, PlanError if a source is in memory or
    the plan uses a merge method of the user.
    """
    if engine != NAME and not engine.startswith(f"{NAME}://"):
        raise ConfigError(f"--engine {escape(engine)} is unknown.", hint="Use ray, or ray://HOST:PORT.")
    if any(source.memory for source in plan.sources) or inputs.plugins:
        what = "your own merge methods" if inputs.plugins else "a source in memory"
        raise PlanError(f"Ray tasks cannot use {what}.", hint="Leave --engine out.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # by default Ray sends usage statistics
    try:
        import ray
    except ImportError as error:
        raise ConfigError("--engine ray needs the package ray.", hint="Run pip install 'ckptsurgeon[ray]'.") from error
    begun = not ray.is_initialized()
    try:
        if begun:
            ray.init(engine if engine != NAME else None, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        why = escape(str(error).strip().splitlines()[0], 200)
        raise ConfigError(
            f"the Ray cluster cannot be reached: {why}.",
            hint="Give the address of the cluster: --engine ray://HOST:10001.",
        ) from error
    tasks = RayTasks(ray, plan, options, inputs.memory)
    try:
        yield tasks
    finally:
        tasks.cancel()
        if begun:
            ray.shutdown()


_WORKERS: dict[tuple[str, str, str], PartWorker] = {}
"""{(identity of the output that this Ray process writes, working directory, temporary folder): its worker}.

All parts share the worker's open inputs. The identity has only the relative paths, sizes and times of the sources, so
runs in two folders may have the same identity.
"""


def _write_part(
    work: tuple[str, str, int], identity: str, options: OutputOptions, folder: str, name: str
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Write one part of an output, in a Ray process; return (receipt, None), or (None, error) if it fails.

    ``work`` is the plan as JSON, the working directory and the memory limit in bytes. ``identity`` identifies the
    output, ``folder`` is its temporary folder, and ``name`` is the part's file name.
    """
    text, place, memory = work
    receipts: list[PartReceipt] = []
    try:
        os.chdir(place)
        if (of := (identity, place, folder)) not in _WORKERS:
            plan = Plan.from_json(json.loads(text))
            worker = PartWorker(plan, replace(inputs_of(plan), memory=memory, threads=CORES), options)
            if worker.identity != identity:
                raise OutputError(
                    "the plan of a Ray task differs from the plan of the process that started the task: the two run "
                    "different versions of ckptsurgeon.",
                    hint="Install the same version of ckptsurgeon on all machines of the cluster.",
                )
            for earlier in _WORKERS.values():
                close_inputs(earlier.inputs)
            _WORKERS.clear()
            _WORKERS[of] = worker
        _WORKERS[of].write(folder, {name}, receipts.append)
    except Exception as error:
        return None, row_of(error)
    return receipts[0].to_json(), None
