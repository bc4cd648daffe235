"""A part of q, k or v that is unlike the others' is said, where these are equal in the other layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ...helpers.coded_matrices import GROUP, SETTINGS, gptq
from ...helpers.coded_models import LAYERS, QUICK, coded_tensors, false_alarms, said_by, write_model
from ...helpers.zoo import BY_NAME, IN

ONE = "model.layers.3.self_attn.v_proj"
ORDERED = {**SETTINGS["gptq"], "desc_act": True}
State = dict[str, torch.Tensor]


def ordered(*, of_layers: bool = True) -> State:
    """GPTQ with ``desc_act``: an order of columns for each layer's inputs, or else for each tensor."""
    state, draw = coded_tensors(gptq), torch.Generator().manual_seed(1)
    orders: dict[str, torch.Tensor] = {}
    for key in [key for key in state if key.endswith(".g_idx")]:
        above = key.removesuffix(".g_idx").rpartition(".")[0]
        inputs = key if key.endswith(("o_proj.g_idx", "down_proj.g_idx")) or not of_layers else above
        if inputs not in orders:
            columns = state[key].numel()
            orders[inputs] = (torch.randperm(columns, generator=draw) // GROUP).int()
        state[key] = orders[inputs].clone()
    return state


@pytest.mark.long
def test_an_order_of_columns_of_another_layer_is_said() -> None:
    state = ordered()
    assert false_alarms(write_model(Path("m"), state, ORDERED), "same inputs") == []
    state[f"{ONE}.g_idx"] = state["model.layers.2.self_attn.v_proj.g_idx"].clone()
    said = "1 quantised tensor has a g_idx that differs from that of q_proj and k_proj, which have the same inputs"
    assert said_by(write_model(Path("m"), state, ORDERED), said, f": {ONE}.weight") == [*QUICK]
    assert false_alarms(Path("m"), "differs from that of k_proj and v_proj") == []


@pytest.mark.long
def test_of_two_siblings_both_are_named() -> None:
    state = ordered()
    state["model.layers.0.mlp.up_proj.g_idx"] = state["model.layers.1.mlp.up_proj.g_idx"].clone()
    for one, other in (("gate", "up"), ("up", "gate")):
        said = (
            f"1 quantised tensor has a g_idx that differs from that of {other}_proj, which",
            f"mlp.{one}_proj.weight",
        )
        assert said_by(write_model(Path("m"), state, ORDERED), *said) == [*QUICK]


@pytest.mark.long
def test_orders_that_differ_everywhere_or_in_two_columns_are_not() -> None:
    assert false_alarms(write_model(Path("m"), ordered(of_layers=False), ORDERED), "same inputs") == []
    state = ordered()
    order = state[f"{ONE}.g_idx"]
    first, second = int((order == 0).nonzero()[0]), int((order == 1).nonzero()[0])
    order[first], order[second] = 1, 0
    assert false_alarms(write_model(Path("m"), state, ORDERED), "same inputs") == []


@pytest.mark.costly
@pytest.mark.parametrize("shared", [True, False])
def test_a_global_scale_unlike_those_of_q_and_k_is_said(shared: bool) -> None:
    state: State = {"model.norm.weight": torch.ones(IN)}
    parts, settings = BY_NAME["nvfp4-packed"].store, BY_NAME["nvfp4-packed"].settings
    draw = torch.Generator().manual_seed(0)
    for number in range(LAYERS):
        scale = parts(draw)[".weight_global_scale"]
        for role in ("q_proj", "k_proj", "v_proj"):
            made = parts(draw)
            if shared:
                made[".weight_global_scale"] = scale.clone()
            state |= {f"model.layers.{number}.self_attn.{role}{end}": one for end, one in made.items()}
    assert false_alarms(write_model(Path("m"), state, settings), "same inputs") == []
    state[f"{ONE}.weight_global_scale"] *= 2
    said = "a weight_global_scale that differs from that of q_proj and k_proj", f": {ONE}"
    assert said_by(write_model(Path("m"), state, settings), *said) == ([*QUICK] if shared else [])
