"""Which layouts are compared: those of two state dicts with other keys or inputs, and of no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.transplant import recognition

STATE = {"encoder.weight": torch.ones(4, 4), "encoder.bias": torch.ones(4)}


def test_state_dicts_with_the_same_keys_and_inputs_are_not_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    """That would load every known family, to find one layout twice."""
    seen = []
    monkeypatch.setattr(recognition, "known_networks", lambda tensors: seen.append(tensors) or [])
    torch.save(STATE, "src.pth")
    for sizes in ("[4, 4]", "[2, 4]", "[4, 2]"):
        Path("dst.yaml").write_text(
            f"model: {{tensors: {{encoder.weight: {{shape: {sizes}, init: zeros}}, encoder.bias: {{shape: [4], init: zeros}}}}}}"
        )
        cs.transplant("src.pth", "dst.yaml", on_mismatch="init")
        assert len(seen) == (sizes == "[4, 2]")


def test_numbers_of_heads_that_no_conversion_uses_are_noted() -> None:
    torch.save(STATE, "src.pth")
    torch.save(STATE, "dst.pth")
    said = "--heads has no effect: no source needs a conversion that uses the numbers of heads"
    assert said in cs.transplant("src.pth", "dst.pth", heads="2").notes
    assert said not in cs.transplant("src.pth", "dst.pth").notes
