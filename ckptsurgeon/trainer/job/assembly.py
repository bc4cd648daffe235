"""From a configuration to a job: what it says is read, checked and put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...destinations._document import Document, read_document
from ...destinations._load import load_target
from ...errors import ConfigError
from ..config.bounds import useless_settings
from ..config.overrides import apply_overrides
from ..config.section import parse_settings
from ..config.settings import Settings
from ..optim.freezing import parameter_rules, pattern_notes
from ..parallel.ranks import SINGLE_PROCESS, Ranks
from ..system.device import choose_device
from .compiling import compile_notes
from .init import InitCheckpoint
from .job import Job
from .source import OneBatch, first_batch
from .work import load_work

__all__ = ["build_job", "read_settings", "train_section", "with_one_batch"]


def train_section(document: Document) -> Any:
    """Return the ``train:`` section of a configuration; raises ConfigError where it cannot be read."""
    if document.fault is not None:
        raise document.fault
    return document.content.get("train") if isinstance(document.content, dict) else None


def read_settings(document: Document, sets: Sequence[str]) -> Settings:
    """Return the settings of a configuration, with ``KEY=VALUE`` over them; raises ConfigError."""
    section = train_section(document)
    try:
        return parse_settings(apply_overrides(section, sets), document.name)
    except ConfigError:
        if not sets or not _is_sound(section, document.name):
            raise
    # The file alone is right, so that what is wrong was said on the command line.
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
    """Return the job that a configuration describes; without ``cached`` it writes no features. Raises ConfigError."""
    document = read_document(config, "configuration")
    settings = read_settings(document, sets)
    if not cached:
        settings = replace(settings, data=replace(settings.data, cache=None))
    where = device if isinstance(device, torch.device) else choose_device(device)
    target = load_target(config)
    keys = list(target.tensors)
    parameter_rules(settings, keys)  # a pattern that matches nothing is said before anything is done
    work = load_work(settings, document, target)
    job = Job(document, settings, target, work, where, init, ranks, strategy)
    notes = (*work.notes, *pattern_notes(settings, keys), *useless_settings(settings), *compile_notes(job))
    return replace(job, work=replace(work, notes=notes))


def with_one_batch(job: Job) -> Job:
    """Return a job that learns its first batch by heart, and is asked for that."""
    one = OneBatch(first_batch(job.work.train, job.settings.seed))
    return replace(job, work=replace(job.work, train=one, dev=one, test=None))
