"""Recognises buffers that a model computes from its configuration, by their keys: they are not weights."""

from __future__ import annotations

import re

__all__ = ["COMPUTED"]

COMPUTED = re.compile(r"(?:^|\.)(?:(?:original_)?inv_freq|masked_bias|rotary_emb\.(?:cos|sin)_cached)$")
"""Matches the key of a floating-point buffer that a model computes itself, such as ``inv_freq``.

Such buffers have the frequencies of a rotary embedding, or the number that masks add to scores (``masked_bias``). They
have a dtype of their own, often float32 while the weights are bfloat16. They must not be averaged.
"""
