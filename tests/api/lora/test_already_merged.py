"""An adapter that another program has merged into the base: the base has its modules_to_save, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import peft_folder

Tensors = dict[str, torch.Tensor]

BASE = {"q.weight": torch.ones(4, 4), "head.weight": torch.ones(6, 4), "head.bias": torch.ones(6)}
FACTORS = {"q.lora_A.weight": torch.ones(2, 4), "q.lora_B.weight": torch.full((4, 2), 0.5)}
HEAD = {"head.weight": torch.arange(24.0).reshape(6, 4), "head.bias": torch.full((6,), 3.0)}
ONES = {"head.weight": torch.ones(6, 4), "head.bias": torch.ones(6)}
EMBEDDING = {"embed_tokens.weight": torch.arange(24.0).reshape(6, 4)}
SAVES: dict[str, Any] = {"target_modules": ["q"], "modules_to_save": ["head"]}


def notes(base: Tensors, tensors: Tensors, **options: Any) -> list[str]:
    save_file(base, "base.safetensors")
    peft_folder("adapter", tensors, **{**SAVES, **options})
    return [note for note in cs.lora_merge("base.safetensors", "adapter").notes if "already" in note]


def test_a_base_with_all_saved_modules_of_the_adapter_is_said() -> None:
    merged = {"q.weight": torch.full((4, 4), 3.0), **HEAD}
    assert notes(merged, FACTORS | HEAD) == [
        "adapter seems to be merged into base.safetensors already, and would be added a second time: "
        "head.bias and head.weight (modules_to_save) are equal bit for bit in both"
    ]


def test_the_output_of_ckpt_has_only_the_note_of_its_recipe() -> None:
    save_file(BASE, "base.safetensors")
    peft_folder("adapter", FACTORS | HEAD, **SAVES)
    plan = cs.lora_merge("base.safetensors", "adapter")
    assert not plan.notes
    cs.apply(plan, "merged.safetensors")
    (note,) = [note for note in cs.lora_merge("merged.safetensors", "adapter").notes if "already" in note]
    assert "according to the recipe" in note
    Path("adapter").rename("moved")
    (note,) = [note for note in cs.lora_merge("merged.safetensors", "moved").notes if "already" in note]
    assert note.startswith("moved/adapter_model.safetensors is added a second time")


@pytest.mark.parametrize(
    ("base", "tensors", "options"),
    [
        (BASE, FACTORS | HEAD, {}),
        (BASE, FACTORS | ONES, {}),
        (BASE | {"head.weight": HEAD["head.weight"]}, FACTORS | HEAD, {}),  # only one of two is equal
        (BASE | {"head.bias": HEAD["head.bias"]}, FACTORS | {"head.bias": HEAD["head.bias"]}, {}),  # no matrix
        (
            BASE | EMBEDDING,
            FACTORS | EMBEDDING,
            {"modules_to_save": None},
        ),  # PEFT saves embeddings that were not trained, too
        (BASE | HEAD, FACTORS | HEAD | {"q.lora_B.weight": torch.zeros(4, 2)}, {}),  # before the training
        (BASE | {key: value.half() for key, value in HEAD.items()}, FACTORS | HEAD, {}),
        (BASE, FACTORS, {"modules_to_save": None}),
    ],
)
def test_an_adapter_that_is_not_merged_has_no_note(base: Tensors, tensors: Tensors, options: Any) -> None:
    assert notes(base, tensors, **options) == []


def test_tensors_in_memory_are_compared_too() -> None:
    peft_folder("adapter", FACTORS | HEAD, **SAVES)
    assert not any("already" in note for note in cs.lora_merge(BASE, "adapter").notes)
    assert any("seems to be merged into <dict> already" in note for note in cs.lora_merge(BASE | HEAD, "adapter").notes)


def test_a_merge_that_is_undone_has_no_note() -> None:
    save_file(BASE | HEAD, "base.safetensors")
    peft_folder("adapter", FACTORS | HEAD, **SAVES)
    assert not any("already" in note for note in cs.lora_merge("base.safetensors", "adapter", weights=[-1]).notes)
