"""What is asked of ``lora extract``. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from ...errors import ConfigError
from ...methods.lora.conv1d import KnownModel
from ..transplant.options import Flag

__all__ = ["Extraction", "check_extraction"]

DTYPES_OF_FACTORS = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True)
class Extraction:
    """What was asked for: see ``lora_extract``; and what is known of the model."""

    rank: int = 16
    alpha: float | None = None
    include: tuple[Flag, ...] = ()
    exclude: tuple[Flag, ...] = ()
    embeddings: bool = False
    transposed: bool = False
    save_modules: bool = False
    dtype: str = "float32"
    seed: int = 0
    model: KnownModel | None = None


def check_extraction(asked: Extraction) -> None:
    """Raise ConfigError for what no adapter can be."""
    if asked.rank < 1:
        raise ConfigError(f"--rank {asked.rank} is no rank.", hint="Use a whole number from 1 on, as in 16.")
    if asked.alpha is not None and not (isfinite(asked.alpha) and asked.alpha > 0):
        raise ConfigError(
            f"--alpha {asked.alpha} is no alpha.", hint="Use a number above zero; by default it is the rank."
        )
    if asked.dtype not in DTYPES_OF_FACTORS:
        raise ConfigError(f"--dtype {asked.dtype} is none of factors.", hint=f"Use {', '.join(DTYPES_OF_FACTORS)}.")
    if not 0 <= asked.seed < 2**63:
        raise ConfigError(f"--seed {asked.seed} is no seed.", hint="Use a whole number from 0 on.")
