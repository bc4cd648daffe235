"""Finds values that small tensors cannot have: a negative variance, or a scale where its logarithm is stored.

Commands that otherwise read only headers read these few values too.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from math import exp, inf, isfinite, log
from typing import NamedTuple

from ...errors import CheckpointError
from ...storage.read.base import File
from ...storage.read.local import is_local
from ...tensors.info import TensorInfo
from ...util.note_kind import NoteKind
from ...util.notes import Note
from ...util.text import count, escape, listing

__all__ = [
    "CHECKED_ENDS",
    "TENSORS",
    "Extent",
    "ImpossibleValues",
    "impossible_value_notes",
    "impossible_values",
    "read_extents",
    "said_of",
]

VARIANCE = re.compile(r"(?:^|[._/])(?:running_var|moving_variance)(?::0)?$")
"""Matches the keys of variances in batch norms, also in Keras."""
FLAX = re.compile(r"^batch_stats[./].*[./]var$")
"""Matches the keys of variances in batch norms of Flax."""
NEGATIVE = -1e-6
"""A variance below this is not a rounding error: variance + eps (usually 1e-5) may be negative, and its root NaN."""
UPDATES = 100
"""After this many training steps, statistics cannot have their initial values any more."""
LOGIT_SCALE = re.compile(r"(?:^|[._/])(?:log_)?logit_scale(?:_[at])?$")
"""Matches the keys of the logarithms of scales in CLIP, SigLIP, CLAP and others."""
LARGEST_SCALE = 1e4
"""The largest plausible scale of logits; CLIP limits it to 100, and SigLIP's are about 117."""
LOG_DECAY = re.compile(r"(?:^|[._/])A(?:_b)?_logs?$")
"""Matches the keys of A_log of Mamba, Jamba, Vision Mamba, gated delta nets and others."""
DECAY = re.compile(r"(?:^|\.)ssm_a(?:\.weight)?$")
"""Matches the keys of A in GGUF files, which are -exp(A_log)."""
FEWEST, LOWEST = 2, -1.5
"""A finding needs at least ``FEWEST`` wrong tensors of decays; a wrong A_log has a value below ``LOWEST``.

An A_log is log(1), log(2), ... before training, or the logarithm of a random number from 1 to 16. A trained one may
have some negative values, but not in all rows of all layers.
"""
TENSORS, BYTES = 512, 1 << 14
"""The largest number of small tensors that a command reads for notes, and of bytes of each tensor."""
MANY = 64
"""If a tensor has more values than this, and none is negative, its extremes need not be computed: this saves time."""
INTEGERS = ("int64", "int32")
DTYPES = {"float64": "d", "float32": "f", "float16": "e", "int64": "q", "int32": "i"}
"""{dtype that is read: its format in the module struct}; bfloat16 is read, too."""

Extent = Callable[[str], tuple[float, float] | None]
"""A function from the key of a tensor to its (lowest value, highest value); it returns None if they are not known.

If no value is negative, it may return (0, infinity) instead.
"""


class ImpossibleValues(NamedTuple):
    """Tensors with impossible values. ``said`` ends the sentence "5 tensors …"; ``todo`` is the advice.

    ``is_serious`` is true if the model computes NaN with these values.
    """

    keys: list[str]
    said: str
    todo: str
    is_serious: bool = False


def impossible_value_notes(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File]) -> Iterator[Note]:
    """Yield notes on values that cannot be right, from at most ``TENSORS`` tensors of local files."""
    for one in impossible_values(tensors, read_extents(tensors, handles)):
        yield said_of(one)


def said_of(one: ImpossibleValues) -> Note:
    """Return a finding as a note."""
    kind = NoteKind.NEGATIVE_VARIANCES if one.is_serious else NoteKind.REMARK
    return Note(kind, f"{count(len(one.keys), 'tensor')} {one.said}: {listing([escape(key) for key in one.keys])}")


def read_extents(tensors: Mapping[str, TensorInfo], handles: Mapping[str, File], *, is_exact: bool = False) -> Extent:
    """Return a function that reads the lowest and the highest value of at most ``TENSORS`` tensors of local files.

    If ``is_exact`` is false, it may return (0, infinity) for a tensor without negative values.
    """
    extents: dict[str, tuple[float, float] | None] = {}

    def extent(key: str) -> tuple[float, float] | None:
        if key not in extents and len(extents) < TENSORS:
            extents[key] = _read_extent(tensors[key], handles, is_exact=is_exact)
        return extents.get(key)

    return extent


def impossible_values(tensors: Mapping[str, TensorInfo], extent: Extent) -> Iterator[ImpossibleValues]:
    """Yield findings on tensors whose values are impossible, or very unlikely; ``extent`` reads the values of a key."""
    keys = [key for key in tensors if key.endswith(CHECKED_ENDS)]
    variances = [key for key in keys if VARIANCE.search(key) or FLAX.search(key)]
    yield from _negative_variances(variances, extent)
    yield from _zero_variances(variances, extent)
    yield from _initial_statistics(tensors, variances, extent)
    yield from _large_scales([key for key in keys if LOGIT_SCALE.search(key) and len(tensors[key].shape) < 2], extent)
    yield from _decays(keys, extent)


