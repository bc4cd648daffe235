"""Reads sizes such as 5GB, and divides the tensors of an output between shards of such a size."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...errors import ConfigError
from ...formats.base.header import OutTensor, Writer
from ...formats.base.sharded_writer import split_shards
from ...util.text import count, escape, human_bytes, listing
from .option_names import OPTIONS, Spelling

__all__ = ["DEFAULT_SHARD", "large_tensor_notes", "parse_size", "sharded"]

DEFAULT_SHARD = "5GB"
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SMALL = 10**6
"""A size of shards or memory below this must have a unit: a number without one is probably meant in MB or GB.

With ``5``, a user means 5 GB, not 5 bytes.
"""


def parse_size(text: str | int, option: str = "--max-shard-size", spelling: Spelling = OPTIONS) -> int:
    """Return a size such as ``5GB``, ``200 MB`` or ``1GiB`` in bytes.

    A number without a unit is a number of bytes, and must be at least 1000000. Raises ConfigError for any other string;
    its message contains ``option``.
    """
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(text), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found and found[2].upper() in _UNITS else 0
    if found is None or size <= 0:
        raise ConfigError(
            f"{spelling.given(option, escape(str(text)))} is not a valid size.",
            hint="Write a number and a unit, as in 5GB or 200MB.",
        )
    if not found[2] and size < SMALL:
        number = found[1]
        raise ConfigError(
            f"{spelling.given(option, number)} has no unit, so it means {count(size, 'byte')}.",
            hint=f"Write {number}GB or {number}MB, or {number}B if it is bytes.",
        )
    return size


def sharded(tensors: Sequence[OutTensor], text: str, writer: Writer, spelling: Spelling) -> list[list[OutTensor]]:
    """Return the tensors of each shard; raises ConfigError if the shard size ``text`` is not valid, or too small."""
    size = parse_size(text, spelling=spelling)
    shards = split_shards(tensors, size, shares=writer.shares)
    given = spelling.given("--max-shard-size", text)
    stored = [tensor.nbytes for tensor in tensors if not tensor.alias_of]
    if size < SMALL and len(shards) == len(stored) > 1:
        raise ConfigError(
            f"{given} makes {len(shards)} shards, one for each tensor.",
            hint=f"Write a size that several tensors fit in, as in {_fitting(2 * max(stored))}.",
        )
    return shards


def large_tensor_notes(slots: Iterable[Mapping[str, tuple[int, int]]], text: str, spelling: Spelling) -> Iterator[str]:
    """Yield a note on the tensors that are larger than the shard size ``text``, so that their files are larger too.

    ``slots`` has {key: (offset, number of bytes)} of each shard.
    """
    size = parse_size(text, spelling=spelling)
    large = {key: nbytes for shard in slots for key, (_, nbytes) in shard.items() if nbytes > size}
    if large:
        given, most = spelling.given("--max-shard-size", text), human_bytes(max(large.values()))
        are, and_so = ("is", "is its file") if len(large) == 1 else ("are", "are their files")
        tensors, up_to = count(len(large), "tensor"), "" if len(large) == 1 else "up to "
        yield (
            f"{given}: {tensors} {are} larger ({up_to}{most}), and so {and_so}, because a tensor is never divided: "
            f"{listing([*large])}"
        )


def _fitting(nbytes: int) -> str:
    """Return a size as a user writes it, rounded up, such as ``3MB``: at least ``nbytes``, and at least ``1KB``."""
    unit = next((unit for unit in ("GB", "MB") if nbytes >= _UNITS[unit]), "KB")
    return f"{max(1, -(-nbytes // _UNITS[unit]))}{unit}"
