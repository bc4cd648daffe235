"""Tells whether two runs are the same, so that the second can continue, or write parts of, the output of the first."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..planning.plan.plan import Plan
from ..storage.read.local import ConsumedFile
from ..storage.small_files import open_file
from ..util.text import listing
from ..util.version import __version__
from .inputs import PlanInputs
from .output.layout import OutputOptions, OutputShape

__all__ = [
    "Difference",
    "changed_on_disk",
    "difference",
    "identity_digest",
    "identity_of",
    "is_known",
    "on_disk",
]


_OPTIONS = ("to", "max_shard_size", "consume")
"""The options of the output that a message names if their values differ between the two runs."""


def identity_of(plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape) -> dict[str, Any]:
    """Return everything that determines the output of a run, as plain data (JSON types)."""
    identity = {
        "ckptsurgeon": __version__,
        "verb": plan.verb,
        "sources": [source.to_json() for source in plan.sources],
        "target": [[one.name, one.size, one.sha256] for one in plan.target.files],
        "arguments": dict(plan.arguments),
        "to": options.to,
        "max_shard_size": options.max_shard_size,
        "consume": options.consume,
        "parts": len(shape.parts),
        "plugins": [_code_of(method.function) for method in inputs.plugins],
        "plan": plan.sha256_without_notes(),
    }
    return dict(json.loads(json.dumps(identity)))  # tuples become lists, as in a journal, so that they can be compared


def _code_of(function: Any) -> str:
    """Return the SHA-256 of the Python file that defines ``function``, a merge method of the user."""
    function = inspect.unwrap(function)
    with open_file(inspect.getfile(function)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity_digest(plan: Plan, inputs: PlanInputs, options: OutputOptions, shape: OutputShape) -> str:
    """Return a digest of everything that determines the output: runs with equal digests write the same output."""
    text = json.dumps(identity_of(plan, inputs, options, shape), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def on_disk(inputs: PlanInputs) -> list[list[int | str]]:
    """Return [inode, ctime, path] of every local source file; a different file may have the same size and mtime."""
    found: list[list[int | str]] = []
    for source in inputs.sources:
        for name, file in source.open_files().items():
            path = os.path.join(source.path, name) if name else source.path
            if isinstance(file, ConsumedFile):
                found.append([file.shard.inode, file.shard.ctime_ns, path])
            with file.descriptor() as fd:
                if fd is not None:
                    stat = os.fstat(fd)
                    found.append([stat.st_ino, stat.st_ctime_ns, path])
    return found


def changed_on_disk(recorded: Iterable[Sequence[int | str]]) -> list[str]:
    """Return the source files that have changed since ``on_disk`` returned ``recorded``; a missing file has not."""
    changed: dict[str, None] = {}
    for inode, ctime_ns, path in recorded:
        with suppress(OSError):
            found = os.stat(path)
            if (found.st_ino, found.st_ctime_ns) != (inode, ctime_ns):
                changed[str(path)] = None
    return list(changed)


def is_known(plan: Plan, inputs: PlanInputs) -> bool:
    """Return whether a later run can find out if the inputs have changed since this run.

    This is impossible for a source in memory, for an address whose server sends no version (such as an ETag), and for
    initial values that the user's code draws.
    """
    files = (file for source in plan.sources for file in source.files)
    draws = inputs.target is not None and bool(inputs.target.ran) and any(step.draws for step in plan.steps)
    return (
        not draws
        and not any(source.memory for source in plan.sources)
        and all(file.mtime_ns is not None or file.validator for file in files)
    )


class Difference(NamedTuple):
    """How a run differs from the run that began an output.

    ``why`` is the end of an error message. ``is_changed`` is true if the same command can no longer finish the output,
    because a file that it reads has changed since.
    """

    why: str
    is_changed: bool = False


def difference(begun: Mapping[str, Any], now: Mapping[str, Any]) -> Difference | None:
    """Return how this run differs from the run that began an output.

    Returns None if they do not differ, so that this run can continue the output. ``begun`` and ``now`` are the
    identities of the two runs: the results of ``identity_of``, with ``on_disk``.
    """
    begun = {name: begun.get(name) for name in now}
    if begun == now:
        return None
    if begun["ckptsurgeon"] != now["ckptsurgeon"]:
        return Difference(
            f": ckptsurgeon {begun['ckptsurgeon']!s:.40} has written them, but this is {now['ckptsurgeon']}"
        )
    if begun["verb"] != now["verb"]:
        return Difference(f": they belong to another command, ckpt {begun['verb']!s:.40}")
    with suppress(LookupError, TypeError, AttributeError):
        sources = {one["path"]: one for one in begun["sources"]}
        gone = [path for path in sources if path not in {one["path"] for one in now["sources"]}]
        if gone:
            return Difference(f": they are made from sources that this command does not have: {listing(gone)}")
        changed = [
            one["path"]
            for one in now["sources"]
            if [sources[one["path"]].get(name) for name in ("files", "beside")] != [one["files"], one.get("beside")]
        ]
        if changed:
            return Difference(f", and its sources have changed since then: {listing(changed)}", is_changed=True)
        were = {**begun["arguments"], **{name: begun[name] for name in _OPTIONS}}
        are = {**now["arguments"], **{name: now[name] for name in _OPTIONS}}
        options = [name for name in dict.fromkeys([*were, *are]) if were.get(name) != are.get(name)]
        if options:
            return Difference(
                f": they belong to a command with other values of these options: {listing(options, where='')}"
            )
        if touched := [new[2] for old, new in zip(begun["on_disk"], now["on_disk"], strict=False) if old != new]:
            paths = listing(list(dict.fromkeys(touched)))
            return Difference(f", and its sources have changed since then: {paths}", is_changed=True)
    changed = [name for name in ("target", "plugins") if begun[name] != now[name]]
    said = {"target": "the destination", "plugins": "the plugin"}
    if changed:
        return Difference(f", and {said[changed[0]]} has changed since then", is_changed=True)
    return Difference(": they belong to another plan")
