"""Finds a task by its name: one of ours, or a class in a file of the user's."""

from __future__ import annotations

import difflib
import os
from typing import cast

from ...errors import ConfigError
from ...registry import discover, module_names
from ...text import brief_repr, escape
from ..users_file import from_users_file
from ._task import Task

__all__ = ["load_task", "task_file"]

TASKS = "ckptsurgeon.trainer.tasks"
MEMBERS = ("check", "example", "collate", "loss", "uniform_loss", "evaluate", "metric")


def task_file(name: str, folder: str) -> str:
    """Return the file that ``my_task.py:MyTask`` names, relative to ``folder``; '' for a task of ours."""
    path, between, _ = name.rpartition(":")
    return os.path.normpath(os.path.join(folder, path)) if between else ""


def load_task(name: str, folder: str) -> type[Task]:
    """Return the class of a task: ``ctc``, or ``my_task.py:MyTask``, whose file is the user's own code and is run.

    Raises ConfigError for a name nobody knows, naming the nearest, and for a file that cannot be imported or a class
    that lacks what a task has.
    """
    path = task_file(name, folder)
    found = _users(name, path) if path else _ours(name)
    lacking = [member for member in MEMBERS if not hasattr(found, member)]
    lacking += sorted(getattr(found, "__abstractmethods__", frozenset()).difference(lacking))
    if not isinstance(found, type) or lacking:
        why = f"it has no {', '.join(lacking)}" if isinstance(found, type) else "it is no class"
        raise ConfigError(
            f"train.task {escape(name)} is no task: {why}.",
            hint="ckptsurgeon/trainer/tasks/_task.py says what one has; SoundTask of _sounds.py brings most of it.",
        )
    return cast("type[Task]", found)


def _ours(name: str) -> object:
    known = [one for one in module_names(TASKS) if one in discover(TASKS, "TASK")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        named = f"There are {', '.join(known)}; a class of your own is named as my_task.py:MyTask."
        hint = f"Did you mean {near[0]}? {named}" if near else named
        raise ConfigError(f"there is no task {brief_repr(name)}.", hint=hint)
    return discover(TASKS, "TASK")[name]


def _users(name: str, path: str) -> object:
    attribute = name.rpartition(":")[2]
    return from_users_file(
        f"train.task {escape(name)}", path, attribute, example="my_task.py:MyTask", module="ckptsurgeon_users_task"
    )
