"""How long a command waits for servers."""

from __future__ import annotations

from ..sources import allowing

__all__ = ["allowing"]
