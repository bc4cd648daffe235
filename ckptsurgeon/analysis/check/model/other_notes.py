"""What else the files of the folder contradict, as ckpt inspect notes it."""

from __future__ import annotations

from ._noted import damaged, noted_check

__all__ = ["CHECK"]

CHECK = noted_check("other-notes", "nothing else contradicts", damaged)
