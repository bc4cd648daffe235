"""The work before the first byte is written grows with the tensors, not with the tensors times the parts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.checkpoint import Checkpoint
from ckptsurgeon.engine import output_parts


def test_each_source_is_searched_for_checksums_once(monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({f"layers.{number}": torch.ones(1000) for number in range(20)}, "a.safetensors")
    seen: list[Checkpoint] = []
    search = output_parts._may_have_checksums

    def counted(source: Checkpoint) -> bool:
        seen.append(source)
        return search(source)

    monkeypatch.setattr(output_parts, "_may_have_checksums", counted)
    cs.apply(cs.rename("a.safetensors", map=["layers=blocks"]), "out", max_shard_size="8KB")
    assert len(list(Path("out").glob("*.safetensors"))) == 10
    assert len(seen) == 1
