"""What the oldest supported torch cannot do."""

from __future__ import annotations

import pytest
import torch

__all__ = ["needs_torch_2_7"]

OLD = not hasattr(torch.compiler, "is_exporting")
needs_torch_2_7 = pytest.mark.skipif(OLD, reason="torch 2.6 does not shard on CPUs, nor compile models of transformers")
