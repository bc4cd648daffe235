"""What there is to learn: the task that a configuration names, and the batches of its splits."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..configs import Document, user_code
from ..errors import CheckpointError, ConfigError
from ..registry import discover, module_names
from ..text import brief_repr, escape
from ..vocabulary import read_vocabulary
from .settings import Settings
from .source import Source
from .tasks._task import Task

__all__ = ["Work", "load_work"]

TASKS = "ckptsurgeon.trainer.tasks"


@dataclass(frozen=True)
class Work:
    """A task and its splits; ``dev`` is None where there is nothing to evaluate on.

    ``prepare`` computes once what would otherwise be computed from the clips each time, and says what it did.
    """

    task: Task
    train: Source
    dev: Source | None = None
    prepare: Callable[[], Sequence[str]] | None = None
    notes: tuple[str, ...] = ()


def load_work(settings: Settings, document: Document) -> Work:
    """Return the task and its data; raises ConfigError where there is no such task, or no data for it.

    ``train.task`` names a bundled task or, as ``my_task.py:MyTask``, a class of the user's own, which runs. Its method
    ``splits`` returns the sources ``train`` and, if there is one, ``dev``. One that keeps what it computes from clips
    has a method ``prepare``, one that has something to say of its data a method ``notes``.
    """
    kind = _users_own(settings.task, document) if ":" in settings.task else _bundled(settings.task, document)
    with user_code(document):
        task = kind(settings, _tokens(settings, document))
        splits = task.splits() if hasattr(task, "splits") else {}
        notes = task.notes() if hasattr(task, "notes") else ()
    if "train" not in splits:
        raise document.fail(f"the task {escape(settings.task)} does not say where its data come from.")
    prepare = getattr(task, "prepare", None)
    return Work(task, cast(Source, splits["train"]), splits.get("dev"), prepare, tuple(notes))


def _tokens(settings: Settings, document: Document) -> Sequence[str]:
    path = settings.data.tokens or document.model.get("tokens")
    return read_vocabulary(document.resolve(path)).tokens if isinstance(path, str) else ()


def _bundled(name: str, document: Document) -> Callable[..., Any]:
    known = module_names(TASKS)
    if name not in known:
        raise document.fail(
            f"there is no task {brief_repr(name)}.",
            f"There are {', '.join(known)}, and classes of your own as my_task.py:MyTask.",
        )
    return cast("Callable[..., Any]", discover(TASKS, "TASK")[name])


def _users_own(name: str, document: Document) -> Callable[..., Any]:
    """Import the class that a configuration names by file; raises ConfigError."""
    file, _, attribute = name.rpartition(":")
    path = document.resolve(file)
    spec = importlib.util.spec_from_file_location("ckptsurgeon_user_task", path)
    try:
        if spec is None or spec.loader is None:
            raise ConfigError(f"{escape(file)} is no Python file")
        with user_code(document):
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look themselves up there
            spec.loader.exec_module(module)
        found: Callable[..., Any] = getattr(module, attribute)
    except CheckpointError as error:
        raise document.fail(f"train.task {escape(name)}: {error.message}.") from error
    except Exception as error:
        raise document.fail(
            f"train.task {escape(name)} cannot be imported: {type(error).__name__}: {escape(str(error))}."
        ) from error
    return found
