"""What PEFT itself makes of adapters, recorded: ours is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from fixtures.peft_cases import CASES

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "peft"


@pytest.mark.parametrize("name", CASES)
def test_a_merge_is_peft_s_own(name: str) -> None:
    cs.apply(cs.lora_merge(GOLDEN / "base.safetensors", GOLDEN / name), "out.safetensors")
    base, found = load_file(GOLDEN / "base.safetensors"), load_file("out.safetensors")
    changed = load_file(GOLDEN / name / "merged.safetensors")
    assert changed
    assert found.keys() == base.keys()
    for key, value in found.items():
        if key in changed:
            assert torch.linalg.norm(value - changed[key]) <= 1e-6 * torch.linalg.norm(changed[key]), key
        else:
            assert torch.equal(value, base[key]), key
    verified = cs.verify("out.safetensors")
    assert verified.ok
    assert verified.compared == len(base)


@pytest.mark.parametrize("name", ["dora", "dora-conv1d-hf", "saved", "lora-bias"])
def test_a_weight_of_a_half_goes_half_the_way(name: str) -> None:
    cs.apply(cs.lora_merge(GOLDEN / "base.safetensors", GOLDEN / name, weights=[0.5]), "out.safetensors")
    base, found = load_file(GOLDEN / "base.safetensors"), load_file("out.safetensors")
    for key, whole in load_file(GOLDEN / name / "merged.safetensors").items():
        assert torch.allclose(found[key], (base[key] + whole) / 2, atol=1e-6), key


def test_an_adapter_with_its_opposite_is_nothing() -> None:
    plan = cs.lora_merge(GOLDEN / "base.safetensors", [GOLDEN / "plain", GOLDEN / "plain"], weights=[0.7, -0.7])
    cs.apply(plan, "out.safetensors")
    base, found = load_file(GOLDEN / "base.safetensors"), load_file("out.safetensors")
    assert all(torch.equal(found[key], value) for key, value in base.items())
