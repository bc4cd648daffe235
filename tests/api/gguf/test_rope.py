"""The rotary embedding of Llama 3.1 and later: a tensor of divisors in llama.cpp, fields of config.json in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

from .test_layouts import SIZE, model, read

SCALED: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
FREQUENCIES = "rope_freqs.weight"


def written(model_type: str = "llama", **fields: Any) -> torch.Tensor:
    """The divisors in the GGUF file of a tiny model, x.gguf."""
    model(model_type, **fields)
    cs.apply(cs.convert("model", layout="gguf", dtype="bfloat16"), "x.gguf")
    return read("x.gguf")[FREQUENCIES]


def by_transformers(scaled: dict[str, Any], theta: float, size: int) -> torch.Tensor:
    """The frequencies without scaling over those with it, as transformers computes them, in float32."""
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=4 * size, num_attention_heads=4, head_dim=size, max_position_embeddings=131072,
        rope_parameters={"rope_theta": theta, **scaled},
    )  # fmt: skip
    plain = 1.0 / theta ** (torch.arange(0, size, 2).float() / size)
    return plain / ROPE_INIT_FUNCTIONS["llama3"](config)[0]


@pytest.mark.parametrize(
    ("changes", "theta", "size"),
    [
        ({}, 500000.0, 128),
        ({"factor": 32.0}, 500000.0, 64),
        ({"low_freq_factor": 2.0, "high_freq_factor": 3.0, "original_max_position_embeddings": 512}, 10000.0, 32),
    ],
)
def test_divisors_are_those_of_transformers(changes: dict[str, Any], theta: float, size: int) -> None:
    from ckptsurgeon.planning.llama_cpp.rope_factors import FrequencyScaling, rope_factors

    scaled = {**SCALED, **changes}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    found = torch.tensor(rope_factors(theta, size, FrequencyScaling(*(scaled[name] for name in names))))
    want = by_transformers(scaled, theta, size)
    assert (found[0], found[-1]) == (1, scaled["factor"])
    assert ((found > 1) & (found < scaled["factor"])).any()
    torch.testing.assert_close(found, want, rtol=1e-5, atol=0)


@pytest.mark.costly
@pytest.mark.parametrize("name", ["rope_parameters", "rope_scaling"])
def test_the_file_has_the_divisors_in_float32(name: str) -> None:
    fields = {"rope_parameters": None, "rope_theta": 5e5, "rope_scaling": None}
    found = written(**{**fields, name: {**SCALED, **({"rope_theta": 5e5} if name == "rope_parameters" else {})}})
    assert (found.dtype, found.shape) == (torch.float32, (SIZE // 2,))
    torch.testing.assert_close(found, by_transformers(SCALED, 5e5, SIZE), rtol=1e-5, atol=0)
    assert cs.verify("x.gguf").ok
    with cs.open_checkpoint("x.gguf") as made:
        assert "llama.rope.scaling.type" not in made.metadata
        assert made.metadata["llama.rope.freq_base"] == "500000.0"


def test_a_changed_divisor_is_found() -> None:
    found = written(rope_parameters={"rope_theta": 5e5, **SCALED})
    data = bytearray(Path("x.gguf").read_bytes())
    at = data.index(found.numpy().tobytes())
    data[at] ^= 1
    Path("x.gguf").write_bytes(data)
    assert not cs.verify("x.gguf").ok


def test_matrices_in_blocks_leave_the_divisors() -> None:
    model("llama", rope_parameters={"rope_theta": 5e5, **SCALED})
    plan = cs.convert("model", layout="gguf", gguf_type="q8_0")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply("plan.json", "x.gguf")
    with cs.open_checkpoint("x.gguf") as made:
        assert (made[FREQUENCIES].dtype, made["blk.0.ffn_up.weight"].dtype) == ("float32", "q8_0")
        assert made.metadata["general.file_type"] == "7"


@pytest.mark.long
def test_the_way_back_leaves_them_out_with_a_note() -> None:
    tensors = model("llama", rope_parameters={"rope_theta": 5e5, **SCALED})
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    plan = cs.convert("x.gguf", layout="transformers", dtype="bfloat16")
    assert any("left out: rope_freqs, which transformers computes" in note for note in plan.notes)
    cs.apply(plan, "back.safetensors")
    back = read("back.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[key], value) for key, value in tensors.items())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"factor": None}, "its factor is None, not a number above 0"),
        ({"low_freq_factor": "1"}, "its low_freq_factor is '1'"),
        ({"high_freq_factor": 1.0}, "its low_freq_factor is 1, which is not below its high_freq_factor, 1"),
        ({"original_max_position_embeddings": 0}, "its original_max_position_embeddings is 0"),
        ({"rope_theta": -1.0}, "the base of the rotary embedding in config.json is -1"),
    ],
)
def test_fields_that_do_not_fit_are_an_error(changes: dict[str, Any], why: str) -> None:
    model("llama", rope_parameters={"rope_theta": 5e5, **SCALED, **changes})
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


def test_another_architecture_does_not_know_the_tensor() -> None:
    model("qwen2", rope_parameters={"rope_theta": 5e5, **SCALED})
    with pytest.raises(cs.PlanError, match="llama.cpp does not support for the architecture qwen2"):
        cs.convert("model", layout="gguf")


@pytest.mark.long
def test_gguf_py_and_transformers_read_the_file() -> None:
    """Run where gguf is installed."""
    reader = pytest.importorskip("gguf").GGUFReader
    transformers = pytest.importorskip("transformers")
    found = written(rope_parameters={"rope_theta": 5e5, **SCALED})
    named = {tensor.name: tensor for tensor in reader("x.gguf").tensors}
    assert named[FREQUENCIES].data.tolist() == found.tolist()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file="x.gguf", dtype=torch.float32)
    key = "model.layers.1.self_attn.q_proj.weight"
    assert torch.equal(loaded.state_dict()[key], read("model/model.safetensors")[key].float())
