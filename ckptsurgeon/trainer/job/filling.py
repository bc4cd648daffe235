"""Fills the cache of features before anything waits for it, and tells how far that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ..data.loader import Batches
from ..tasks._task import Progress
from .job import Job

__all__ = ["fill_caches", "progress_observer"]

Tell = Callable[[Mapping[str, Any]], None]


def progress_observer(tell: Tell) -> Progress:
    """Return a progress that an observer is told of."""
    return lambda split, done, of: tell({"event": "progress", "split": split, "clips": done, "of": of})


def fill_caches(job: Job, tell: Tell, *, only_train: bool = False) -> None:
    """Compute what the cache lacks of all splits, or of ``train``; does nothing for a task without one.

    Raises SourceError for a sound that cannot be used and OutputError where the folder cannot be written.
    """
    work, made = job.work, 0
    splits = {"train": work.train} if only_train else {"train": work.train, "dev": work.dev, "test": work.test}
    for name, source in splits.items():
        if isinstance(source, Batches):
            made += source.fill(partial(progress_observer(tell), name))
    cache = job.settings.data.cache
    if made and cache is not None:
        tell({"event": "filled", "clips": made, "cache": job.document.resolve(cache)})
