"""What the oldest supported torch cannot do."""

from __future__ import annotations

import importlib.util

import pytest
import torch

__all__ = ["needs_e8m0", "needs_mesh_layouts", "needs_torch_2_7", "skip_without_uneven_shards"]

OLD = not hasattr(torch.compiler, "is_exporting")
NEWER = importlib.util.find_spec("torch.distributed._mesh_layout") is not None
needs_torch_2_7 = pytest.mark.skipif(OLD, reason="torch 2.6 does not shard on CPUs, nor compile models of transformers")
needs_e8m0 = pytest.mark.skipif(not hasattr(torch, "float8_e8m0fnu"), reason="this torch has no float8_e8m0fnu")
needs_mesh_layouts = pytest.mark.skipif(not NEWER, reason="this torch cannot load DTensors of torch 2.13")


def skip_without_uneven_shards() -> None:
    """Skip the test if torch cannot shard uneven sizes by FSDP2 and tensor parallelism together (2.6)."""
    if OLD:
        pytest.skip("this torch does not shard uneven sizes by FSDP2 and tensor parallelism together")
