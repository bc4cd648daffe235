"""Adapters of other bases, and adapters whose factors are averaged one by one, are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs


def base(name: str) -> str:
    Path(name).mkdir(parents=True)
    save_file({"model.layers.0.q_proj.weight": torch.ones(4, 4)}, f"{name}/model.safetensors")
    Path(name, "config.json").write_text(json.dumps({"model_type": "llama"}))
    return name


def adapter(name: str, of: str | None, seed: int = 0) -> str:
    Path(name).mkdir()
    draws = torch.Generator().manual_seed(seed)
    key = "base_model.model.model.layers.0.q_proj.lora_"
    factors = {
        f"{key}A.weight": torch.randn(2, 4, generator=draws),
        f"{key}B.weight": torch.randn(4, 2, generator=draws),
    }
    save_file(factors, f"{name}/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "base_model_name_or_path": of}
    Path(name, "adapter_config.json").write_text(json.dumps(config))
    return name


@pytest.mark.parametrize(
    ("of", "named"),
    [("org/Llama-3", False), ("/elsewhere/llama-3/", False), (None, False), ("Qwen/Qwen3-0.6B", True)],
)
def test_an_adapter_of_another_base_is_named(of: str | None, named: bool) -> None:
    plan = cs.lora_merge(base("models/llama-3"), adapter("tuned", of))
    other = "Qwen/Qwen3-0.6B (base_model_name_or_path)"
    said = f"the base of tuned/adapter_model.safetensors is {other}, not llama-3"
    assert (said in plan.notes) == named
    assert not [note for note in plan.notes if "base_model_name_or_path" in note and note != said]


@pytest.mark.parametrize("path", [".", "./", "../llama-3", "sub/..", "model.safetensors", "../link"])
@pytest.mark.parametrize(("of", "named"), [("org/Llama-3", False), ("Qwen/Qwen3-0.6B", True)])
def test_the_folder_of_a_base_has_its_real_name(
    path: str, of: str, named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link has two right names: its own, and that of its folder."""
    adapter("tuned", of)
    base("models/llama-3")
    Path("models/llama-3/sub").mkdir()
    Path("models/link").symlink_to("llama-3")
    monkeypatch.chdir("models/llama-3")
    notes = [note for note in cs.lora_merge(path, "../../tuned").notes if "base_model_name_or_path" in note]
    assert len(notes) == named
    assert all(note.endswith(f", not {'link' if 'link' in path else 'llama-3'}") for note in notes)


SAID = "the factors of adapters (lora_A, lora_B) are merged separately"


def test_factors_that_are_averaged_one_by_one_are_named() -> None:
    both = [adapter("one", "llama", 1), adapter("two", "llama", 2)]
    assert any(note.startswith(SAID) for note in cs.average(both).notes)
    assert any(note.startswith(SAID) for note in cs.merge(both, method="linear", parameters={"weight": 0.5}).notes)
    assert not any(note.startswith(SAID) for note in cs.lora_merge(base("llama"), both, weights=[0.5, 0.5]).notes)
    assert not any(note.startswith(SAID) for note in cs.convert("one").notes)
    tensors = [cs.open_checkpoint(name) for name in both]
    deltas = [one.tensor(KEY.format("B")).double() @ one.tensor(KEY.format("A")).double() for one in tensors]
    cs.apply(cs.average(both), "mean")
    with cs.open_checkpoint("mean") as made:
        found = made.tensor(KEY.format("B")).double() @ made.tensor(KEY.format("A")).double()
    wanted = (deltas[0] + deltas[1]) / 2
    assert float((found - wanted).norm() / wanted.norm()) > 0.3  # which is why
    for one in tensors:
        one.close()


KEY = "base_model.model.model.layers.0.q_proj.lora_{}.weight"
