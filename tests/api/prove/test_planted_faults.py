"""Faults that names and shapes do not show: each is found, and the block is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import ckptsurgeon as cs

pytest.importorskip("transformers")
State = dict[str, Tensor]
LAYER = "model.layers.1"
HEADS, KV_HEADS, WIDTH = 4, 2, 32


def llama(**fields: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 96}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "attention_bias": True, "mlp_bias": True}
    return LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **fields}))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    shape = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 96}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_local_experts": 4}
    return MixtralForCausalLM(MixtralConfig(**{**shape, **heads}))


def swap(state: State, one: str, other: str) -> None:
    state[one], state[other] = state[other].clone(), state[one].clone()


def queries_and_keys(state: State) -> None:
    swap(state, f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.k_proj.weight")


def rope_halves(state: State) -> None:
    key = f"{LAYER}.self_attn.q_proj.weight"
    state[key] = state[key].view(HEADS, 2, -1, WIDTH).transpose(1, 2).reshape(WIDTH, WIDTH)


def gate_and_up(state: State) -> None:
    swap(state, f"{LAYER}.mlp.gate_proj.weight", f"{LAYER}.mlp.up_proj.weight")


def next_norm(state: State) -> None:
    state[f"{LAYER}.input_layernorm.weight"] = state["model.layers.2.input_layernorm.weight"].clone()


def transposed(state: State) -> None:
    key = f"{LAYER}.self_attn.o_proj.weight"
    state[key] = state[key].T.contiguous()


def biases_shifted(state: State) -> None:
    key = f"{LAYER}.mlp.up_proj.bias"
    state[key] = state[key].roll(1)


def shifted_by_an_element(state: State) -> None:
    key = f"{LAYER}.mlp.down_proj.weight"
    state[key] = state[key].flatten().roll(1).view_as(state[key])


def other_heads(state: State) -> None:
    for name in ("k_proj", "v_proj"):
        key = f"{LAYER}.self_attn.{name}.weight"
        state[key] = state[key].view(KV_HEADS, -1, WIDTH).flip(0).reshape(-1, WIDTH)


def experts_without_router(state: State) -> None:
    for part in ("w1", "w2", "w3"):
        swap(state, *(f"{LAYER}.block_sparse_moe.experts.{number}.{part}.weight" for number in (0, 2)))


FAULTS: dict[str, tuple[Callable[..., Any], Callable[[State], None]]] = {
    "queries and keys": (lambda: llama(num_key_value_heads=HEADS), queries_and_keys),
    "halves of RoPE": (llama, rope_halves),
    "gate and up": (llama, gate_and_up),
    "norm of the next layer": (llama, next_norm),
    "a transposed square matrix": (llama, transposed),
    "shifted biases": (llama, biases_shifted),
    "a matrix shifted by one element": (llama, shifted_by_an_element),
    "heads in another order": (llama, other_heads),
    "experts without their router": (mixtral, experts_without_router),
}


def planted(fault: str, dtype: torch.dtype) -> None:
    """Write a model to a/, and one with a fault to b/."""
    make, plant = FAULTS[fault]
    torch.manual_seed(0)
    model = make()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # as trained ones: not all ones and zeros
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
        else:
            torch.nn.init.normal_(parameter, std=0.15)
    model.to(dtype).save_pretrained("a")
    shutil.copytree("a", "b", dirs_exist_ok=True)
    path = Path("b/model.safetensors")
    state = load_file(path)
    plant(state)
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata={"format": "pt"})


ORIGINS = {
    "queries and keys": {f"{LAYER}.self_attn.{one}_proj.weight": (f"{LAYER}.self_attn.{other}_proj.weight", "")
                         for one, other in ("qk", "kq")},
    "halves of RoPE": {f"{LAYER}.self_attn.q_proj.weight": ("", "rows")},
    "gate and up": {f"{LAYER}.mlp.{one}_proj.weight": (f"{LAYER}.mlp.{other}_proj.weight", "")
                    for one, other in (("gate", "up"), ("up", "gate"))},
    "norm of the next layer": {f"{LAYER}.input_layernorm.weight": ("model.layers.2.input_layernorm.weight", "")},
    "a transposed square matrix": {f"{LAYER}.self_attn.o_proj.weight": ("", "transposed")},
    "a matrix shifted by one element": {f"{LAYER}.mlp.down_proj.weight": ("", "")},
    "shifted biases": {f"{LAYER}.mlp.up_proj.bias": ("", "rows")},
    "heads in another order": {f"{LAYER}.self_attn.{name}_proj.weight": ("", "rows") for name in "kv"},
    "experts without their router": {f"{LAYER}.mlp.experts.{name}": ("", "rows")
                                     for name in ("gate_up_proj", "down_proj")},
}  # fmt: skip
"""{fault: {changed weight: (the weight of the first network that it is, what is in another order)}}"""


def check_what_is_said(found: cs.Proof, fault: str) -> None:
    """Check that a proof says what happened to the weights of the fault, and nothing of others."""
    wanted = ORIGINS[fault]
    assert {one.key: (one.equals, one.order) for one in found.changed if one.key in wanted} == wanted
    assert not [one for one in found.changed if one.key not in wanted and (one.equals or one.order)]
    assert found.changed_elsewhere == ()


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_the_block_is_named(fault: str, dtype: torch.dtype) -> None:
    planted(fault, dtype)
    same_headers = cs.diff("a", "b")
    assert (same_headers.added, same_headers.removed, same_headers.reshaped) == ((), (), ())
    found = cs.prove("a", "b")
    assert found.verdict == "DIFFERENT"
    assert found.drift is not None
    assert found.drift.name == LAYER
    assert found.changed
    assert all(one.key.startswith(f"{LAYER}.") for one in found.changed)
    blocks = [one.name for one in found.blocks]
    before = found.blocks[: blocks.index(LAYER)]
    assert all(one.distance.same for one in before)
    if dtype == torch.float32:
        check_what_is_said(found, fault)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("fault", FAULTS)
def test_what_happened_to_a_weight_is_said_of_another_dtype(fault: str) -> None:
    planted(fault, torch.float32)
    cs.apply(cs.convert("b", dtype="bfloat16"), "cast/")
    check_what_is_said(cs.prove("a", "cast"), fault)


def test_random_weights_come_from_nowhere_and_those_of_later_blocks_are_listed() -> None:
    planted("gate and up", torch.float32)
    path = Path("b/model.safetensors")
    state = load_file(path)
    torch.manual_seed(1)
    own, later = f"{LAYER}.mlp.down_proj.weight", "model.layers.2.mlp.down_proj.weight"
    state |= {key: torch.randn_like(state[key]) for key in (own, later)}
    save_file(state, path, metadata={"format": "pt"})
    found = cs.prove("a", "b")
    assert [(one.equals, one.order) for one in found.changed if one.key == own] == [("", "")]
    assert found.changed_elsewhere == (later,)
    assert found.to_json()["changed_elsewhere"] == [later]


def test_a_weight_that_several_others_equal_is_not_named() -> None:
    """Norms of new networks are all ones: a norm of ones may be any of them."""
    planted("gate and up", torch.float32)
    path = Path("b/model.safetensors")
    for folder in ("a", "b"):
        state = load_file(Path(folder) / "model.safetensors")
        norms = [key for key in state if "norm" in key and LAYER not in key]
        state |= {key: torch.ones_like(state[key]) for key in norms}
        if folder == "b":
            state[f"{LAYER}.input_layernorm.weight"] = torch.ones_like(state[f"{LAYER}.input_layernorm.weight"])
        save_file(state, Path(folder) / "model.safetensors", metadata={"format": "pt"})
    found = cs.prove("a", path)
    assert [one.equals for one in found.changed if one.key == f"{LAYER}.input_layernorm.weight"] == [""]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("fault", ["gate and up", "experts without their router"])
def test_it_is_named_where_little_memory_is_allowed(fault: str) -> None:
    planted(fault, torch.float32)
    whole, parts = cs.prove("a", "b"), cs.prove("a", "b", memory="20000B")
    assert parts == whole


def experts(found: cs.Proof) -> dict[str, list[tuple[int, int | None]]]:
    """{end of the key: (differing expert, the expert of A that it is)} of the weights that have experts."""
    return {
        one.key.removeprefix(f"{LAYER}.mlp."): [(part.index, part.equals) for part in one.experts]
        for one in found.changed
        if one.experts
    }


def with_experts(plant: Callable[[State], None]) -> cs.Proof:
    FAULTS["planted"] = (mixtral, plant)
    try:
        planted("planted", torch.float32)
    finally:
        del FAULTS["planted"]
    return cs.prove("a", "b")


def moved(state: State, order: list[int], rows: list[int]) -> None:
    """Put the experts of a layer into ``order``, and the rows of their router into the order ``rows``."""
    own = {key: value for key, value in state.items() if key.startswith(f"{LAYER}.block_sparse_moe.")}
    for key in own:
        place, dot, end = key.partition(".experts.")
        if dot:
            index, _, part = end.partition(".")
            state[key] = own[f"{place}.experts.{order[int(index)]}.{part}"].clone()
    gate = f"{LAYER}.block_sparse_moe.gate.weight"
    state[gate] = own[gate][rows].clone()


def test_exchanged_experts_are_named(ckpt: Any) -> None:
    found = with_experts(experts_without_router)
    both = [(0, 2), (2, 0)]
    assert experts(found) == {"experts.gate_up_proj": both, "experts.down_proj": both}
    assert " ".join(ckpt("prove", "a", "b").out.split()).count("experts 0 and 2 are exchanged") == 2
    assert {"expert": 0, "equals": 2} in found.to_json()["changed"][0]["experts"]


@pytest.mark.long
def test_a_replaced_expert_is_named(ckpt: Any) -> None:
    def replaced(state: State) -> None:
        torch.manual_seed(5)
        for part in ("w1", "w2", "w3"):
            key = f"{LAYER}.block_sparse_moe.experts.3.{part}.weight"
            state[key] = torch.randn_like(state[key]) * 0.15

    found = with_experts(replaced)
    assert experts(found) == {"experts.gate_up_proj": [(3, None)], "experts.down_proj": [(3, None)]}
    assert "expert 3 is no expert of A" in " ".join(ckpt("prove", "a", "b").out.split())


@pytest.mark.long
def test_experts_and_router_in_different_orders_are_named(ckpt: Any) -> None:
    found = with_experts(lambda state: moved(state, [1, 2, 0, 3], [2, 0, 1, 3]))
    assert experts(found) == {
        "experts.gate_up_proj": [(0, 1), (1, 2), (2, 0)],
        "experts.down_proj": [(0, 1), (1, 2), (2, 0)],
        "gate.weight": [(0, 2), (1, 0), (2, 1)],
    }
    assert "expert 0 is expert 2 of A, expert 1 is expert 0 of A" in " ".join(ckpt("prove", "a", "b").out.split())


def test_experts_and_router_in_the_same_order_compute_the_same() -> None:
    found = with_experts(lambda state: moved(state, [2, 1, 0, 3], [2, 1, 0, 3]))
    assert found.verdict == "EQUIVALENT"
    (said,) = (note for note in found.notes if "more than rounding explains" in note)
    name = f"{LAYER}.mlp"
    assert said.startswith("3 tensors differ")
    assert said.endswith(f": the router and the experts of {name} are in another order (experts 0 and 2 are exchanged)")


def test_exchanged_experts_that_inputs_do_not_use_are_named(ckpt: Any) -> None:
    """For one token, two of four experts are used: the two others are exchanged."""
    save_file({"input_ids": torch.tensor([[3]])}, "ids.safetensors")

    def exchanged(one: int, other: int) -> cs.Proof:
        order = [{one: other, other: one}.get(index, index) for index in range(4)]
        with_experts(lambda state: moved(state, order, [0, 1, 2, 3]))
        return cs.prove("a", "b", inputs="ids.safetensors")

    pairs = ((one, other) for one in range(4) for other in range(one + 1, 4))
    pair, found = next((pair, found) for pair in pairs if (found := exchanged(*pair)).output.distance.same)
    both = [pair, pair[::-1]]
    assert found.verdict == "DIFFERENT"
    assert sorted(found.unused_differing) == [f"{LAYER}.mlp.experts.{name}" for name in ("down_proj", "gate_up_proj")]
    assert experts(found) == {"experts.gate_up_proj": both, "experts.down_proj": both}
    said = " ".join(ckpt("prove", "a", "b", "--inputs", "ids.safetensors").out.split())
    assert said.count(f"experts {pair[0]} and {pair[1]} are exchanged") == 2
    assert f"{LAYER}.mlp.experts.down_proj differs by" in said
