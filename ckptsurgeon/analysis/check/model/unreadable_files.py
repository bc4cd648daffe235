"""Every file beside the weights can be read as what its name says."""

from __future__ import annotations

from ._noted import noted_check, unconfigured

__all__ = ["CHECK"]

CHECK = noted_check("unreadable-files", "files beside the weights can be read", unconfigured)
