"""``scan``: reports the names that loading a file with pickle would import and call."""

from __future__ import annotations

import os

from ..analysis.scan.findings import Scan
from ..analysis.scan.walk import scan_path
from .inputs.argument_types import Path, Progress, checked

__all__ = ["scan"]


@checked
def scan(path: Path, *, progress: Progress | None = None) -> Scan:
    """Report what loading a file, or any file of a folder, would import and call. Nothing is run.

    ``scan(path).ok`` is true if every file was scanned completely, and loading it does no more than rebuild tensors.
    Tensors in memory and open checkpoints are not accepted, because the bytes of files are scanned. ``progress`` is
    called with (files done, files in total). Raises ConfigError if ``path`` is not a path, SourceError if there is no
    such file.
    """
    return scan_path(os.fspath(path), progress)
