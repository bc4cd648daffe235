"""Checks that the file is a whole model, not a shard or a file with missing parts.

A shard that is checked alone must have all tensors that its index lists for it.
"""

from __future__ import annotations

from ..check import without_files
from ..subject import Subject
from ._inspect_notes import damaged, noted_check

__all__ = ["CHECK"]


def _against(subject: Subject) -> str:
    return damaged(subject) or without_files(subject)


CHECK = noted_check("shard", "the file is a whole model", _against)
