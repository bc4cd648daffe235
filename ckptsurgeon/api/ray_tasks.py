"""Writes the parts of an output as tasks of Ray, on the nodes of a cluster that share a file system.

https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html: Ray runs a task again, elsewhere, if its node dies.
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
"""How often a task is run again after its node or its process died."""
WAIT_S = 0.05
NAME = "ray"


class RayTasks:
    """The tasks that write the parts of one output; this process writes none of them, and publishes the output."""

    def __init__(self, ray: Any, plan: Plan, options: OutputOptions, memory: int) -> None:
        self._ray, self._options = ray, options
        self._work = ray.put((json.dumps(plan.to_json()), os.getcwd(), memory))
        self._tasks: list[Any] = []

    def share_out(self, identity: str, folder: str, parts: Sequence[OutputFile]) -> Sequence[OutputFile]:
        """Begin a task for each part, the largest first; return no parts: this process writes none."""
        task = self._ray.remote(max_retries=RETRIES, num_cpus=1)(_write_part)
        order = sorted(parts, key=lambda part: -part.layout.size)
        self._tasks = [task.remote(self._work, identity, self._options, folder, part.name) for part in order]
        return []

    def receipts(self) -> Iterator[PartReceipt]:
        """Yield the receipts that have come since the last call.

        Raises the error of a task that failed, and OutputError if its node died more often than it is retried.
        """
        if not self._tasks:
            return
        done, self._tasks = self._ray.wait(self._tasks, num_returns=len(self._tasks), timeout=WAIT_S)
        failed: list[CheckpointError] = []
        for task in done:  # what is finished counts, whatever failed beside it
            try:
                row, error = self._ray.get(task)
            except self._ray.exceptions.RayError as lost:
                why = escape(str(lost).strip().splitlines()[0], 200)
                failed.append(OutputError(f"a task of Ray was lost {RETRIES + 1} times: {why}."))
                continue
            if error is not None:
                failed.append(error_of(error, "a task of Ray"))
            else:
                yield PartReceipt.from_json(row)
        if failed:
            raise failed[0]

    def cancel(self) -> None:
        """End the tasks that are not done."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)


@contextmanager
def ray_tasks(engine: str, plan: Plan, inputs: PlanInputs, options: OutputOptions) -> Iterator[RayTasks]:
    """Connect to the cluster that ``engine`` names, ``ray`` or ``ray://HOST:PORT``, for one output.

    ``ray`` is the cluster that this machine belongs to, or that RAY_ADDRESS names; if there is none, one is started
    here. Raises ConfigError if Ray is not installed or cannot be reached, PlanError if a source is in memory.
    """
    if engine != NAME and not engine.startswith(f"{NAME}://"):
        raise ConfigError(f"--engine {escape(engine)} is unknown.", hint="Use ray, or ray://HOST:PORT.")
    if any(source.memory for source in plan.sources) or inputs.plugins:
        what = "a merge method of yours" if inputs.plugins else "a source in memory"
        raise PlanError(f"the tasks of Ray cannot use {what}.", hint="Leave --engine out.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send figures to its makers
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
            f"the cluster of Ray cannot be reached: {why}.", hint="Name it: --engine ray://HOST:10001."
        ) from error
    tasks = RayTasks(ray, plan, options, inputs.memory)
    try:
        yield tasks
    finally:
        tasks.cancel()
        if begun:
            ray.shutdown()


_WORKERS: dict[str, PartWorker] = {}
"""The output that this process of Ray works on: its plan is read, and its inputs opened, once for all of its parts."""


def _write_part(
    work: tuple[str, str, int], identity: str, options: OutputOptions, folder: str, name: str
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Write one part of an output, in a process of Ray; return its receipt and None, or None and an error."""
    text, place, memory = work
    receipts: list[PartReceipt] = []
    try:
        os.chdir(place)
        if identity not in _WORKERS:
            plan = Plan.from_json(json.loads(text))
            worker = PartWorker(plan, replace(inputs_of(plan), memory=memory), options)
            if worker.identity != identity:
                raise OutputError(
                    "its plan is not that of the first process: another version of ckptsurgeon runs there."
                )
            for earlier in _WORKERS.values():
                close_inputs(earlier.inputs)
            _WORKERS.clear()
            _WORKERS[identity] = worker
        _WORKERS[identity].write(folder, {name}, receipts.append)
    except Exception as error:
        return None, row_of(error)
    return receipts[0].to_json(), None
