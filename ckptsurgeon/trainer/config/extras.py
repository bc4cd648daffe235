"""The packages of the extra ``train``, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import ConfigError

__all__ = ["require_package"]


def require_package(name: str) -> Any:
    """Return a package; raises ConfigError where it, or a library that it needs, is missing."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: soundfile without libsndfile
        raise ConfigError(
            f"this needs the package {name}, which cannot be imported: {error}.",
            hint="pip install 'ckptsurgeon[train]' installs it.",
        ) from error
