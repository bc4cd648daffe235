"""Reads a configuration and its data into a job, and fills the feature caches of the job."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from ...api.model_folder.recorded_tokens import other_tokens
from ...destinations._document import Document, read_document
from ...destinations._load import target_with
from ...destinations.torch_module.user_code import user_code
from ...errors import ConfigError
from ...planning.target import TargetSpec
from ...util.registry import discover, module_names
from ...util.text import brief_repr, count, escape
from ...vocabulary.vocabulary import read_vocabulary
from ..config.bounds import find_fault, useless_settings
from ..config.imports import load_from_user_file
from ..config.section import apply_overrides, parse_settings, resolve_paths
from ..config.settings import ANNEALED, Settings
from ..data.loader import Batches
from ..data.source import BatchSource, OneBatch, first_batch
from ..parallel.ranks import SINGLE_PROCESS, Ranks
from ..state.lora import check_lora
from ..state.optimizer import parameter_rules, pattern_notes
from ..system.compiling import compile_notes
from ..system.device import choose_device, device_notes, usual_workers
from ..system.random_state import preserve_cpu_random_state, seed_cpu_from
from ..tasks._task import USERS, Progress, Task, explain_task_errors, task_file
from .init_checkpoint import InitCheckpoint
from .job import Job, build_model

__all__ = [
    "build_job",
    "fill_caches",
    "load_task",
    "load_task_data",
    "progress_observer",
    "read_settings",
    "task_of",
    "train_section",
    "with_one_batch",
]


def train_section(document: Document) -> Any:
    """Return the ``train:`` section of a configuration; raises ConfigError if it cannot be read."""
    if document.fault is not None:
        raise document.fault
    return document.content.get("train") if isinstance(document.content, dict) else None


def read_settings(document: Document, sets: Sequence[str]) -> Settings:
    """Return the settings of a configuration, in which the ``KEY=VALUE`` strings ``sets`` replace values.

    Raises ConfigError if a setting is unknown or has a wrong value.
    """
    section = train_section(document)
    try:
        return parse_settings(apply_overrides(section, sets), document.name)
    except ConfigError:
        if not sets or not _is_sound(section, document.name):
            raise
    # The file itself is valid, so the error is in ``sets``, and its message must name the options.
    return parse_settings(apply_overrides(section, sets), ", ".join(f"--set {text}" for text in sets))


def _is_sound(section: Any, where: str) -> bool:
    try:
        parse_settings(section, where)
    except ConfigError:
        return False
    return True


def build_job(
    config: str,
    *,
    sets: Sequence[str] = (),
    device: str | torch.device | None = None,
    init: InitCheckpoint | None = None,
    cached: bool = True,
    ranks: Ranks = SINGLE_PROCESS,
    strategy: str = "ddp",
) -> Job:
    """Return the training job that the configuration at ``config`` describes; raises ConfigError.

    ``sets`` are ``KEY=VALUE`` strings that replace values of the ``train:`` section. If ``cached`` is false, the job
    writes no features to a cache. ``init`` has the initial weights (None: the model's initialisers draw them).
    ``ranks`` are the processes that train, and ``strategy`` is ``ddp`` or ``fsdp``.
    """
    document = read_document(config, "configuration")
    settings = read_settings(document, sets)
    if not cached:
        settings = replace(settings, data=replace(settings.data, cache=None))
    where = device if isinstance(device, torch.device) else choose_device(device)
    section = apply_overrides(train_section(document), sets)
    target = target_with(config, None, train=section if isinstance(section, Mapping) else None)
    keys = list(target.tensors)
    # Called before the slow part: these functions raise errors for names and patterns that match nothing.
    parameter_rules(settings, keys)
    if settings.lora.targets:
        check_lora(settings.lora, keys, init.new if init is not None else ())
    # The job's own settings keep None for workers, because the run may be resumed on another machine.
    workers = settings.data.workers if settings.data.workers is not None else usual_workers(where)
    known = replace(settings, data=replace(settings.data, workers=workers))
    task, splits, notes, tokens = load_task_data(known, document, target)
    job = Job(
        document, settings, target, where, task, splits["train"], splits.get("dev"), splits.get("test"),
        tokens=tuple(tokens), init=init, ranks=ranks, strategy=strategy,
    )  # fmt: skip
    if settings.epochs is not None:
        job = replace(job, settings=with_steps(settings, job, document.name))
        notes = (*notes, f"train.epochs {settings.epochs}: {count(job.settings.steps, 'step')}")
    settings = job.settings
    if settings.data.cache is not None and (settings.augment.speed or settings.augment.snr_db):
        notes = (*notes, "train.augment changes the sounds of train: their features are computed each time, not cached")
    if settings.schedule in ANNEALED and job.dev is None:
        raise ConfigError(
            f"train.schedule {settings.schedule} needs evaluations, and there is no train.data.dev.",
            hint="List manifests to evaluate on in train.data.dev, or use another schedule.",
        )
    if settings.patience is not None and job.dev is None:
        notes = (*notes, "train.patience has no effect: there is no split dev to evaluate on")
    notes = (
        *notes,
        *pattern_notes(settings, keys),
        *useless_settings(settings),
        *device_notes(settings, where),
        *(compile_notes(job) if job.may_compile else ()),
    )
    if init is not None and (told := other_tokens(init.recipe, init.path, target)):
        notes = (*notes, f"the rows of the init belong to other tokens: {told} in ckpt transplant")
    return replace(job, notes=notes)


def with_steps(settings: Settings, job: Job, where: str) -> Settings:
    """Return settings in which ``steps`` is computed from ``epochs`` and the number of batches in an epoch of the job.

    Raises ConfigError if other settings do not fit this number of steps; its message begins with ``where``.
    """
    batches = sum(job.train.size(epoch) for epoch in range(settings.epochs or 0))
    made = replace(settings, steps=max(1, -(-batches // settings.accumulate)))
    why = find_fault(replace(made, epochs=None))
    if why:
        raise ConfigError(f"{escape(where)}: train.epochs {settings.epochs}: {why}.")
    return made


def with_one_batch(job: Job) -> Job:
    """Return the job with the first batch of ``train`` as its only batch, for training and for evaluation."""
    one = OneBatch(first_batch(job.train, job.settings.seed))
    return replace(job, train=one, dev=one, test=None)


Tell = Callable[[Mapping[str, Any]], None]


def progress_observer(tell: Tell) -> Progress:
    """Return a function that reports the progress of a split to ``tell``, as an event.

    The function gets the name of the split, the number of finished clips, and the number of all clips.
    """
    return lambda split, done, of: tell({"event": "progress", "split": split, "clips": done, "of": of})


def fill_caches(job: Job, tell: Tell, *, only_train: bool = False) -> None:
    """Compute the features that are missing in the caches of all splits, or only of ``train`` with ``only_train``.

    ``tell`` gets events on the progress. Raises SourceError for a sound that cannot be used, and OutputError if the
    folder of the cache cannot be written.
    """
    made = 0
    splits = {"train": job.train} if only_train else {"train": job.train, "dev": job.dev, "test": job.test}
    for name, source in splits.items():
        if isinstance(source, Batches):
            made += source.fill(partial(progress_observer(tell), name))
    cache = job.settings.data.cache
    if made and cache is not None:
        tell({"event": "filled", "clips": made, "cache": job.document.resolve(cache)})


def load_task_data(
    settings: Settings, document: Document, target: TargetSpec
) -> tuple[Task, Mapping[str, BatchSource], Sequence[str], Sequence[str]]:
    """Return the task, its splits by name, the task's notes on the data, and the token list.

    The task's method ``splits`` returns the source ``train`` and perhaps ``dev`` and ``test``; its optional method
    ``notes`` returns lines about the data for the user. Raises ConfigError if there is no such task, or no data for it.
    """
    with user_code(document), preserve_cpu_random_state():
        # A user's dataset may draw random numbers when it is made, for example to assign examples to splits.
        seed_cpu_from(settings.seed)
        task, tokens = task_of(settings, document, target)
        with explain_task_errors(settings.task):
            splits = task.splits() if hasattr(task, "splits") else {}
            notes = task.notes() if hasattr(task, "notes") else ()
    if not isinstance(splits, Mapping):
        raise document.fail(
            f"the method splits of the task {escape(settings.task)} returns {brief_repr(splits)}, not a dict of "
            "sources by name: train, and perhaps dev and test."
        )
    if "train" not in splits:
        raise document.fail(
            f"the task {escape(settings.task)} has no data to train on: the dict that "
            "its method splits returns must have the key train."
        )
    return task, splits, notes, tokens


def task_of(settings: Settings, document: Document, target: TargetSpec) -> tuple[Any, Sequence[str]]:
    """Create the task that the settings name; return the task, which has read no data yet, and the token list.

    If the task has a method ``meet``, the method is called with the model on torch's meta device. Raises ConfigError if
    there is no such task, or if the task cannot be created.
    """
    kind = load_task(settings.task, document.folder)
    found = resolve_paths(settings, document.folder)
    with user_code(document), explain_task_errors(settings.task):
        tokens = _tokens(found.data.tokens, document)
        task: Any = kind(found, tokens)
        if hasattr(task, "meet"):
            with torch.device("meta"):
                task.meet(build_model(target, document))
    return task, tokens


def _tokens(path: str | None, document: Document) -> Sequence[str]:
    """Return the token list in the file ``path`` (``train.data.tokens``).

    If ``path`` is None, return the token list that the ``model:`` section refers to, or () if there is none.
    """
    named = document.model.get("tokens", document.model.get("alphabet"))
    path = path or (document.resolve(named) if isinstance(named, str) else None)
    return read_vocabulary(path).tokens if path is not None else ()


TASKS = "ckptsurgeon.trainer.tasks"
REQUIRED = ("loss", "evaluate", "metric")
"""The members that a task must have; optional members are described in the class Task."""


def load_task(name: str, folder: str) -> type[Task]:
    """Return the class of the task ``name``: a bundled task (``ctc``), or a class in a file (``my_task.py:MyTask``).

    A relative path begins at ``folder``. The file, which is the user's own code, is run. The class may also be a Brain
    of SpeechBrain (``train.py:ASR``). Raises ConfigError if the name is unknown (the hint has a similar name), if the
    file cannot be imported, or if the class lacks a required member.
    """
    path = task_file(name, folder)
    found = _users(name, path) if path else _ours(name)
    if path and is_brain(found):
        from ..tasks.speechbrain import brain_task

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
