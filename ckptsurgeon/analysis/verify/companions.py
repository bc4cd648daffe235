"""Holds the small files of an output folder against what its recipe says of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext

from ...errors import SourceError
from ...planning.plan.plan import PlanCompanion
from ...storage.read._links import leads_out
from ...storage.read.base import File
from ...storage.read.uri import open_source
from ...util.text import escape

__all__ = ["companion_faults", "digest_of"]

BLOCK = 1 << 20


def companion_faults(path: str, companions: Sequence[PlanCompanion]) -> Iterator[str]:
    """Yield what is wrong with the files beside the weights of an output; only regular files are read."""
    if not companions:
        return
    source = open_source(path)
    with closing(source) if isinstance(source, File) else nullcontext():
        folder = source.folder() if isinstance(source, File) else source
    for one in companions:
        if leads_out(os.path.join(folder.uri, one.name)):
            yield f"{escape(one.name)} beside the weights is a link out of the folder, which is not followed"
            continue
        try:
            with closing(folder.file(one.name)) as file:
                same = file.size == one.size and digest_of(file) == one.sha256
        except SourceError as error:
            yield f"{escape(one.name)} beside the weights cannot be read: {error.message}"
            continue
        if not same:
            yield f"{escape(one.name)} beside the weights is not as it was written"


def digest_of(file: File) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    for begin in range(0, file.size, BLOCK):
        digest.update(file.read(begin, min(BLOCK, file.size - begin)))
    return digest.hexdigest()
