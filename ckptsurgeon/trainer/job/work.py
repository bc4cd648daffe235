"""What there is to learn: the task that a configuration names, and the batches of its splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from ...destinations._document import Document
from ...destinations.torch_module.user_code import user_code
from ...errors import ConfigError
from ...planning.target import TargetSpec
from ...util.text import brief_repr, escape
from ...vocabulary.read import read_vocabulary
from ..config.settings import Settings
from ..data.loader import Batches
from ..data.split import resolve_paths
from ..system.random_state import preserve_cpu_random_state, seed_cpu_from
from ..tasks._load import explain_task_errors, load_task
from ..tasks._task import Progress, Task
from .source import Source

__all__ = ["Work", "build_model", "load_work"]


@dataclass(frozen=True)
class Work:
    """A task and its splits; ``dev`` is None where there is nothing to evaluate on, ``test`` where nothing at the end.

    ``prepare`` computes once what would otherwise be computed from the clips each time, and returns what it did.
    ``tokens`` is the token list, empty where there is none.
    """

    task: Task
    train: Source
    dev: Source | None = None
    test: Source | None = None
    prepare: Callable[[Progress], Sequence[str]] | None = None
    notes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    def close(self) -> None:
        """Let go of what the sources hold: processes."""
        for source in (self.train, self.dev, self.test):
            if isinstance(source, Batches):
                source.close()


def load_work(settings: Settings, document: Document, target: TargetSpec) -> Work:
    """Return the task and its data; raises ConfigError where there is no such task, or no data for it.

    The task's method ``splits`` returns the sources ``train`` and, if there are such, ``dev`` and ``test``. One that
    keeps what it computes from clips has a method ``prepare``, one that has something to say of them has ``notes``.
    """
    folder = document.folder
    kind = load_task(settings.task, folder)
    data = resolve_paths(settings.data, folder)
    with user_code(document), preserve_cpu_random_state():
        seed_cpu_from(settings.seed)  # a dataset may draw when it is made: which examples are whose
        tokens = _tokens(data.tokens, document)
        with explain_task_errors(settings.task):
            task: Any = kind(replace(settings, data=data), tokens)
            if hasattr(task, "meet"):
                with torch.device("meta"):
                    task.meet(build_model(target, document))
            splits = task.splits() if hasattr(task, "splits") else {}
            notes = task.notes() if hasattr(task, "notes") else ()
    if not isinstance(splits, Mapping):
        raise document.fail(
            f"splits of the task {escape(settings.task)} returns {brief_repr(splits)}, no sources by name."
        )
    if "train" not in splits:
        raise document.fail(f"the task {escape(settings.task)} does not say where its data come from.")
    prepare = getattr(task, "prepare", None)
    return Work(
        cast(Task, task),
        cast(Source, splits["train"]),
        splits.get("dev"),
        splits.get("test"),
        prepare,
        tuple(notes),
        tuple(tokens),
    )


def build_model(target: TargetSpec, document: Document) -> nn.Module:
    """Build the model; what its tensors hold is the constructor's. Raises ConfigError where nobody can build it."""
    if target.build is None:
        raise ConfigError(
            f"{escape(document.name)} describes tensors, which nobody can train.",
            hint="A model that is trained is named by _target_ or name.",
        )
    model = target.build()
    assert isinstance(model, nn.Module)
    return model


def _tokens(path: str | None, document: Document) -> Sequence[str]:
    """Return the token list that the data name, else the one that the model names."""
    named = document.model.get("tokens", document.model.get("alphabet"))
    path = path or (document.resolve(named) if isinstance(named, str) else None)
    return read_vocabulary(path).tokens if path is not None else ()
