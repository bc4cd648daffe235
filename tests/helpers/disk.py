"""What waits until files are on disk, as it was before ``tests/conftest.py`` replaced it."""

from __future__ import annotations

import os

__all__ = ["SYNCS"]

SYNCS = {name: getattr(os, name) for name in ("fsync", "fdatasync", "sync")}
