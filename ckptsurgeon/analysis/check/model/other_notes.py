"""Reports the notes of ``ckpt inspect`` that no other check reports, such as contradictions between two files."""

from __future__ import annotations

from ._inspect_notes import damaged, noted_check

__all__ = ["CHECK"]

CHECK = noted_check("other-notes", "the files have no other contradictions", damaged)
