"""Checks the dtype that the factors of a new adapter shall have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import ConfigError
from ...planning.transplant.options import Options

if TYPE_CHECKING:
    import torch

__all__ = ["factor_dtype"]

ALLOWED = ("float32", "bfloat16", "float16", "float64")


def factor_dtype(dtype: str | torch.dtype | None) -> str:
    """Return the name of a dtype for factors, '' for None; raises ConfigError for one that factors cannot have."""
    found = Options.of(dtype=str(dtype) if dtype is not None else None).dtype
    if found not in ("", *ALLOWED):
        raise ConfigError(f"--dtype {found} is not a valid dtype for factors.", hint=f"Use {', '.join(ALLOWED)}.")
    return found
