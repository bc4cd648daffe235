"""The trainer: models that come with ckptsurgeon, and what trains them. Importing it loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .report import read_report
    from .result import Trained
    from .training import train

__all__ = ["Trained", "read_report", "train"]

__getattr__ = lazy_names(__name__, {".report": ("read_report",), ".result": ("Trained",), ".training": ("train",)})
