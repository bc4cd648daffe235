"""Low-rank adapters: how files spell them, which tensors they are for, and what they do to values. Opens nothing."""

from .adapter import Adapter, Module, Scales, read_adapter
from .arithmetic import Change, Changing
from .config import AdapterConfig, parse_config
from .conv1d import KnownModel, is_named_conv1d, known_model
from .decomposition import PASSES, Decomposition, decompose, elements_held
from .matching import Names, matched
from .products import changing, wide_dtype

__all__ = [
    "PASSES",
    "Adapter",
    "AdapterConfig",
    "Change",
    "Changing",
    "Decomposition",
    "KnownModel",
    "Module",
    "Names",
    "Scales",
    "changing",
    "decompose",
    "elements_held",
    "is_named_conv1d",
    "known_model",
    "matched",
    "parse_config",
    "read_adapter",
    "wide_dtype",
]
