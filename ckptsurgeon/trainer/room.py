"""Whether a folder is free for a new run: it holds none, and nothing that a run did not write."""

from __future__ import annotations

import os

from ..errors import ConfigError, OutputError
from ..text import escape, listing
from .run_folder import RunFolder

__all__ = ["OWN", "check_room"]

OWN = frozenset(
    ("best.safetensors", "checks.json", "config.yaml", "curves.png", "events", "last", "lineage.json", "lock",
     "log.jsonl", "result.json", "steps")
)  # fmt: skip
"""What a run's folder has in it; what begins with a dot is nobody's concern."""


def check_room(folder: RunFolder) -> None:
    """Raise ConfigError for a folder that holds a run, OutputError for one that holds other things."""
    if folder.holds_a_run:
        raise ConfigError(
            f"{escape(folder.path)} holds a run, at step {folder.last_step()}.",
            hint="Go on with it by --resume, or start another with --run.",
        )
    if os.path.lexists(folder.path) and not os.path.isdir(folder.path):
        raise OutputError(f"{escape(folder.path)} is no folder.", hint="Name one for the run with --run.")
    others = sorted(name for name in _names(folder.path) if name not in OWN and not name.startswith("."))
    if others:
        raise OutputError(
            f"{escape(folder.path)} holds other things than a run: {listing(others, 3, where='')}.",
            hint="Name a folder of the run's own with --run, which need not be there yet.",
            details=others,
        )


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []
