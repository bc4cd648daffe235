"""gpt-oss in llama.cpp's layout, with plain experts and with those that OpenAI published (mxfp4), and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.deepseek_models import opened
from .test_layouts import read

LAYERS, EXPERTS, WIDTH, INNER = 3, 5, 64, 32
FIELDS: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2, "sliding_window": 8, "max_position_embeddings": 128,
    "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 32, "rope_theta": 150000.0,
    },
}  # fmt: skip
VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
A = "gpt-oss"


def saved() -> dict[str, torch.Tensor]:
    """The tensors of a tiny model, which is saved as transformers does in the folder ``model``."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = transformers.GptOssForCausalLM(transformers.GptOssConfig(**FIELDS)).bfloat16()
    for value in network.state_dict().values():
        if value.dim() < 3:
            value.copy_(torch.randn(value.shape) / 8)
    network.save_pretrained("model")
    return load_file("model/model.safetensors")


def changed(**fields: Any) -> None:
    place = Path("model/config.json")
    config = {**json.loads(place.read_text()), **fields}
    place.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def coded() -> dict[str, torch.Tensor]:
    """Write ``model`` with codes for experts, as OpenAI did; the tensors that they stand for are returned."""
    tensors = saved()
    stored = {}
    for key, value in list(tensors.items()):
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            stored[key] = value
            continue
        blocks = torch.randint(0, 256, (value.shape[0], value.shape[2], value.shape[1] // 32, 16), dtype=torch.uint8)
        blocks[0, 0, 0] = blocks[0, 0, 0] & 0x99  # a block without large codes
        blocks[0, 1, 0] = blocks[0, 1, 0] & 0x88  # a block of zeros
        scales = torch.randint(110, 125, blocks.shape[:3], dtype=torch.uint8)
        pairs = torch.stack([VALUES[(blocks & 15).long()], VALUES[(blocks >> 4).long()]], -1).flatten(-2)
        meant = (pairs * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)
        tensors[key] = meant.transpose(1, 2).bfloat16()
        assert torch.equal(tensors[key].float(), meant.transpose(1, 2))
        stored |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    save_file(stored, "model/model.safetensors", {"format": "pt"})
    changed(quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]})
    return tensors


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_opens_the_way_back_with_the_same_values(dtype: str) -> None:
    tensors = saved()
    _, state = opened("model")
    cs.apply(cs.convert("model", layout="gguf", dtype=dtype), "x.gguf")
    assert cs.verify("x.gguf").ok
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back/")
    assert cs.verify("back/").ok
    files = load_file("back/model.safetensors")
    assert set(files) == set(tensors)
    assert all(torch.equal(files[key], value) for key, value in tensors.items())
    shutil.copy("model/config.json", "back/config.json")
    _, found = opened("back")
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_names_are_those_of_gguf_py() -> None:
    gguf = pytest.importorskip("gguf")
    tensors = saved()
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT_OSS, LAYERS)
    want = set()
    for key in tensors:
        whole = f"{key}.weight" if key.endswith(("sinks", "_proj")) else key.replace("_proj_bias", "_proj.bias")
        parts = [whole.replace("gate_up_proj", name) for name in ("gate_proj", "up_proj")]
        for one in parts if "gate_up" in whole else [whole]:
            want.add(names.get_name(one, (".weight", ".bias")))
    assert None not in want
    assert set(read("x.gguf")) == want


def test_columns_of_gate_and_up_are_apart_and_matrices_turned() -> None:
    tensors = saved()
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = read("x.gguf")
    at = "model.layers.2.mlp.experts"
    for place, name in enumerate(("gate", "up")):
        whole = tensors[f"{at}.gate_up_proj"][..., place::2]
        assert torch.equal(found[f"blk.2.ffn_{name}_exps.weight"], whole.transpose(1, 2))
        bias = tensors[f"{at}.gate_up_proj_bias"][..., place::2]
        assert torch.equal(found[f"blk.2.ffn_{name}_exps.bias"], bias.float())
    assert torch.equal(found["blk.2.ffn_down_exps.weight"], tensors[f"{at}.down_proj"].transpose(1, 2))
    assert torch.equal(found["blk.2.attn_sinks.weight"], tensors["model.layers.2.self_attn.sinks"].float())


