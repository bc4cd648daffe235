"""Networks of different depths: layers with the same weights are compared, wherever they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

pytest.importorskip("transformers")
LAYERS = "model.layers"


def qwen3(folder: Path, layers: int = 4) -> Path:
    """A Qwen3, which has norms of queries and keys, whose norms are not all ones."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    for key, one in model.named_parameters():
        if "norm" in key:
            one.data += torch.randn_like(one) / 5
    model.save_pretrained(folder)
    return folder


def deeper(folder: Path, name: str, layers: str, number: int = 7) -> Path:
    cs.apply(cs.resize(folder, set={"num_hidden_layers": number}, layers=layers), folder.parent / name)
    return folder.parent / name


def blocks(proof: Any) -> dict[str, bool]:
    return {one.name: one.distance.same for one in proof.blocks}


@pytest.mark.long
def test_layers_that_pass_their_input_on_are_left_out(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "in")
    proof = cs.prove(folder, deeper(folder, "out", "identity"))
    assert proof.verdict == "SAME"
    assert proof.differing == 0
    assert {name for name in blocks(proof) if LAYERS in name} == {f"{LAYERS}.{n}" for n in range(4)}
    assert any("layers with the same weights are compared, 0, 1, 2, 3 of the first network with 0, " in note
               for note in proof.notes)  # fmt: skip
    again = cs.prove(tmp_path / "out", folder)  # the second network is the shallower one
    assert again.verdict == "SAME"
    assert any("0, 1, 2, 3 of the second" in note for note in again.notes)


def test_a_fault_in_a_moved_layer_is_named_by_the_first_networks_key(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "in")
    out = deeper(folder, "out", "identity")
    file = out / "model.safetensors"
    state = load_file(file)
    moved = next(
        n for n in range(7)
        if torch.equal(state[f"{LAYERS}.{n}.mlp.down_proj.weight"],
                       load_file(folder / file.name)[f"{LAYERS}.2.mlp.down_proj.weight"])
    )  # fmt: skip
    assert moved != 2
    state[f"{LAYERS}.{moved}.self_attn.q_norm.weight"] *= 1.5
    save_file(state, file, {"format": "pt"})
    proof = cs.prove(folder, out)
    assert proof.verdict == "DIFFERENT"
    assert proof.drift is not None
    assert proof.drift.name == f"{LAYERS}.2"
    assert [one.key for one in proof.changed] == [f"{LAYERS}.2.self_attn.q_norm.weight"]


@pytest.mark.long
def test_repeated_layers_are_paired_in_their_order(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "in")
    proof = cs.prove(folder, deeper(folder, "out", "interleave", 8))
    assert proof.verdict == "DIFFERENT"
    assert proof.differing == 0
    assert not proof.changed


def test_layers_at_the_end_change_no_names(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "in")
    proof = cs.prove(folder, deeper(folder, "out", "0..2", 3))
    assert not any("same weights are compared" in note for note in proof.notes)


@pytest.mark.long
def test_unrelated_networks_are_compared_by_number(tmp_path: Path) -> None:
    folder = qwen3(tmp_path / "in")
    other = qwen3(tmp_path / "other", 6)
    state = load_file(other / "model.safetensors")
    save_file({key: torch.randn_like(one) for key, one in state.items()}, other / "model.safetensors", {"format": "pt"})
    proof = cs.prove(folder, other)
    assert not any("same weights are compared" in note for note in proof.notes)
    assert f"{LAYERS}.3" in blocks(proof)
