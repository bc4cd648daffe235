"""Faults of tensors that have no others of their role, and of layers whose scales alone do not show them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

WIDTH, LAYERS = 128, 6


def state() -> dict[str, torch.Tensor]:
    draw, found = torch.Generator().manual_seed(0), dict[str, torch.Tensor]()
    for layer in range(LAYERS):
        found[f"model.layers.{layer}.up_proj.weight"] = torch.randn(WIDTH, WIDTH, generator=draw) / 50
        found[f"model.layers.{layer}.input_layernorm.weight"] = 1 + torch.randn(WIDTH, generator=draw) / 20
    return {**found, "model.norm.weight": 1 + torch.randn(WIDTH, generator=draw) / 20}


def found(path: str, id: str) -> list[str]:
    return [one.what for one in cs.check(path, skip=["model-card", "class-tensors"]).row(id).found]


@pytest.mark.parametrize(
    ("zeros", "said"), [(0, ""), (3, ""), (100, "is zeros, wholly or in part"), (WIDTH, "is all zeros")]
)
def test_the_last_norm_is_compared_with_those_of_the_layers(zeros: int, said: str) -> None:
    tensors = state()
    tensors["model.norm.weight"][WIDTH - zeros :] = 0
    save_file(tensors, "x.safetensors")
    assert found("x.safetensors", "all-zeros") == ([f"1 tensor {said}: model.norm.weight"] if said else [])


def test_a_norm_of_zeros_beside_others_with_zeros_is_usual() -> None:
    tensors = {key: torch.zeros_like(one) if "norm" in key else one for key, one in state().items()}
    save_file(tensors, "x.safetensors")  # as Gemma's, whose norms begin as zeros
    assert not found("x.safetensors", "all-zeros")


def two_parts(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """A language model of ``layers`` layers and a vision tower with other norms."""
    found = {
        key.replace("model.", "model.language_model."): one
        for key, one in state().items()
        if not any(f".{layer}." in key for layer in range(layers, LAYERS))
    }
    tower = {key.replace("model.", "model.vision_tower."): one for key, one in state().items()}
    return {**found, **tower, "model.merger.norm.weight": torch.ones(WIDTH)}


@pytest.mark.parametrize("layers", [1, 2, LAYERS])
def test_norms_of_zeros_beside_a_vision_tower_of_ones_are_usual(layers: int) -> None:
    """A new language model that computes 1 + weight, as Qwen3.5's in MiniCPM-V 4.7."""
    tensors = {
        key: torch.zeros_like(one) if "norm" in key and "language" in key else one
        for key, one in two_parts(layers).items()
    }
    save_file(tensors, "x.safetensors")
    assert not found("x.safetensors", "all-zeros")


@pytest.mark.parametrize("key", ["language_model.norm", "vision_tower.norm", "merger.norm"])
def test_the_last_norm_of_each_part_is_compared_with_its_own_layers(key: str) -> None:
    tensors = two_parts()
    tensors[f"model.{key}.weight"] *= 0
    save_file(tensors, "x.safetensors")
    assert found("x.safetensors", "all-zeros") == [f"1 tensor is all zeros: model.{key}.weight"]


def test_a_layer_whose_codes_and_scales_do_not_belong_together_is_found() -> None:
    """A plain cast of small weights to fp8, beside the scales of before: neither is odd alone."""
    Path("plain").mkdir()
    Path("plain/config.json").write_text("{}")
    tensors = state()
    save_file(tensors, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize="fp8-block"), "coded")
    assert not found("coded", "value-family")
    coded = load_file("coded/model.safetensors")
    key = "model.layers.4.up_proj.weight"
    coded[key] = tensors[key].to(torch.float8_e4m3fn)
    save_file(coded, "coded/model.safetensors", {"format": "pt"})
    (said,) = found("coded", "value-family")
    assert said.startswith(f"the root mean square of 1 decoded weight is far from that of other layers: {key} has ")


def test_without_layers_to_compare_the_check_is_not_run() -> None:
    save_file({"a": torch.randn(64, 64), "b": torch.randn(64, 64)}, "x.safetensors")
    row = cs.check("x.safetensors").row("value-family")
    assert (row.status.value, row.why) == ("NOT RUN", "no weight is in 3 layers or more")


@pytest.mark.parametrize(("trained", "said"), [(0, []), (4, ["4 trained rows without a token: 100, 101, 102, 103"])])
def test_trained_rows_without_a_token_are_found(trained: int, said: list[str]) -> None:
    rows = new_rows()
    rows[100 + trained :] /= 100
    assert without_token(rows) == said


@pytest.mark.parametrize("beyond", ["trained", "new", "new, of the trained size", "equal", "few"])
def test_rows_that_differ_as_trained_ones_do_are_found_without_small_ones(beyond: str) -> None:
    rows, varied = new_rows(), torch.linspace(0.7, 1.4, 100)[:, None]
    rows[:100] *= varied
    if beyond in ("trained", "few"):
        rows[100:] *= varied[::3][:28]
    elif beyond == "new":
        rows[100:] /= 1.5
    elif beyond == "equal":
        rows[100:] = rows[:100].mean(0) + rows[100:] * 1e-4 + 0.01
    rows = rows[:110] if beyond == "few" else rows
    assert bool(without_token(rows)) is (beyond == "trained")


def test_rows_of_times_without_a_token_are_not_found() -> None:
    rows = (
        new_rows()
        * torch.linspace(0.7, 1.4, 128)[torch.randperm(128, generator=torch.Generator().manual_seed(0))][:, None]
    )
    assert without_token(rows)
    assert not without_token(rows, "whisper")


