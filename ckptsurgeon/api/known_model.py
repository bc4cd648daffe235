"""What the config.json beside a checkpoint says of its model."""

from __future__ import annotations

import json
import os

from ..lora import KnownModel, known_model
from .model_folders import BYTES, CONFIG

__all__ = ["model_at"]


def model_at(path: str) -> KnownModel | None:
    """Return the model whose weights are a folder or a file; None where no config.json beside them says it."""
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    try:
        with open(os.path.join(folder, CONFIG), "rb") as file:
            config = json.loads(file.read(BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return known_model(config) if isinstance(config, dict) else None
