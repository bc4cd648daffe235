"""Finds NaN and infinite values in small tensors, such as norms and scales, for commands that read only headers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...tensors.non_finite import has_non_finite, is_masked, size_of_float
from ...util.text import NUMBER_IN_KEY, count, listing

__all__ = ["SmallSample", "is_non_finite_note", "non_finite_notes", "sampled_small_tensors"]

TENSORS = 64
"""How many small tensors are read, at most."""
MOST = 64 * TENSORS
"""About how many small tensors are sorted by role, at most, spread over the model."""
SAID = "NaN or infinite values"
BYTES = 32 << 10
"""The largest small tensor: 8192 values in float32."""


@dataclass(frozen=True)
class SmallSample:
    """The bytes of some small tensors of floats, by key, and the number of all small tensors (``of``)."""

    raw: Mapping[str, bytes]
    of: int


def sampled_small_tensors(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> SmallSample:
    """Read at most ``TENSORS`` small tensors of floats, some of each role (name without numbers).

    ``handles`` maps each ``Storage.file`` to the open file; remote files are not read.
    """
    small = [key for key, info in tensors.items() if _is_small(info)]
    found = {}
    for key in _spread([key for key in small[:: len(small) // MOST + 1] if not is_masked(key)]):
        info = tensors[key]
        assert info.storage is not None
        file = handles.get(info.storage.file)
        if not is_local(file):
            continue
        with suppress(CheckpointError):  # the command reports it when it reads the values
            found[key] = file.read(info.storage.offset + info.offset, info.nbytes)
    return SmallSample(found, len(small))


def non_finite_notes(tensors: Mapping[str, TensorInfo], sample: SmallSample) -> Iterator[str]:
    """Yield a note if small tensors of floats have NaN or infinite values."""
    found = [key for key, raw in sample.raw.items() if has_non_finite(tensors[key].dtype, raw)]
    if found:
        of = f" of {len(sample.raw)} that were looked at, of {sample.of:,}" if len(sample.raw) < sample.of else ""
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
