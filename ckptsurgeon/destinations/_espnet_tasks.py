"""Finds the ESPnet task of a configuration from the entries that ESPnet's task classes declare.

A configuration of ESPnet does not contain its task: in ESPnet the program that reads it determines the task.
``_espnet_tasks.json`` lists the entries, classes and model options of each task of ESPnet 202511, recorded from
ESPnet's own parsers (``make oracle-espnet``). A task fits if it declares all entries of a configuration. If several
tasks fit, the user must choose one, because the same entries build different models.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from ..util.text import brief_repr, escape, listing
from ._document import Document

__all__ = ["Task", "chosen_classes", "is_whole", "task_of", "tasks"]

_OF_TRAINING = {"loss", "losses", "criterions", "preprocessor", "util"}
"""Entries that choose a class which is not a part of the network."""
WHOLE = "required"
"""An entry that only configurations of training runs have; such a configuration has every entry of its task."""


@dataclass(frozen=True)
class Task:
    """A task of ESPnet: the class that builds its models, and the recorded entries, classes and options of its models.

    ``classes`` maps each entry that chooses a class, such as ``encoder``, to the class names that it accepts.
    ``model_conf`` has the options that the task's models accept; it is None if they accept any option.
    """

    name: str
    cls: str
    entries: frozenset[str]
    classes: Mapping[str, frozenset[str]]
    model_conf: frozenset[str] | None

    @property
    def module(self) -> str:
        """The Python module of ESPnet that has the task's class."""
        return f"espnet2.tasks.{self.name}"

    def lacks(self, entries: frozenset[str], values: Mapping[str, Any]) -> list[str]:
        """Return the parts of a configuration that the task does not have; [] if the configuration fits the task.

        These are the names in ``entries`` that the task does not declare. If it declares all of them, they are the
        classes and the options of the model in ``values``, the configuration, that the task does not have.
        """
        if others := sorted(entries - self.entries):
            return others
        options = values.get("model_conf")
        given = options if self.model_conf is not None and isinstance(options, dict) else {}
        wrong = [f"{name}: {values[name]}" for name in sorted(entries) if not self._has(name, values[name])]
        return [*wrong, *(f"model_conf: {name}" for name in given if name not in (self.model_conf or ()))]

    def _has(self, entry: str, chosen: object) -> bool:
        names = self.classes.get(entry)
        return names is None or not isinstance(chosen, str) or chosen.lower() in names | {"none", "null", "nil"}


def chosen_classes() -> frozenset[str]:
    """Return the names of the entries that choose the class of a part of the model, such as ``encoder``.

    The options of the class are in the entry with the same name and the ending ``_conf``.
    """
    return frozenset(entry for task in tasks().values() for entry in task.classes) - _OF_TRAINING


def is_whole(values: Mapping[str, Any]) -> bool:
    """Return whether a training run wrote this configuration, so that it has every entry of its task."""
    return WHOLE in values


def task_of(document: Document, values: Mapping[str, Any]) -> Task:
    """Return the task of a configuration: the task that the user chose, else the only task that fits.

    Raises ConfigError if the chosen task is unknown or lacks entries of the configuration, and if no task or several
    tasks fit.
    """
    known, common = _recorded()
    entries = frozenset(values) - common
    if document.task is not None:
        return _named(document, document.task, entries)
    entries = frozenset(name for name in entries if any(name in task.entries for task in known.values()))
    if is_whole(values):
        found = _of_run(entries)
    else:
        found = [task for task in known.values() if not task.lacks(entries, values)]
    if len(found) == 1:
        return found[0]
    if found:
        raise document.fail(
            f"the entries of the file fit several tasks: {listing([task.name for task in found], 12, where='')}.",
            f"Pass --task {found[0].name}, or write model: {{espnet: {escape(document.name)}, task: {found[0].name}}}.",
        )
    raise document.fail(f"the entries of the file fit no task of ESPnet: {'; '.join(_reasons(entries, values))}.")


def _of_run(entries: frozenset[str]) -> list[Task]:
    """Return the tasks that fit ``entries``, the entries of a configuration that a training run wrote.

    A run writes every entry of its task. So of the tasks that declare all ``entries``, only those with the fewest other
    entries are returned. The classes that the entries choose are not compared, because another version of ESPnet has
    other classes.
    """
    found = [task for task in tasks().values() if entries <= task.entries]
    least = min((len(task.entries - entries) for task in found), default=0)
    return [task for task in found if len(task.entries - entries) == least]


def _named(document: Document, name: str, entries: frozenset[str]) -> Task:
    known = tasks()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise document.fail(
            f"the task {brief_repr(name)} is not a task of ESPnet.",
            f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(known)}.",
        )
    task = known[name]
    others = sorted(
        entry for entry in entries - task.entries if any(entry in one.entries for one in known.values())
    )  # entries that no task has may come from another version of ESPnet: ignored
    if others:
        having = [one.name for one in known.values() if others[0] in one.entries]
        raise document.fail(
            f"the ESPnet task {name} has no entry {listing(others, 6, where='')}.",
            f"{others[0]} is an entry of these tasks: {', '.join(having)}.",
        )
    return task


def _reasons(entries: frozenset[str], values: Mapping[str, Any]) -> Iterator[str]:
    """Yield ``TASK has no ENTRIES`` for each of the two tasks that lack the fewest entries of the configuration."""
    for task in sorted(tasks().values(), key=lambda one: len(entries - one.entries))[:2]:
        yield f"{task.name} has no {listing(task.lacks(entries, values), 6, where='')}"


def tasks() -> dict[str, Task]:
    """Return the recorded tasks by name."""
    return _recorded()[0]


@cache
def _recorded() -> tuple[dict[str, Task], frozenset[str]]:
    """Return the recorded tasks by name, and the entries that all tasks have."""
    recorded = json.loads(resources.files(__package__).joinpath("_espnet_tasks.json").read_text("utf-8"))
    known = {
        name: Task(
            name, row["class"], frozenset(row["entries"]),
            {entry: frozenset(names) for entry, names in row["classes"].items()},
            None if row["model_conf"] is None else frozenset(row["model_conf"]),
        )
        for name, row in recorded["tasks"].items()
    }  # fmt: skip
    return known, frozenset(recorded["common"])
