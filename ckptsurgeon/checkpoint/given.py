"""What the verbs take for a checkpoint: a path, an open one, a dict of tensors, a module; and what it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from ..errors import ConfigError
from ..tensors.info import TensorInfo
from ..util.text import brief_repr
from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CheckpointLike", "check_given", "holds_tensors", "is_given", "is_module", "path_of", "place_of"]

CheckpointLike: TypeAlias = "str | os.PathLike[str] | Checkpoint | Mapping[str, object] | nn.Module"
"""A path or URI, a checkpoint that is open and stays so, a dict of tensors as ``torch.load`` gives it, or a module."""

WANTED = "a path, a checkpoint or a dict of tensors"


def is_module(value: object) -> bool:
    """Whether something is an ``nn.Module``; torch is not imported to know."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def holds_tensors(value: object) -> bool:
    """Whether there is a tensor in a nest of dicts and lists."""
    from .in_memory import tensor_in

    return tensor_in(value)


def is_given(value: object) -> bool:
    """Whether something is meant for one checkpoint, and not for several, whatever it holds."""
    return isinstance(value, (str, os.PathLike, Mapping)) or is_module(value)


def check_given(value: object) -> None:
    """Raise ConfigError for what is no checkpoint."""
    if not is_given(value):
        raise ConfigError(f"{brief_repr(value)} is not {WANTED}.")
    if isinstance(value, Checkpoint) or not isinstance(value, Mapping):
        return
    if isinstance(next(iter(value.values()), None), TensorInfo):  # of an archive, each value is read from its file
        raise ConfigError(
            "a dict of TensorInfo has no values: those are headers.", hint="Pass the Checkpoint that they are of."
        )


def path_of(given: object) -> str:
    """Return what messages call a checkpoint: its path, ``<dict>``, or ``<Net>`` of a module of that class."""
    if isinstance(given, Checkpoint):
        return given.path
    if isinstance(given, (str, os.PathLike)):
        return os.fspath(given)
    return "<dict>" if isinstance(given, Mapping) else f"<{type(given).__name__}>"


def place_of(given: object) -> str:
    """Return the path at which a checkpoint lies, '' of one in memory, beside which nothing lies."""
    if isinstance(given, Checkpoint):
        return "" if given.in_memory else given.path
    return os.fspath(given) if isinstance(given, (str, os.PathLike)) else ""
