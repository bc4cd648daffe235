"""Which of the checkpoints that a training run leaves in its folder is meant.

ESPnet leaves every epoch, ``checkpoint.pth`` to resume from, and per criterion ``valid.acc.best.pth`` and averages, of
which its recipes decode with ``valid.acc.ave.pth`` (espnet2/main_funcs/average_nbest_models.py, asr.sh).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["chosen_of_run", "example_of_run", "lost_of_run"]

_KINDS = (
    (re.compile(r"valid\.acc\.ave\.pth"), "the average that ESPnet decodes with"),
    (re.compile(r"(?:train|valid)\..+\.ave\.pth"), "the one average"),
    (re.compile(r"(?:train|valid)\..+\.ave_\d+best\.pth"), "the one average"),
    (re.compile(r"(?:train|valid)\..+\.best\.pth"), "the one best epoch"),
)
"""What to take, the first kind of which there is any: averages before epochs."""


def chosen_of_run(names: Sequence[str]) -> tuple[str, str]:
    """Return the checkpoint to take of an ESPnet run and why; two empty texts where several criteria contend."""
    for pattern, why in _KINDS:
        found = [name for name in names if pattern.fullmatch(name)]
        if found:
            return (found[0], why) if len(found) == 1 else ("", "")
    return "", ""


def lost_of_run(names: Sequence[str], broken: Sequence[str]) -> str:
    """Return the link to nothing that would be taken, or might, were its target there; '' for none."""
    for pattern, _ in _KINDS:
        for name in broken:
            if pattern.fullmatch(name):
                return name
        if any(pattern.fullmatch(name) for name in names):
            return ""
    return ""


def example_of_run(names: Sequence[str]) -> str:
    """Return the name to show as the one that may be meant."""
    found = [name for pattern, _ in _KINDS for name in names if pattern.fullmatch(name)]
    return (found or list(names))[0]
