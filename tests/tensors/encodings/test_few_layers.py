"""Faults in models of two layers: few similar tensors show that one is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import ckptsurgeon as cs

State = dict[str, np.ndarray[Any, Any]]
ROLES = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.o_proj")
ODD = "model.layers.1.mlp.up_proj"


def mlx(layers: int = 2) -> State:
    """Weights of 256 x 256 in MLX's 4 bits, with 64 weights in a group."""
    draw, state = np.random.default_rng(0), State()
    for name in (f"model.layers.{layer}.{role}" for layer in range(layers) for role in ROLES):
        groups = 0.02 * draw.standard_normal((256, 4, 64))
        low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
        codes = np.round((groups - low) / (high - low) * 15).astype(np.uint32).reshape(256, 32, 8)
        state[f"{name}.weight"] = (codes << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
        state[f"{name}.scales"] = ((high - low) / 15).reshape(256, 4).astype(np.float16)
        state[f"{name}.biases"] = low.reshape(256, 4).astype(np.float16)
    return state


def save(state: State) -> str:
    Path("m").mkdir()
    settings = {"group_size": 64, "bits": 4}
    Path("m/config.json").write_text(json.dumps({"hidden_size": 256, "quantization": settings}))
    save_file(state, "m/model.safetensors")
    return "m"


def rows(state: State) -> None:
    for end in ("scales", "biases"):
        state[f"{ODD}.{end}"] = state[f"{ODD}.{end}"][:128].copy()


def signed(state: State) -> None:
    state[f"{ODD}.weight"] = state[f"{ODD}.weight"].view(np.int32)


def all_signed(state: State) -> None:
    state.update({key: value.view(np.int32) for key, value in state.items() if key.endswith(".weight")})


def no_biases(state: State) -> None:
    state[f"{ODD}.biases"] *= 0


def inverse(state: State) -> None:
    state[f"{ODD}.scales"] = (1 / state[f"{ODD}.scales"].astype(np.float32)).astype(np.float16)


FAULTS: dict[Callable[[State], None], str] = {
    rows: "1 quantised tensor has parts of a shape that does not fit the codes: model.layers.1.mlp.up_proj.weight",
    signed: "1 quantised tensor has codes in int32, but MLX accepts only uint32: model.layers.1.mlp.up_proj.weight",
    all_signed: "8 quantised tensors have codes in int32, but MLX accepts only uint32",
    no_biases: "1 of 8 decoded matrices has weights that are not centred at 0: in most groups, the mean is larger than the standard deviation",
    inverse: "1 decoded matrix is at least 32 times as large as that of other layers",
}


@pytest.mark.costly
@pytest.mark.parametrize("fault", FAULTS)
def test_mlx_of_two_layers_has_a_note(fault: Callable[[State], None]) -> None:
    state = mlx()
    fault(state)
    notes = [note for note in cs.inspect(save(state)).notes if FAULTS[fault] in note]
    assert len(notes) == 1
    found = [one for row in cs.check("m").rows if row.id != "model-card" for one in row.found]
    assert any("up_proj" in one.what or "8 quantised" in one.what for one in found)


@pytest.mark.costly
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sound_mlx_has_none(layers: int) -> None:
    assert not cs.inspect(save(mlx(layers))).notes
    assert not [row.id for row in cs.check("m").rows if row.found and row.id != "model-card"]


def test_a_layer_with_larger_weights_is_one_of_two_layers() -> None:
    state = mlx()
    for end in ("scales", "biases"):
        state[f"{ODD}.{end}"] *= 8
    assert not cs.inspect(save(state)).notes
