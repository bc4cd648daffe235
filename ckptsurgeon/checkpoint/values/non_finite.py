"""Finds NaN and infinite values in small tensors, such as norms and scales, for verbs that read only headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import ConsumedFile
from ...tensors.info import TensorInfo
from ...tensors.non_finite import has_non_finite, is_masked, size_of_float
from ...util.text import NUMBER_IN_KEY, count, listing

__all__ = ["is_non_finite_note", "non_finite_notes"]

TENSORS = 64
"""How many small tensors are read, at most."""
MOST = 64 * TENSORS
"""About how many small tensors are sorted by role, at most, spread over the model."""
SAID = "NaN or infinite values"
BYTES = 32 << 10
"""The largest small tensor: 8192 values in float32."""


def non_finite_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[str]:
    """Yield a note if small tensors of floats have NaN or infinite values; masks may have infinite values.

    At most ``TENSORS`` tensors are read, some of each role (name without numbers). ``handles`` maps each
    ``Storage.file`` to the open file; remote files are not read.
    """
    small = [key for key, info in tensors.items() if _is_small(info)]
    chosen = list(_spread([key for key in small[:: len(small) // MOST + 1] if not is_masked(key)]))
    found = []
    for key in chosen:
        info = tensors[key]
        assert info.storage is not None
        file = handles.get(info.storage.file)
        if file is None or file.remote or file.closed or isinstance(file, ConsumedFile):
            continue
        with suppress(CheckpointError):  # the command reports it when it reads the values
            if has_non_finite(info.dtype, file.read(info.storage.offset + info.offset, info.nbytes)):
                found.append(key)
    if found:
        of = f" of {len(chosen)} that were looked at, of {len(small):,}" if len(chosen) < len(small) else ""
        have = "has" if len(found) == 1 else "have"
        yield f"{count(len(found), 'small tensor')}{of} {have} {SAID}: {listing(found)}"


def is_non_finite_note(note: str) -> bool:
    """Return whether a note is from ``non_finite_notes``."""
    return SAID in note


def _is_small(info: TensorInfo) -> bool:
    return bool(size_of_float(info.dtype)) and 0 < info.nbytes <= BYTES and info.is_plain and info.storage is not None


def _spread(keys: list[str]) -> Iterator[str]:
    """Yield at most ``TENSORS`` keys: as many of each role, spread over its layers."""
    roles: dict[str, list[str]] = {}
    for key in keys:
        roles.setdefault(NUMBER_IN_KEY.sub("#", key), []).append(key)
    each = max(1, TENSORS // max(1, len(roles)))
    for some in [*roles.values()][:TENSORS]:
        number = min(each, len(some))
        yield from (some[at * len(some) // number] for at in range(number))
