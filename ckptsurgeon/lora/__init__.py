"""Low-rank adapters: how files spell them, which tensors they are for, and what they do to values. Opens nothing."""

from .adapter import Adapter, Module, Scales, read_adapter
from .arithmetic import Change, Changing, changing, wide_dtype
from .config import AdapterConfig, parse_config
from .matching import Names, matched

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Change",
    "Changing",
    "Module",
    "Names",
    "Scales",
    "changing",
    "matched",
    "parse_config",
    "read_adapter",
    "wide_dtype",
]