def new_rows() -> torch.Tensor:
    return torch.randn(128, 64, generator=torch.Generator().manual_seed(0)) / 50


def without_token(rows: torch.Tensor, kind: str = "llama") -> list[str]:
    """What is said of rows without a token in a model with these rows and 100 tokens."""
    Path("m").mkdir(exist_ok=True)
    config = {
        "model_type": kind,
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(rows),
        "tie_word_embeddings": True,
    }
    Path("m/config.json").write_text(json.dumps(config))
    Path("m/tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {f"w{n}": n for n in range(100)}, "unk_token": "w0"}})
    )
    save_file({"model.embed_tokens.weight": rows}, "m/model.safetensors")
    return [one.partition(" has ")[2] for one in found("m", "untrained-rows") if "without a token" in one]


NORMS = "model.layers.{}.input_layernorm.weight"


@pytest.mark.parametrize(
    ("changed", "value", "found_in"),
    [((3, 4, 5), 1.0, (3, 4, 5)), ((5,), 1.0, (5,)), ((5,), 0.5, (5,)), ((2, 3, 4, 5), 1.0, ()), (range(6), 1.0, ())],
)
def test_norms_with_one_value_are_compared_with_those_of_other_layers(
    changed: Sequence[int], value: float, found_in: Sequence[int]
) -> None:
    """As of layers that were never loaded or trained; in a new model all norms are like this."""
    tensors = state()
    for layer in changed:
        tensors[NORMS.format(layer)].fill_(value)
    save_file(tensors, "x.safetensors")
    row = cs.check("x.safetensors").row("constants")
    assert [key for one in row.found for key in one.keys] == [NORMS.format(layer) for layer in found_in]
    assert all("which the same norms of other layers do not have" in one.what for one in row.found)


@pytest.mark.parametrize("name", ["layers.{}.sa_norm.scale", "encoder.layer.{}.ln.gamma", "blk.{}.attn_norm.weight"])
def test_norms_of_other_libraries_are_compared_too(name: str) -> None:
    tensors = {name.format(layer): state()[NORMS.format(layer)] for layer in range(LAYERS)}
    tensors[name.format(3)].fill_(1)
    save_file(tensors, "x.safetensors")
    assert len(found("x.safetensors", "constants")) == 1


@pytest.mark.parametrize(
    "others",
    [
        {f"layers.{layer}.norm.weight": torch.ones(WIDTH) for layer in range(4)},
        {f"layers.{layer}.norm.bias": torch.ones(WIDTH) * (layer == 3) for layer in range(4)},
        {f"layers.{layer}.q_norm.weight": torch.ones(4) + (layer < 3) * torch.rand(4) for layer in range(4)},
        {"a.norm.weight": torch.ones(WIDTH), "b.norm.weight": torch.rand(WIDTH)},
        {"layers.0.norm.weight": torch.ones(WIDTH), "layers.1.norm.weight": torch.rand(WIDTH)},
    ],
)
def test_other_norms_with_one_value_are_usual(others: dict[str, torch.Tensor]) -> None:
    save_file({**state(), **others}, "x.safetensors")
    assert not found("x.safetensors", "constants")


@pytest.mark.parametrize(("copies", "is_fault"), [(1, False), (2, True), (LAYERS, False)])
@pytest.mark.parametrize("name", ["mlp.gate.weight", "block_sparse_moe.router.weight"])
def test_a_router_copied_from_another_layer_is_named(name: str, copies: int, is_fault: bool) -> None:
    """All routers are alike in a model whose experts were copied from a dense one and were not trained yet."""
    tensors = state()
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.{name}"] = torch.randn(8, WIDTH)
    for layer in range(copies):
        tensors[f"model.layers.{layer}.{name}"] = tensors[f"model.layers.0.{name}"].clone()
    save_file(tensors, "x.safetensors")
    said = f"2 weights are equal to another weight, bit for bit: model.layers.1.{name} = model.layers.0.{name}"
    assert found("x.safetensors", "duplicates") == ([said] if is_fault else [])


ROLES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")


def numbered(first: int, last: int, *, has_embedding: bool = True) -> None:
    draw = torch.Generator().manual_seed(0)
    keys = [f"model.layers.{layer}.{role}.weight" for layer in range(first, last + 1) for role in ROLES]
    keys += ["model.embed_tokens.weight"] * has_embedding
    save_file({key: torch.randn(WIDTH, WIDTH, generator=draw) / 50 for key in keys}, "x.safetensors")


@pytest.mark.parametrize(
    ("first", "has_embedding", "said"),
    [
        (0, True, []),
        (1, True, ["model.layers has layers 1 to 6, but no tensor of layer 0"]),
        (1, False, []),  # a part of a model
        (2, True, []),
    ],
)
def test_layers_that_are_counted_from_1_are_noted(first: int, has_embedding: bool, said: list[str]) -> None:
    numbered(first, 6, has_embedding=has_embedding)
    assert found("x.safetensors", "layer-sequence") == said
    assert cs.check("x.safetensors").row("layer-sequence").status.value == ("WARN" if said else "PASS")


def test_a_renaming_by_one_is_noted() -> None:
    numbered(0, 5)
    shifted = {f"model.layers.{layer}": f"model.layers.{layer + 1}" for layer in range(6)}
    cs.apply(cs.rename("x.safetensors", map=shifted), "y.safetensors")
    assert found("y.safetensors", "layer-sequence") == ["model.layers has layers 1 to 6, but no tensor of layer 0"]
