"""How long a command waits for servers."""

from __future__ import annotations

from ..storage.read.http.pace import allowing

__all__ = ["allowing"]
