"""Low-rank adapters: how files spell them, which tensors they are for, and what they do to values. Opens nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import lazy_names

if TYPE_CHECKING:
    from .adapter import Adapter, Module, Scales, read_adapter
    from .agreement import base_notes
    from .arithmetic import Change, Changing
    from .config import AdapterConfig, parse_config
    from .conv1d import KnownModel, is_named_conv1d, known_model
    from .decomposition import PASSES, Decomposition, decompose, elements_held
    from .matching import Names, matched
    from .names import peft_part
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
    "base_notes",
    "changing",
    "decompose",
    "elements_held",
    "is_named_conv1d",
    "known_model",
    "matched",
    "parse_config",
    "peft_part",
    "read_adapter",
    "wide_dtype",
]

__getattr__ = lazy_names(
    __name__,
    {
        ".adapter": (
            "Adapter",
            "Module",
            "Scales",
            "read_adapter",
        ),
        ".agreement": ("base_notes",),
        ".arithmetic": (
            "Change",
            "Changing",
        ),
        ".config": (
            "AdapterConfig",
            "parse_config",
        ),
        ".conv1d": (
            "KnownModel",
            "is_named_conv1d",
            "known_model",
        ),
        ".decomposition": (
            "PASSES",
            "Decomposition",
            "decompose",
            "elements_held",
        ),
        ".matching": (
            "Names",
            "matched",
        ),
        ".names": ("peft_part",),
        ".products": (
            "changing",
            "wide_dtype",
        ),
    },
)
