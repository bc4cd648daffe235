"""DoRA adapters whose magnitudes are not the norms of the base that is given: said, and never of their own base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

SAID = "are not the norms of the base's weights: perhaps the adapter was trained on another base"
LAYERS, ROWS, WIDTH, RANK = 4, 192, 128, 8


def base(folder: str, seed: int, size: float = 0.02) -> dict[str, torch.Tensor]:
    """Save a base whose rows have different norms, as those of trained layers do."""
    draw = torch.Generator().manual_seed(seed)
    state = {
        f"model.layers.{layer}.up_proj.weight": torch.randn(ROWS, WIDTH, generator=draw)
        * size
        * torch.exp(torch.randn(ROWS, 1, generator=draw) * 0.4)
        for layer in range(LAYERS)
    }
    Path(folder).mkdir()
    Path(folder, "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(state, f"{folder}/model.safetensors")
    return state


def adapter(weights: dict[str, torch.Tensor], *, change: float = 0.05, layers: int = LAYERS) -> str:
    """Save a DoRA adapter that was trained on ``weights``: its magnitudes changed by ``change``."""
    draw, state = torch.Generator().manual_seed(9), dict[str, torch.Tensor]()
    for key, weight in list(weights.items())[:layers]:
        name = f"base_model.model.{key.removesuffix('.weight')}"
        a, b = torch.randn(RANK, WIDTH, generator=draw) / 20, torch.randn(ROWS, RANK, generator=draw) / 50
        norms = (weight + 2 * b @ a).norm(dim=1)
        state |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
        state[f"{name}.lora_magnitude_vector"] = norms * (1 + change * torch.randn(ROWS, generator=draw))
    Path("adapter").mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "target_modules": ["up_proj"], "use_dora": True}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    save_file(state, "adapter/adapter_model.safetensors")
    return "adapter"


def noted(folder: str) -> list[str]:
    notes = [note for note in cs.lora_merge(folder, ["adapter"]).notes if SAID in note]
    found = [one for one in cs.check("adapter", base=folder).row("adapter-config").found if SAID in one.what]
    assert [one.status.value for one in found] == ["WARN"] * len(notes)
    return notes


@pytest.mark.costly
@pytest.mark.parametrize("size", [0.005, 0.02, 0.08])
def test_magnitudes_of_another_base(size: float) -> None:
    adapter(base("own", 0))
    base("other", 1, size)
    assert noted("own") == []
    (note,) = noted("other")
    assert note.startswith("for 4 of 4 weights in the sample, the magnitudes in adapter differ by ")
    assert not cs.check("adapter").row("adapter-config").found


@pytest.mark.parametrize("change", [0, 0.05, 0.3])
def test_magnitudes_that_were_trained_further_are_not(change: float) -> None:
    adapter(base("own", 0), change=change)
    assert noted("own") == []


def test_the_same_base_with_weights_of_another_size_is_not() -> None:
    """The magnitudes rise with the norms: the base may have been scaled."""
    adapter(base("own", 0))
    base("other", 0, 0.04)
    assert noted("other") == []


@pytest.mark.costly
@pytest.mark.parametrize("scheme", ["fp8-block", "int8", "int4-group128"])
def test_a_quantised_base_is_decoded(scheme: str) -> None:
    adapter(base("own", 0))
    base("other", 1, 0.1)
    for one in ("own", "other"):
        cs.apply(cs.convert(one, quantize=scheme), f"{one}-coded")
    assert noted("own-coded") == []
    assert noted("other-coded")


def test_one_module_is_not() -> None:
    adapter(base("own", 0), layers=1)
    base("other", 1, 0.1)
    assert noted("other") == []
