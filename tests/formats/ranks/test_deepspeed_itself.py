"""Folders that DeepSpeed itself saved, and the weights that its own tools give for them.

`fixtures/record_deepspeed.py` (`make oracle-deepspeed`) recorded them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.util.notes import is_serious

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "deepspeed"


@pytest.mark.parametrize(
    ("folder", "wanted"),
    [(name, name) for name in ("zero1", "zero2", "zero3", "zero1.universal", "zero2.universal", "tensor.universal")]
    + [("tensor", "tensor.universal"), ("zero1/global_step3", "zero1")],
)
def test_the_weights_are_those_of_deepspeed(folder: str, wanted: str) -> None:
    weights = load_file(RECORDED / f"{wanted}.safetensors")
    assert len(weights) >= 7
    with cs.open_checkpoint(RECORDED / folder) as checkpoint:
        assert [note for note in checkpoint.notes if is_serious(note)] == []
        assert "universal" in checkpoint.format or not any("left out" in note for note in checkpoint.notes)
        assert set(weights) <= set(checkpoint)
        for key, value in weights.items():
            if key != "head.weight":
                assert torch.equal(checkpoint.tensor(key).float(), value.float()), key  # the tools cast the others
        assert torch.equal(checkpoint.tensor("head.weight"), weights["embed.weight"])
        assert checkpoint.ties == {"head.weight": "embed.weight"}
        assert torch.equal(checkpoint.tensor("mean"), torch.arange(3.0))
        assert torch.equal(checkpoint.tensor("number"), torch.tensor(4))
    cs.apply(cs.convert(str(RECORDED / folder)), "out.safetensors")
    assert cs.verify("out.safetensors").ok
