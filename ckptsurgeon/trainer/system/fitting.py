"""A batch that a GPU has no memory for, as an error that names one to try."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...errors import ConfigError
from ...util.text import human_bytes
from ..config.settings import Settings

__all__ = ["explain_out_of_memory"]


@contextmanager
def explain_out_of_memory(settings: Settings) -> Iterator[None]:
    """Raise ConfigError where the block has no memory: half the clips at a time, twice as often, are the same step."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        size, times = settings.batch_size, settings.accumulate
        smaller = f"--set batch_size={-(-size // 2)} --set accumulate={2 * times}" if size > 1 else ""
        less = "" if settings.gradient_checkpointing else "--set gradient_checkpointing=true"
        hint = " or ".join(filter(None, (smaller, less)))
        raise ConfigError(
            f"the GPU{_size()} has no memory for train.batch_size {size}.",
            hint=f"Try {hint}." if hint else "Train on shorter clips: train.data.max_s.",
        ) from error


def _size() -> str:
    if not torch.cuda.is_available():
        return ""
    return f", of {human_bytes(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)},"
