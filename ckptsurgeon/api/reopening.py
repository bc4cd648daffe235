"""Opening the inputs of a plan again, which must be what it was made from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import CheckpointError, ConfigError, PlanError, SourceError
from ..jsontext import read_json
from ..plan import Plan, PlanSource
from ..target import TargetSpec
from ..text import escape
from .inputs import OpenInputs, file_print
from .operating import operate
from .types import Path

if TYPE_CHECKING:
    from ..engine import Inputs
    from ..merges import Method

__all__ = ["find_sources", "inputs_of", "read_plan", "with_merging"]


def read_plan(path: Path) -> Plan:
    """Return the plan in a file; raises SourceError or ConfigError."""
    try:
        with open(path, encoding="utf-8") as file:
            data = read_json(file.read())
    except OSError as error:
        raise SourceError(f"the plan {escape(os.fspath(path))} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"the plan {escape(os.fspath(path))} is no JSON: {error}.") from error
    return Plan.from_json(data)


def inputs_of(plan: Plan) -> Inputs:
    """Return the open inputs of a plan; raises PlanError where one is no longer what was planned with."""
    from ..configs import load_target
    from ..engine import Inputs

    if isinstance(plan.inputs, OpenInputs) and all(_is_open(source) for source in plan.inputs.sources):
        return Inputs(plan.inputs.sources, plan.inputs.target, _keeper(plan, plan.inputs.sources))
    if any(source.role == "destination" and not source.path for source in plan.sources):
        raise PlanError("the plan is for a live module and cannot be written.", hint="Use load_into.")
    opened: list[Checkpoint] = []
    try:
        for source in plan.sources:
            opened.append(_reopen(source))
            _check_prints(source, opened[-1])
        for file in plan.target.files:
            now = file_print(file.name)
            if (now.size, now.sha256) != (file.size, file.sha256):
                raise PlanError(f"{escape(file.name)} has changed since the plan.", hint="Plan again.")
        keeper = _keeper(plan, opened)
        draws = keeper is None and any(step.draws for step in plan.steps)
        target = load_target(plan.target.config) if draws else None
        _check_target(plan, target)
    except BaseException:
        for checkpoint in opened:
            checkpoint.close()
        raise
    return Inputs(tuple(opened), target, keeper)


def with_merging(inputs: Inputs, plan: Plan, *, plugins: tuple[Method, ...] = (), memory: int = 0) -> Inputs:
    """Return inputs with merge methods and bytes of memory: as given here, else as when the plan was made."""
    if isinstance(plan.inputs, OpenInputs):
        plugins, memory = plugins or plan.inputs.plugins, memory or plan.inputs.memory
    return replace(inputs, plugins=plugins, memory=memory or inputs.memory)


def _keeper(plan: Plan, opened: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint whose own values the destination keeps."""
    return next((opened[i] for i, s in enumerate(plan.sources) if s.role == "destination" and i < len(opened)), None)


def _is_open(checkpoint: Checkpoint) -> bool:
    return all((file.fileno() or 0) >= 0 for file in checkpoint.open_files().values())


def _reopen(source: PlanSource) -> Checkpoint:
    root = source.root or "."
    checkpoint = open_checkpoint(source.path, root, unwrap=False).unwrapped(stripped=source.stripped)
    try:
        return operate([checkpoint], source.operations)[0].checkpoint
    except BaseException:
        checkpoint.close()
        raise


def _check_prints(source: PlanSource, checkpoint: Checkpoint) -> None:
    now = {file.name: file for file in checkpoint.files}
    for file in source.files:
        found = now.get(file.name)
        same = found is not None and (found.size, found.sha256) == (file.size, file.sha256)
        if not same or (file.mtime_ns is not None and found is not None and found.mtime_ns != file.mtime_ns):
            raise PlanError(
                f"{escape(os.path.join(source.path, file.name).rstrip('/'))} has changed since the plan.",
                hint="Plan again.",
            )


def _check_target(plan: Plan, target: TargetSpec | None) -> None:
    for step in plan.steps if target is not None else ():
        wanted = target.tensors.get(step.key) if target is not None else None
        if step.draws and (wanted is None or wanted.shape != step.shape):
            raise PlanError(
                f"{escape(plan.target.config)} no longer has {escape(step.key)} as it was planned.",
                hint="Plan again.",
            )


def find_sources(
    sources: Sequence[PlanSource], folder: str, moved: Mapping[str, Path], stack: ExitStack
) -> tuple[dict[int, Checkpoint], dict[int, str]]:
    """Open the sources that can be found and are the same; for the others, say why not."""
    names = {source.name for source in sources}
    for name in moved:
        if name not in names:
            raise ConfigError(
                f"--source {escape(name)}: the output has no such source.",
                hint=f"It has {', '.join(sorted(names))}.",
            )
    found: dict[int, Checkpoint] = {}
    absent: dict[int, str] = {}
    for index, source in enumerate(sources):
        if "://" in source.path and source.name not in moved:  # what a file names is fetched only if its user names it
            absent[index] = f"{source.name} is far away; --source '{source.name}={source.path}' fetches it"
            continue
        path = os.fspath(moved[source.name]) if source.name in moved else os.path.join(folder, source.path)
        try:
            checkpoint = stack.enter_context(_reopen(replace(source, path=path)))
            _check_prints(replace(source, path=path), checkpoint)
        except SourceError:
            if source.name in moved:
                raise
            absent[index] = f"{source.name} is not where it was ({source.path})"
        except CheckpointError as error:
            absent[index] = f"{source.name} is another file now: {error.message.rstrip('.')}"
        else:
            found[index] = checkpoint
    return found, absent