@pytest.mark.long
def test_the_metadata_are_those_of_convert_hf_to_gguf() -> None:
    saved()
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        said = {key.removeprefix(f"{A}."): value for key, value in found.metadata.items() if key.startswith(f"{A}.")}
        assert found.metadata["general.architecture"] == A
    assert said == {
        "block_count": "3", "context_length": "128", "embedding_length": "64", "feed_forward_length": "32",
        "attention.head_count": "4", "attention.head_count_kv": "2", "attention.key_length": "16",
        "attention.value_length": "16", "attention.sliding_window": "8", "vocab_size": "96",
        "attention.layer_norm_rms_epsilon": "1e-05", "rope.freq_base": "150000.0", "rope.scaling.type": "yarn",
        "rope.scaling.factor": "4.0", "rope.scaling.original_context_length": "32", "expert_count": "5",
        "expert_used_count": "2", "expert_feed_forward_length": "32",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("others", [None, "q8_0"])
def test_codes_of_experts_become_blocks_of_the_same_values(others: str | None, ckpt: Any) -> None:
    tensors = coded()
    told = ckpt("convert", "model", "-o", "x.gguf", *(("--gguf-type", others) if others else ()))
    assert told.code == 0, told
    assert "the experts stay mxfp4, with the same values" in " ".join((told.err + told.out).split())
    assert cs.verify("x.gguf").ok
    with cs.open_checkpoint("x.gguf") as found:
        experts = {key: info.dtype for key, info in found.items() if key.endswith("_exps.weight")}
        assert set(experts.values()) == {"mxfp4"}
        assert len(experts) == 3 * LAYERS
        assert found["blk.1.attn_q.weight"].dtype == (others or "bfloat16")
        assert found["blk.1.ffn_gate_inp.weight"].dtype == found["blk.1.ffn_up_exps.bias"].dtype == "float32"
        assert "quantization_config" not in found.metadata
    back = cs.convert("x.gguf", layout="transformers", dequantize=True, dtype="bfloat16")
    cs.apply(back, "back.safetensors")
    files = load_file("back.safetensors")
    assert set(files) == set(tensors)
    for key, value in tensors.items():
        if "experts" in key or not others:
            assert torch.equal(files[key], value), key


@pytest.mark.long
def test_blocks_are_those_of_llama_cpp_but_for_minus_zero_and_small_codes() -> None:
    """Each block as convert_hf_to_gguf.py lays it out: the exponent, then code n with code n + 16 above it."""
    coded()
    stored = load_file("model/model.safetensors")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = read("x.gguf")["blk.0.ffn_down_exps.weight"].reshape(-1, 17)
    blocks = stored["model.layers.0.mlp.experts.down_proj_blocks"].reshape(-1, 16)
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2)
    codes[codes == 8] = 0
    want = torch.cat([stored["model.layers.0.mlp.experts.down_proj_scales"].reshape(-1, 1),
                      codes[:, :16] | codes[:, 16:] << 4], 1)  # fmt: skip
    large = ((codes & 7) > 5).any(1)
    assert large.sum() > len(large) // 2
    assert torch.equal(found[large], want[large])


@pytest.mark.long
def test_experts_that_are_decoded_on_purpose_are_rounded_as_others(ckpt: Any) -> None:
    coded()
    told = ckpt("convert", "model", "-o", "x.gguf", "--dequantize", "--gguf-type", "q8_0")
    assert told.code == 0, told
    with cs.open_checkpoint("x.gguf") as found:
        assert found["blk.0.ffn_up_exps.weight"].dtype == "q8_0"


@pytest.mark.long
def test_codes_are_not_joined() -> None:
    coded()
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with pytest.raises(cs.PlanError, match="are quantised in blocks") as caught:
        cs.convert("x.gguf", layout="transformers")
    assert "--dequantize" in str(caught.value.hint)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"num_local_experts": 4}, "gives num_local_experts as 4, but the layers have 5 experts"),
        ({"intermediate_size": 64}, "gate_up_proj is .5, 64, 64., but it must be .5, 64, 128."),
        ({"num_local_experts": None}, "gives num_local_experts as None"),
        ({"num_experts_per_tok": 6}, "num_experts_per_tok as 6, not a number from 1 to 5"),
        ({"num_attention_heads": 5}, "which do not fit 5 heads"),
        ({"swiglu_limit": 8.0}, "gives swiglu_limit as 8.0"),
        ({"swiglu_alpha": 1.0}, "gives swiglu_alpha as 1.0"),
        ({"layer_types": ["full_attention"] * LAYERS}, "gives entry 0 of layer_types as .full_attention."),
        ({"sliding_window": None}, "has no whole number sliding_window"),
        ({"attention_bias": False}, "gives attention_bias as False"),
        ({"tie_word_embeddings": True}, "gives tie_word_embeddings as True"),
    ],
)
def test_a_configuration_that_does_not_fit_is_an_error(fields: dict[str, Any], why: str) -> None:
    saved()
    changed(**fields)
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


