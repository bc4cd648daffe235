"""Separates the weights in a distributed checkpoint of Megatron-core (``torch_dist``) from the other entries.

Such a folder is a ``torch.distributed.checkpoint`` that also contains ``metadata.json`` and ``common.pt``. Its keys are
not nested: keys of the model and of the optimizer are at the same level. Follows ``megatron/core/dist_checkpointing``
and ``megatron/training/checkpointing.py`` (core 0.5 to 0.14).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from ...errors import CheckpointError
from ...storage.read.base import Folder
from ...util.text import count
from ..base.limits import BESIDE_BYTES
from ..base.untrusted import parse_json

__all__ = ["is_megatron", "left_out", "note_on"]

_SETTINGS = "metadata.json"
_KINDS = {
    "of the optimizer": re.compile(r"(?:chained_\d+\.|optimizer\.).*", re.DOTALL),
    "of random generators": re.compile(r"(?:rng_state|rerun_state_machine_state)(?:[./].*)?", re.DOTALL),
    "_extra_state": re.compile(r"(?:.*\.)?_extra_state(?:/.*)?", re.DOTALL),
}


def is_megatron(folder: Folder) -> bool:
    """Return whether Megatron-core wrote this folder of ``torch.distributed.checkpoint``."""
    with suppress(CheckpointError, ValueError):
        if _SETTINGS not in folder.names():
            return False
        file = folder.file(_SETTINGS)
        try:
            found = parse_json(file.read(0, file.size)) if file.size <= BESIDE_BYTES else None
        finally:
            file.close()
        return isinstance(found, dict) and found.get("sharded_backend") == "torch_dist"
    return False


def left_out(key: str) -> str:
    """Return what an entry belongs to, such as "of the optimizer", for a message; '' if it is a weight."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(key)), "")


def note_on(kinds: Iterable[str]) -> tuple[str, ...]:
    """Return a tuple with a note on the entries that were left out; () if there are none.

    ``kinds`` has the result of ``left_out`` for each of these entries.
    """
    numbers = Counter(kinds)
    if not numbers:
        return ()
    shown = ", ".join(f"{number} {kind}" for kind, number in numbers.items())
    return (f"a distributed checkpoint of Megatron; left out {count(numbers.total(), 'entry', 'entries')}: {shown}",)
