"""Sizes as people write them, and which of them are a slip: ``5`` is not five gigabytes."""

from __future__ import annotations

import re

from ...errors import ConfigError
from ...util.text import count, escape

__all__ = ["check_shards", "parse_size"]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SMALL = 10**6
"""Nobody wants shards or memory of less by intent, but to try things out: the unit is missing, or wrong."""


def parse_size(text: str | int, option: str = "--max-shard-size") -> int:
    """Return the bytes of ``5GB``, ``200 MB``, ``1GiB`` or a plain number of 1 MB or more; raises ConfigError."""
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(text), re.ASCII)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found and found[2].upper() in _UNITS else 0
    if found is None or size <= 0:
        raise ConfigError(f"{option} {escape(str(text))} is no size.", hint="Write 5GB or 200MB.")
    if not found[2] and size < SMALL:
        number = found[1]
        raise ConfigError(
            f"{option} {number} is {count(size, 'byte')}.", hint=f"Write {number}GB or {number}MB; {number}B is bytes."
        )
    return size


def check_shards(size: int, text: str, shards: int, tensors: int) -> None:
    """Raise ConfigError for a size below 1 MB that gives every one of several tensors a shard of its own."""
    if size < SMALL and shards == tensors > 1:
        raise ConfigError(
            f"--max-shard-size {text} makes {shards} shards, one for each tensor.",
            hint="Write a size that several tensors fit in, as in 5GB or 200MB.",
        )