CHECKED_ENDS = ("var", "variance", "variance:0", "logit_scale", "_a", "_t", "_log", "_logs", "ssm_a.weight")
"""The ends of the keys of all tensors that are checked: other tensors are skipped fast."""


def _negative_variances(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    found = [key for key in keys if (ends := extent(key)) is not None and ends[0] < NEGATIVE]
    if found:
        said = f"of running variances {'has' if len(found) == 1 else 'have'} negative values: batch norms compute NaN"
        todo = "Take these statistics from the source; a merge with weights below 0 makes such variances, too."
        yield ImpossibleValues(found, said, todo, is_serious=True)


def _zero_variances(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    found = [key for key in keys if extent(key) == (0, 0)]
    if found:
        said = (
            f"of running variances {'is' if len(found) == 1 else 'are'} all 0: batch norms divide by the root of their "
            "eps, so their outputs are hundreds of times too large, unless their inputs never vary"
        )
        yield ImpossibleValues(found, said, "Take running_mean and running_var from the source: they were lost.")


def _initial_statistics(
    tensors: Mapping[str, TensorInfo], variances: Iterable[str], extent: Extent
) -> Iterator[ImpossibleValues]:
    found, steps = [], 0.0
    for key in variances:
        mean, number = (key.removesuffix("running_var") + end for end in ("running_mean", "num_batches_tracked"))
        if mean in tensors and number in tensors and extent(key) == (1, 1) and extent(mean) == (0, 0):
            ends = extent(number)
            if ends is not None and ends[1] >= UPDATES:
                found.append(key)
                steps = max(steps, ends[1])
    if found:
        said = (
            f"of running variances {'is' if len(found) == 1 else 'are'} all 1, and the running means of the same "
            f"modules are all 0, as before training, although num_batches_tracked is up to {steps:,.0f}"
        )
        yield ImpossibleValues(found, said, "Take running_mean and running_var from the source: they were lost.")


def _large_scales(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    found = {key: ends[1] for key in keys if (ends := extent(key)) is not None and log(LARGEST_SCALE) < ends[1] < inf}
    if found:
        largest = max(found.values())
        scale = exp(largest) if largest < 700 else inf
        said = (
            f"with logarithms of scales {'has' if len(found) == 1 else 'have'} values up to {largest:.5g}, which means "
            f"a scale of {scale:.2g} (CLIP's is at most 100): perhaps the scale itself is stored"
        )
        yield ImpossibleValues([*found], said, "Store the logarithm of the scale: log(100) is 4.605.")


def _decays(keys: Iterable[str], extent: Extent) -> Iterator[ImpossibleValues]:
    keys = list(keys)
    logs = _if_all([key for key in keys if LOG_DECAY.search(key)], extent, lambda low, high: low < LOWEST and high < 0)
    if len(logs) >= FEWEST:
        said = "named A_log have only negative values: perhaps they are A itself, which is -exp(A_log)"
        yield ImpossibleValues(logs, said, "Store log(-A); otherwise the decays of all layers are wrong.")
    decays = _if_all([key for key in keys if DECAY.search(key)], extent, lambda _, high: high > 0)
    if len(decays) >= FEWEST:
        said = "named ssm_a have positive values: perhaps they are A_log, and not A, which is -exp(A_log)"
        yield ImpossibleValues(decays, said, "Store -exp(A_log): llama.cpp multiplies by A itself.")


def _if_all(keys: Iterable[str], extent: Extent, is_odd: Callable[[float, float], bool]) -> list[str]:
    """Return the keys whose extents are known, if ``is_odd(lowest, highest)`` is true for all of them; else []."""
    found = []
    for key in keys:
        ends = extent(key)
        if ends is not None and not is_odd(*ends):
            return []
        found += [key] if ends is not None else []
    return found


def _read_extent(info: TensorInfo, handles: Mapping[str, File], *, is_exact: bool) -> tuple[float, float] | None:
    """Return the lowest and highest value at the beginning of a tensor.

    The result is None if the values cannot be read, or if one is NaN or infinite.
    """
    file = handles.get(info.storage.file) if info.storage is not None else None
    if info.storage is None or not is_local(file):
        return None
    if not info.is_plain or not info.numel or not (info.dtype in DTYPES or info.dtype == "bfloat16"):
        return None
    with suppress(CheckpointError):  # commands that read the values report such errors
        number = min(info.numel, BYTES // info.itemsize)
        return _ends(
            bytes(file.read(info.storage.offset + info.offset, number * info.itemsize)), info, is_exact=is_exact
        )
    return None


def _ends(raw: bytes, info: TensorInfo, *, is_exact: bool) -> tuple[float, float] | None:
    size = info.itemsize
    if raw == raw[:size] * (len(raw) // size):  # the usual case, and fast
        raw = raw[:size]
    number = len(raw) // size
    is_skipped = number > MANY and info.dtype not in INTEGERS and not is_exact
    if is_skipped and raw[size - 1 :: size].isascii():  # no sign bit is set
        return 0.0, inf
    if info.dtype == "bfloat16":
        raw = b"".join(b"\0\0" + raw[at : at + 2] for at in range(0, len(raw), 2))
    values = struct.unpack(f"<{number}{DTYPES.get(info.dtype, 'f')}", raw)
    ends = float(min(values)), float(max(values))
    return ends if all(map(isfinite, ends)) and isfinite(sum(values)) else None
