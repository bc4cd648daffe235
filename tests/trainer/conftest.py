"""What the tests of the trainer can use."""

from __future__ import annotations

from .toy import init, source

__all__ = ["init", "source"]