@pytest.mark.costly
@pytest.mark.parametrize(
    "gone",
    ["model.layers.1.mlp.experts.gate_up_proj", "model.layers.0.self_attn.sinks", "model.layers.2.mlp.router.bias"],
)
def test_a_missing_tensor_is_named(gone: str) -> None:
    tensors = saved()
    del tensors[gone]
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.PlanError, match=f"{gone} is missing, although other layers have this tensor"):
        cs.convert("model", layout="gguf")


def turned_codes(inner: int = INNER) -> None:
    """Write ``model`` as ``coded`` does, but with codes of (experts, in, out): without the transpose."""
    FIELDS["intermediate_size"] = inner
    try:
        coded()
    finally:
        FIELDS["intermediate_size"] = INNER
    stored = load_file("model/model.safetensors")
    for key in [one for one in stored if one.endswith("_blocks")]:
        experts, rows, blocks, _ = stored[key].shape
        stored[key] = stored[key].reshape(experts, 32 * blocks, rows // 32, 16)
        scales = key.replace("_blocks", "_scales")
        stored[scales] = stored[scales].reshape(experts, 32 * blocks, rows // 32)
    save_file(stored, "model/model.safetensors", {"format": "pt"})


@pytest.mark.long
def test_codes_without_the_transpose_are_named_and_not_written_as_blocks(ckpt: Any) -> None:
    turned_codes(96)
    said = [
        f"3 quantised tensors do not fit the bias (the codes have {rows} rows, the bias {values} values: packed "
        "without the transpose)"
        for rows, values in ((96, 64), (64, 192))
    ]
    plans = (cs.inspect("model"), cs.diff("model", "model"), cs.convert("model", dequantize=True),
             cs.average(["model", "model"]), cs.transplant("model", "model"))  # fmt: skip
    for one in plans:
        assert all(any(text in note for note in one.notes) for text in said), one
    row = cs.check("model").row("quantisation")
    assert row.status.value == "FAIL"
    assert [text in one.what for text, one in zip(said, row.found, strict=True)] == [True, True]
    told = ckpt("convert", "model", "-o", "x.gguf")
    assert told.code == 4
    assert "is (5, 192, 64), but it must be (5, 64, 192)" in " ".join((told.err + told.out).split())
    assert not Path("x.gguf").exists()


@pytest.mark.costly
@pytest.mark.parametrize("key", ["gate_up_proj", "down_proj"])
def test_codes_without_a_bias_are_compared_with_config_json(key: str) -> None:
    turned_codes(96)
    stored = load_file("model/model.safetensors")
    codes = {name: value for name, value in stored.items() if name.endswith((f"{key}_blocks", f"{key}_scales"))}
    save_file(codes, "model/model.safetensors")
    fields = {
        "gate_up_proj": ("64 (hidden_size)", "(5, 192, 64)"),
        "down_proj": ("96 (intermediate_size)", "(5, 64, 96)"),
    }
    field, shape = fields[key]
    said = f"config.json says {field}, but model.layers.0.mlp.experts.{key} is {shape}"
    assert any(said in note for note in cs.inspect("model").notes)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("inner", [32, 64, 96])
def test_codes_that_fit_their_bias_get_no_note(inner: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a width of 64: gate and up together, down, or neither, are square."""
    monkeypatch.setitem(FIELDS, "intermediate_size", inner)
    coded()
    notes = [*cs.inspect("model").notes, *(one.what for row in cs.check("model").rows for one in row.found)]
    assert not any("bias" in note or "config.json says" in note for note in notes)
    cs.convert("model", layout="gguf")


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_mxfp4_are_those_of_gguf_py(seed: int) -> None:
    quants = pytest.importorskip("gguf.quants")
    gguf = pytest.importorskip("gguf")
    made = np.random.default_rng(seed)
    values = made.standard_normal((40, 128)).astype("f4") * np.exp2(made.integers(-60, 60, (40, 1))).astype("f4")
    values[0, :32] = 0
    values[1] = np.tile(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], "f4"), 16)  # halfway between two codes
    save_file({"w.weight": torch.from_numpy(values)}, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type="mxfp4", layout="keep"), "x.gguf")
    want = quants.quantize(values, gguf.GGMLQuantizationType.MXFP4)
    assert torch.equal(read("x.gguf")["w.weight"], torch.from_numpy(want))
