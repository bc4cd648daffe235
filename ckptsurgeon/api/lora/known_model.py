"""What the config.json beside a checkpoint says of its model."""

from __future__ import annotations

import json
import os
from contextlib import closing

from ...checkpoint.checkpoint import Checkpoint
from ...destinations.hf.files import CONFIG
from ...methods.lora.conv1d import KnownModel, known_model
from ...storage.read._links import leads_out
from ...storage.small_files import SMALL_BYTES, read_file

__all__ = ["model_at"]


def model_at(path: str, checkpoint: Checkpoint) -> KnownModel | None:
    """Return the model whose weights are a folder or a file; None where no config.json beside them says it.

    ``path`` is '' of weights in memory, beside which nothing lies.
    """
    if not path:
        return None
    try:
        config = json.loads(_beside(checkpoint) if "://" in path else _here(path))
    except (OSError, ValueError, RecursionError):
        return None
    return known_model(config) if isinstance(config, dict) else None


def _here(path: str) -> bytes:
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    path = os.path.join(folder, CONFIG)
    return b"" if leads_out(path) else read_file(path)


def _beside(checkpoint: Checkpoint) -> bytes:
    """Return what lies beside a checkpoint at an address; nothing, where the address tells no names."""
    for weights in checkpoint.open_files().values():
        folder = weights.folder()
        if CONFIG not in folder.names():
            return b""
        with closing(folder.file(CONFIG)) as file:
            return file.read(0, min(SMALL_BYTES, file.size))
    return b""
