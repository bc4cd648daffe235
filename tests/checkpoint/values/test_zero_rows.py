"""Whole rows of zeros: perhaps a part of the file was missing, unless other layers have them, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

State = dict[str, torch.Tensor]
SAID = "of zeros, perhaps because a part of the file is missing"
ENDS = ("embed_tokens.weight", "lm_head.weight")
ROLES = {"mlp.down_proj": (128, 512), "mlp.gate_proj": (512, 128), "mlp.up_proj": (512, 128), "attn.q_proj": (128, 128)}


def model(layers: int = 6) -> State:
    """An embedding, an output layer, and layers of four matrices of bfloat16, each row of 256 or 1024 bytes."""
    draw = torch.Generator().manual_seed(0)
    state = {name: torch.randn(1000, 128, generator=draw) for name in ENDS}
    for layer in range(layers):
        for role, shape in ROLES.items():
            state[f"layers.{layer}.{role}.weight"] = torch.randn(shape, generator=draw)
        state[f"layers.{layer}.norm.weight"] = torch.ones(128)
    return {key: value.to(torch.bfloat16) for key, value in state.items()}


def warnings(state: State) -> list[str]:
    save_file({key: value.contiguous() for key, value in state.items()}, "x.safetensors")
    rows = cs.check("x.safetensors").rows
    return [one.what for row in rows if row.id == "shard" for one in row.found if SAID in one.what]


@pytest.mark.parametrize(("begin", "end"), [(100, 300), (0, 200), (400, 512), (64, 96)])
def test_rows_that_other_layers_have_are_noted(begin: int, end: int) -> None:
    state = model()
    state["layers.2.mlp.gate_proj.weight"][begin:end] = 0
    (said,) = warnings(state)
    assert said.startswith(
        f"1 matrix has rows {SAID}: layers.2.mlp.gate_proj.weight (rows {begin} to {end - 1}: bytes "
    )
    assert said.endswith(" of x.safetensors)")
    (row,) = [row for row in cs.check("x.safetensors").rows if row.id == "shard"]
    assert [(one.status, "unless these rows" in one.todo) for one in row.found] == [(Status.WARN, True)]


def test_the_bytes_of_the_note_are_zeros_and_those_around_them_are_not() -> None:
    state = model()
    state["layers.2.mlp.gate_proj.weight"][100:300] = 0
    (said,) = warnings(state)
    words = said.partition("bytes ")[2].replace(",", "").split()
    begin, end = int(words[0]), int(words[2]) + 1
    with open("x.safetensors", "rb") as file:
        content = file.read()
    assert not any(content[begin:end])
    assert content[begin - 1]
    assert content[end]


def test_zeros_over_the_ends_of_tensors_are_noted_with_all_their_matrices() -> None:
    state = model()
    state["layers.3.mlp.down_proj.weight"][100:] = 0
    state["layers.3.mlp.gate_proj.weight"].zero_()
    state["layers.3.mlp.up_proj.weight"][:64] = 0
    (said,) = warnings(state)
    assert said.startswith(f"3 matrices have rows {SAID}: layers.3.mlp.down_proj.weight (rows 100 to 127: bytes ")
    assert said.endswith("layers.3.mlp.gate_proj.weight (rows 0 to 511), layers.3.mlp.up_proj.weight (rows 0 to 63)")


def test_last_rows_and_whole_matrices_after_them_are_noted() -> None:
    state = model()
    state["layers.3.mlp.down_proj.weight"][100:] = 0
    state["layers.3.mlp.gate_proj.weight"].zero_()
    (said,) = warnings(state)
    assert "layers.3.mlp.down_proj.weight (rows 100 to 127" in said


def test_rows_inside_a_matrix_without_others_of_its_role_are_noted() -> None:
    draw = torch.Generator().manual_seed(0)
    state = {"projector.weight": torch.randn(512, 128, generator=draw), "x": torch.ones(128)}
    state["projector.weight"][100:300] = 0
    assert len(warnings(state)) == 1


def every(state: State, role: str, change: Callable[[torch.Tensor], object]) -> None:
    for key, value in state.items():
        if role in key:
            change(value)


def zero(begin: int, end: int) -> Callable[[torch.Tensor], object]:
    return lambda value: value[begin:end].zero_()


def pruned_heads(state: State) -> None:
    state["layers.2.attn.k_proj.weight"] = state["layers.2.attn.q_proj.weight"].clone()
    for name in ("q", "k"):
        state[f"layers.2.attn.{name}_proj.weight"][32:64] = 0


def pruned_neurons(state: State) -> None:
    state["layers.2.mlp.gate_proj.weight"][100:200] = 0
    state["layers.2.mlp.up_proj.weight"][100:200] = 0
    state["layers.2.mlp.down_proj.weight"][:, 100:200] = 0


def other_rows_of_each_layer(state: State) -> None:
    for layer in range(6):
        state[f"layers.{layer}.mlp.up_proj.weight"][50 * layer : 50 * layer + 100] = 0


def scattered(state: State) -> None:
    draw = torch.Generator().manual_seed(1)
    value = state["layers.2.mlp.up_proj.weight"]
    value[torch.rand(512, generator=draw) < 0.85] = 0


def zero_block(state: State) -> None:
    for role in ("down_proj", "q_proj"):
        every(state, f"layers.3.{'mlp' if role == 'down_proj' else 'attn'}.{role}", torch.Tensor.zero_)


def adapter(state: State) -> None:
    for layer in range(6):
        state[f"layers.{layer}.attn.q_proj.lora_A.weight"] = torch.ones(64, 128)
        state[f"layers.{layer}.attn.q_proj.lora_B.weight"] = torch.zeros(128, 64)
    state["layers.2.attn.q_proj.lora_A.weight"][16:] = 0


HEALTHY: dict[str, Callable[[State], object]] = {
    "nothing": lambda state: None,
    "padded embeddings": lambda state: [zero(900, 1000)(state[key]) for key in ENDS],
    "reserved tokens": lambda state: [zero(500, 600)(state[key]) for key in ENDS],
    "a padded output layer": lambda state: zero(900, 1000)(state["lm_head.weight"]),
    "wider layers": lambda state: every(state, "mlp.up_proj", zero(400, 512)),
    "rows of all layers": lambda state: every(state, "mlp.up_proj", zero(100, 200)),
    "pruned heads": pruned_heads,
    "pruned neurons": pruned_neurons,
    "other rows of each layer": other_rows_of_each_layer,
    "many dead neurons": scattered,
    "a few dead neurons": lambda state: zero(100, 104)(state["layers.2.mlp.up_proj.weight"]),
    "a zero block": zero_block,
    "an adapter": adapter,
    "half of the weights": lambda state: every(state, "proj", lambda one: one.mul_(torch.rand(one.shape) < 0.5)),
    "one of 100 weights": lambda state: every(state, "proj", lambda one: one.mul_(torch.rand(one.shape) < 0.01)),
    "the identity": lambda state: every(state, "q_proj", lambda one: one.copy_(torch.eye(128))),
    "a mask": lambda state: state.update(attn_mask=torch.ones(200, 49, 49) * (torch.arange(200)[:, None, None] % 99 > 50)),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_rows_of_zeros_on_purpose_are_not_noted(name: str) -> None:
    state = model()
    HEALTHY[name](state)
    assert not warnings(state)


@pytest.mark.long
@pytest.mark.parametrize(
    "asked",
    [
        {"num_hidden_layers": 6, "layers": "identity"},
        {"hidden_size": 192},
        {"intermediate_size": 768},
        {"num_attention_heads": 8, "num_key_value_heads": 4},
    ],
)
def test_zeros_of_a_resized_model_are_not_noted(asked: dict[str, Any], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=300, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "small")
    fields = dict(asked)
    layers = fields.pop("layers", None)
    cs.apply(cs.resize(tmp_path / "small", set=fields, layers=layers), tmp_path / "large")
    (row,) = [row for row in cs.check(tmp_path / "large").rows if row.id == "shard"]
    assert not row.found
