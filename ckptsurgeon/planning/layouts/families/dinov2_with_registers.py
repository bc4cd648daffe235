"""DINOv2 with register tokens: transformers' Dinov2WithRegisters, Meta's own code, and timm.

https://github.com/facebookresearch/dinov2, https://github.com/huggingface/pytorch-image-models
"""

from __future__ import annotations

from .dinov2 import family

__all__ = ["FAMILY"]

FAMILY = family("dinov2-with-registers", "dinov2_with_registers.", has_registers=True)
