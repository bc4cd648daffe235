"""Holds the small files of an output folder against what its recipe says of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

from ..plan import PlanCompanion
from ..text import escape

__all__ = ["companion_faults"]


def companion_faults(path: str, companions: Sequence[PlanCompanion]) -> Iterator[str]:
    """Yield what is wrong with the files beside the weights of an output."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    for one in companions:
        try:
            with open(os.path.join(folder, one.name), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                same = size == one.size and hashlib.file_digest(file, "sha256").hexdigest() == one.sha256
        except OSError as error:
            yield f"{escape(one.name)} beside the weights cannot be read: {error.strerror}"
            continue
        if not same:
            yield f"{escape(one.name)} beside the weights is not as it was written"
