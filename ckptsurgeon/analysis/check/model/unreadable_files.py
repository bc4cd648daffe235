"""Checks that every file in the folder of the weights can be read in the format of its name, such as JSON."""

from __future__ import annotations

from ._inspect_notes import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("unreadable-files", "the other files of the folder can be read", unconfigured)
