"""Finds a task by its name: one of ours, or a class in a file of the user's."""

from __future__ import annotations

import difflib
import importlib.util
import os
import sys
from typing import cast

from ...configs import Document, user_code
from ...errors import CheckpointError, ConfigError
from ...registry import discover, module_names
from ...text import brief_repr, escape
from ._task import Task

__all__ = ["load_task", "task_file"]

TASKS = "ckptsurgeon.trainer.tasks"
MEMBERS = ("check", "example", "collate", "loss", "uniform_loss", "evaluate", "metric")
USERS = "ckptsurgeon_users_task"
"""What the module of a user's file is called; dataclasses and pickles look it up."""


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
    if not os.path.isfile(path) or not path.endswith(".py"):
        why = "does not exist" if not os.path.exists(path) else "is no Python file"
        raise ConfigError(f"train.task {escape(name)}: {escape(path)} {why}.", hint="It is my_task.py:MyTask.")
    spec = importlib.util.spec_from_file_location(USERS, path)
    assert spec is not None  # the suffix is one that Python knows
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with user_code(Document(path, "", None, {})):
            sys.modules[USERS] = module
            spec.loader.exec_module(module)
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(
            f"train.task {escape(name)} cannot be imported: {type(error).__name__}: {escape(str(error))}."
        ) from error
    if not hasattr(module, attribute):
        classes = [one for one, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(attribute, classes, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Its classes are {', '.join(classes) or 'none'}."
        raise ConfigError(f"{escape(path)} has no {escape(attribute)}.", hint=hint)
    return getattr(module, attribute)
