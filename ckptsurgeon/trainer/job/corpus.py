"""Digests of the files behind the settings: the token list, the clips of each split, the user's own task."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ...errors import ConfigError
from ...storage.small_files import read_file
from ...util.text import escape
from ..audio.clip import Clip
from ..data.loader import Batches
from ..tasks._load import task_file
from .job import Job

__all__ = ["check_data", "data_digests"]


def data_digests(job: Job) -> dict[str, str]:
    """Return the digest of each: of a split the clips that are used, wherever its folder lies, in their order."""
    home = os.path.dirname(os.path.abspath(job.document.path))
    found = {"tokens": _digest(json.dumps(token) for token in job.work.tokens)} if job.work.tokens else {}
    for name, source in (("train", job.work.train), ("dev", job.work.dev)):
        if isinstance(source, Batches):
            found[name] = _digest(_line(clip, home) for clip in source.split.clips)
    task = task_file(job.settings.task, home)
    if task and os.path.isfile(task):
        found["task"] = hashlib.sha256(read_file(task)).hexdigest()
    return found


def _line(clip: Clip, home: str) -> str:
    path = os.path.relpath(os.path.abspath(clip.path), home) if clip.path else clip.where
    return json.dumps([path, clip.text, clip.seconds, clip.begin_s])


def _digest(lines: Iterable[str]) -> str:
    made = hashlib.sha256()
    for line in lines:
        made.update(line.encode() + b"\n")
    return made.hexdigest()


def check_data(job: Job, old: Mapping[str, str], run: str) -> Iterator[str]:
    """Yield notes on what is another now and harmless; raises ConfigError for what a run would learn otherwise by."""
    new = data_digests(job)
    for name in old:
        if new.get(name) == old[name]:
            continue
        if name == "task":
            yield f"{escape(job.settings.task)} is not what it was when {escape(run)} was started"
            continue
        what = "gives other tokens" if name == "tokens" else f"gives other clips to {name}"
        raise ConfigError(
            f"{escape(_named(job, name))} {what} than when {escape(run)} was started.",
            hint="Put back what was there, or start another run: --run.",
        )


def _named(job: Job, name: str) -> str:
    """Return what the configuration calls the files."""
    given: Any = getattr(job.settings.data, name)
    if name == "tokens":
        return str(given or job.document.model.get("tokens", job.document.model.get("alphabet")))
    return ", ".join(one if isinstance(one, str) else f"train.data.{name}" for one in given)
