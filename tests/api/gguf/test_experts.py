"""Mixtures of experts of transformers in llama.cpp's layout, whose experts are one tensor, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .test_layouts import CONFIG, HIDDEN, LAYERS, read, state

EXPERTS, WIDTH, SHARED = 11, 32, 64
"""More experts than ten: expert 10 comes after expert 9, and not after expert 1."""
COUNTS: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("llama", "mistral", {"num_local_experts": EXPERTS, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2moe", "qwen2", {**COUNTS, "shared_expert_intermediate_size": SHARED, "norm_topk_prob": False}),
    "qwen3_moe": ("qwen3moe", "qwen3", {**COUNTS, "norm_topk_prob": True}),
}
"""Of each model_type: its architecture in llama.cpp, the model that has all but its experts, and more fields."""
PROJECTIONS = {"mixtral": ("w1", "w3", "w2")}


def experts(model_type: str) -> dict[str, torch.Tensor]:
    """The tensors of a tiny model with experts."""
    tensors = {key: value for key, value in state(MODELS[model_type][1]).items() if ".mlp." not in key}
    gate, up, down = PROJECTIONS.get(model_type, ("gate_proj", "up_proj", "down_proj"))
    for layer in range(LAYERS):
        at = f"model.layers.{layer}." + ("block_sparse_moe" if model_type == "mixtral" else "mlp")
        shapes = {f"{at}.gate": (EXPERTS, HIDDEN)}
        for n in range(EXPERTS):
            one = f"{at}.experts.{n}"
            shapes |= {
                f"{one}.{gate}": (WIDTH, HIDDEN),
                f"{one}.{up}": (WIDTH, HIDDEN),
                f"{one}.{down}": (HIDDEN, WIDTH),
            }
        if model_type == "qwen2_moe":
            one = f"{at}.shared_expert"
            shapes |= {f"{one}.{name}_proj": (SHARED, HIDDEN) for name in ("gate", "up")}
            shapes |= {f"{one}.down_proj": (HIDDEN, SHARED), f"{one}_gate": (1, HIDDEN)}
        tensors |= {f"{name}.weight": torch.randn(shape).bfloat16() for name, shape in shapes.items()}
    return tensors


def written(model_type: str, **fields: Any) -> dict[str, torch.Tensor]:
    """A folder of a tiny model; its tensors are returned."""
    tensors = experts(model_type)
    Path("model").mkdir()
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    config = {**CONFIG, "model_type": model_type, "intermediate_size": WIDTH, **MODELS[model_type][2], **fields}
    Path("model/config.json").write_text(json.dumps(config))
    return tensors


@pytest.mark.costly
@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_comes_back_bit_for_bit(model_type: str) -> None:
    tensors = written(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert cs.verify("x.gguf").ok
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back.safetensors")
    assert cs.verify("back.safetensors").ok
    back = load_file("back.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[key], value) for key, value in tensors.items())


@pytest.mark.costly
@pytest.mark.parametrize("model_type", MODELS)
def test_experts_are_one_tensor_and_routers_float32(model_type: str) -> None:
    tensors = written(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = read("x.gguf")
    at = "model.layers.1." + ("block_sparse_moe" if model_type == "mixtral" else "mlp")
    names = PROJECTIONS.get(model_type, ("gate_proj", "up_proj", "down_proj"))
    for name, theirs in zip(names, ("gate", "up", "down"), strict=True):
        want = torch.stack([tensors[f"{at}.experts.{n}.{name}.weight"] for n in range(EXPERTS)])
        assert torch.equal(found[f"blk.1.ffn_{theirs}_exps.weight"], want)
    assert torch.equal(found["blk.1.ffn_gate_inp.weight"], tensors[f"{at}.gate.weight"].float())
    if model_type == "qwen2_moe":
        want = tensors[f"{at}.shared_expert_gate.weight"].float().reshape(-1)
        assert torch.equal(found["blk.1.ffn_gate_inp_shexp.weight"], want)


@pytest.mark.costly
@pytest.mark.parametrize("model_type", MODELS)
def test_the_metadata_counts_the_experts(model_type: str) -> None:
    written(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    architecture = MODELS[model_type][0]
    want = {"expert_count": str(EXPERTS), "expert_used_count": "2"}
    if model_type != "mixtral":
        want["expert_feed_forward_length"] = str(WIDTH)
    if model_type == "qwen2_moe":
        want["expert_shared_feed_forward_length"] = str(SHARED)
    with cs.open_checkpoint("x.gguf") as found:
        said = found.metadata
        assert said["general.architecture"] == architecture
        assert {key.split(".")[1]: value for key, value in said.items() if ".expert_" in key} == want
        assert all(found.header.stored[f"{architecture}.{key}"].kind == 4 for key in want)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("source", ["model", "x.gguf"])
def test_experts_are_rounded_to_blocks_and_routers_are_not(source: str) -> None:
    written("qwen3_moe")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    plan = cs.convert(source, layout="gguf" if source == "model" else None, gguf_type="q8_0")
    cs.apply(plan, "codes.gguf")
    assert cs.verify("codes.gguf").ok
    with cs.open_checkpoint("codes.gguf") as found:
        assert found["blk.0.ffn_gate_inp.weight"].dtype == "float32"
        stacked = found["blk.0.ffn_down_exps.weight"]
        assert (stacked.dtype, stacked.meant_shape) == ("q8_0", (EXPERTS, HIDDEN, WIDTH))
    decoded = cs.convert("codes.gguf", dequantize=True, layout="transformers", dtype="bfloat16")
    cs.apply(decoded, "back.safetensors")
    assert set(load_file("back.safetensors")) == set(load_file("model/model.safetensors"))


@pytest.mark.parametrize(
    ("model_type", "fields", "why"),
    [
        ("mixtral", {"num_local_experts": 8}, "num_local_experts as 8, but the layers have 11 experts"),
        ("qwen3_moe", {"num_experts": None}, "num_experts as None, but the layers have 11 experts"),
        ("qwen3_moe", {"num_experts_per_tok": 12}, "num_experts_per_tok as 12, not a number from 1 to 11"),
        (
            "qwen3_moe",
            {"norm_topk_prob": False, "num_local_experts": 11},
            "llama.cpp's qwen3moe always divides the weights",
        ),
        ("qwen3_moe", {"norm_topk_prob": False}, "llama.cpp's qwen3moe always divides the weights"),
        ("qwen2_moe", {"norm_topk_prob": True}, "llama.cpp's qwen2moe never divides the weights"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_error(model_type: str, fields: dict[str, Any], why: str) -> None:
    written(model_type, **fields)
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


@pytest.mark.parametrize(
    ("gone", "why"),
    [
        ("model.layers.1.mlp.experts.10", "the layers have 10 or 11 experts"),
        ("model.layers.1.mlp.experts.4", "the layers have 10 or 11 experts"),
    ],
)
def test_a_missing_expert_is_an_error(gone: str, why: str) -> None:
    tensors = written("qwen3_moe")
    kept = {key: value for key, value in tensors.items() if not key.startswith(f"{gone}.")}
    save_file(kept, "model/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


def test_a_dense_layer_among_layers_of_experts_is_an_error() -> None:
    tensors = written("qwen3_moe")
    save_file({**tensors, "model.layers.0.mlp.up_proj.weight": torch.ones(2, 2)}, "model/model.safetensors")
    with pytest.raises(cs.PlanError, match="1 tensor has no name in llama.cpp's architecture qwen3moe"):
        cs.convert("model", layout="gguf")


@pytest.mark.costly
@pytest.mark.parametrize("model_type", ["qwen2_moe", "qwen3_moe"])
def test_transformers_loads_the_file(model_type: str) -> None:
    """Run where gguf is installed; from GGUF alone, transformers does not read the width of experts."""
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    tensors = written(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    config = transformers.AutoConfig.from_pretrained("model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        ".", gguf_file="x.gguf", config=config, dtype=torch.float32
    )
    found = loaded.state_dict()
    assert torch.equal(found["model.layers.1.mlp.gate.weight"], tensors["model.layers.1.mlp.gate.weight"].float())
    at = "model.layers.1.mlp.experts"
    both = [torch.cat([tensors[f"{at}.{n}.{name}_proj.weight"] for name in ("gate", "up")]) for n in range(EXPERTS)]
    assert torch.equal(found[f"{at}.gate_up_proj"], torch.stack(both).float())
    if model_type == "qwen2_moe":
        key = "model.layers.0.mlp.shared_expert_gate.weight"
        assert torch.equal(found[key], tensors[key].float())
