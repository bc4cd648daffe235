"""Recognises buffers that a model computes from its configuration, by their keys: they are not weights."""

from __future__ import annotations

import re

__all__ = ["is_computed"]

_COMPUTED = re.compile(r"(?:^|\.)(?:(?:original_)?inv_freq|masked_bias|rotary_emb\.(?:cos|sin)_cached)$")


def is_computed(key: str) -> bool:
    """Return whether a key is that of a floating-point buffer that a model computes: frequencies, the value of masks.

    Such a buffer has its own dtype, often float32 while the weights are bfloat16. It must not be averaged.
    """
    return _COMPUTED.search(key) is not None
