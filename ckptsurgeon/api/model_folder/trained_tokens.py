"""Finds the token list with which a run of ``ckpt train`` was trained, from the records in the run's folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ...destinations._document import read_document
from ...errors import CheckpointError
from ...storage.json_text import read_json
from ...storage.read.uri import scheme_of
from ...storage.small_files import read_file
from ...vocabulary.read import read_vocabulary
from ...vocabulary.vocabulary import digest_of_tokens

__all__ = ["TrainedList", "trained_list"]

LINEAGE, CONFIG = "lineage.json", "config.yaml"
OF_RUN = re.compile(r"\.|best\.safetensors|(adapter|last|steps/\d+)(/.*)?")
"""Matches the paths of a run's checkpoints, relative to the run's folder."""
DEEPEST = 3
"""The number of folders in which the records of a run are searched: the checkpoint's own, and those above it."""


@dataclass(frozen=True)
class TrainedList:
    """The token list of a run: the SHA-256 of its tokens, and its path ('' if the run's configuration names none).

    ``tokens`` is None if the list is gone or has changed since. ``kind`` is the kind of the destination that the run
    trained.
    """

    digest: str
    path: str
    tokens: tuple[str, ...] | None
    kind: str


def trained_list(path: str) -> TrainedList | None:
    """Return the token list of the run in whose folder the checkpoint at ``path`` is; None if there is no run."""
    for folder in _folders(path):
        lineage = _lineage(os.path.join(folder, LINEAGE))
        if not lineage or not OF_RUN.fullmatch(os.path.relpath(path, folder)):
            continue
        data, target = (found if isinstance(found := lineage.get(name), dict) else {} for name in ("data", "target"))
        digest = data.get("tokens")
        if not isinstance(digest, str):
            return None
        list_path = _list_in(os.path.join(folder, CONFIG))
        with suppress(CheckpointError, OSError):
            tokens = read_vocabulary(list_path).tokens if list_path else ()
            if digest_of_tokens(tokens) == digest:
                return TrainedList(digest, list_path, tokens, str(target.get("kind")))
        return TrainedList(digest, list_path, None, str(target.get("kind")))
    return None


def _folders(path: str) -> Iterator[str]:
    """Yield the local folders in which the records of a checkpoint's run may be, the nearest first."""
    if scheme_of(path) or not os.path.exists(path):
        return
    folder = os.path.abspath(path)
    folder = folder if os.path.isdir(folder) else os.path.dirname(folder)
    for _ in range(DEEPEST):
        yield folder
        folder = os.path.dirname(folder)


def _lineage(path: str) -> Mapping[str, Any]:
    with suppress(CheckpointError, OSError, ValueError):
        found = read_json(read_file(path))
        if isinstance(found, dict) and found.get("kind") == "ckpt.lineage":
            return found
    return {}


def _list_in(config: str) -> str:
    """Return the path of the token list that a run's configuration names; '' if it names none or cannot be read."""
    with suppress(CheckpointError, OSError, ValueError):
        document = read_document(config)
        data = document.train.get("data")
        named = data.get("tokens") if isinstance(data, dict) else None
        named = named or document.model.get("tokens", document.model.get("alphabet"))
        return document.resolve(named) if isinstance(named, str) else ""
    return ""
