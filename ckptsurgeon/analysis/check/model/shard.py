"""A shard that is checked alone is the one that its index describes."""

from __future__ import annotations

from ._noted import damaged, noted_check

__all__ = ["CHECK"]

CHECK = noted_check("shard", "the file is a whole model", damaged)
