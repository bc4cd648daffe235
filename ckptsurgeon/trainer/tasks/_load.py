"""Loads a task by its name: a bundled task, or a class in a user's file."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch

from ...errors import CheckpointError, ConfigError
from ...util.registry import discover, module_names
from ...util.text import brief_repr, escape
from ..config.imports import load_from_user_file
from ..parallel.lost_ranks import is_communication_error
from ._task import Task

__all__ = ["explain_task_errors", "is_user_task", "load_task", "task_file"]

TASKS = "ckptsurgeon.trainer.tasks"
USERS = "ckptsurgeon_users_task"
REQUIRED = ("loss", "evaluate", "metric")
"""The members that a task must have; optional members are described in the class Task."""


def task_file(name: str, folder: str) -> str:
    """Return the file's path in a name such as ``my_task.py:MyTask``, joined to ``folder``; '' for a bundled task."""
    path, between, _ = name.rpartition(":")
    return os.path.normpath(os.path.join(folder, path)) if between else ""


def load_task(name: str, folder: str) -> type[Task]:
    """Return the class of the task ``name``: a bundled task (``ctc``), or a class in a file (``my_task.py:MyTask``).

    A relative path begins at ``folder``. The file, which is the user's own code, is run. The class may also be a Brain
    of SpeechBrain (``train.py:ASR``). Raises ConfigError if the name is unknown (the hint has a similar name), if the
    file cannot be imported, or if the class lacks a required member.
    """
    path = task_file(name, folder)
    found = _users(name, path) if path else _ours(name)
    if path and is_brain(found):
        from .speechbrain import brain_task

        return brain_task(cast(type, found))
    lacking = [member for member in REQUIRED if not hasattr(found, member)]
    lacking += sorted(getattr(found, "__abstractmethods__", frozenset()).difference(lacking))
    if not isinstance(found, type) or lacking:
        why = f"it has no {', '.join(lacking)}" if isinstance(found, type) else "it is not a class"
        raise ConfigError(
            f"train.task {escape(name)} is not a task: {why}.",
            hint="ckptsurgeon/trainer/tasks/_task.py describes the members of a task; SoundTask is in _sounds.py.",
        )
    return cast("type[Task]", found)


def is_user_task(task: object) -> bool:
    """Return whether the class of a task is in a user's file."""
    return type(task).__module__ == USERS


@contextmanager
def explain_task_errors(name: str, *, there: bool = False) -> Iterator[None]:
    """If a user's own task raises an error in the block, raise a ConfigError with the line of the error in its place.

    ``name`` is the name of the task, such as ``my_task.py:MyTask``. Errors of bundled tasks are not changed. If
    ``there`` is true, only errors that were raised in the user's file are changed: in a training step, other errors may
    come from the model.
    """
    try:
        yield
    except (CheckpointError, torch.OutOfMemoryError):  # explain_out_of_memory handles the second
        raise
    except Exception as error:
        if ":" not in name or is_communication_error(error) or (there and not _where(error, name)):
            raise
        raise ConfigError(
            f"the task {escape(name)} fails{_where(error, name)}: {type(error).__name__}: {escape(str(error), 500)}.",
            hint="Correct the task: CKPT_DEBUG=1 shows the traceback. ckpt creates a task by MyTask(settings, tokens).",
        ) from error


def _where(error: Exception, name: str) -> str:
    """Return `` in line N``, the line of the user's file that raised the error; '' if it is not from this file."""
    file = os.path.basename(name.rpartition(":")[0])
    lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if os.path.basename(one.filename) == file]
    return f" in line {lines[-1]}" if lines else ""


def is_brain(found: object) -> bool:
    """Return whether a class is a Brain of SpeechBrain."""
    return isinstance(found, type) and any(
        one.__name__ == "Brain" and one.__module__.startswith("speechbrain") for one in found.__mro__
    )


def _ours(name: str) -> object:
    known = [one for one in module_names(TASKS) if one in discover(TASKS, "TASK")]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        named = f"Use one of {', '.join(known)}, or a class of your own, as in my_task.py:MyTask."
        hint = f"Did you mean {near[0]}? {named}" if near else named
        raise ConfigError(f"there is no task {brief_repr(name)}.", hint=hint)
    return discover(TASKS, "TASK")[name]


def _users(name: str, path: str) -> object:
    attribute = name.rpartition(":")[2]
    return load_from_user_file(f"train.task {escape(name)}", path, attribute, example="my_task.py:MyTask", module=USERS)
