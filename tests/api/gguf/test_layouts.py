"""Models of transformers in llama.cpp's layout, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

HIDDEN, HEADS, KEYS, SIZE, LAYERS = 64, 4, 2, 16, 2
CONFIG: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": HIDDEN, "intermediate_size": 96, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KEYS, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "head_dim": SIZE,
    "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
ONE_NORM = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*ONE_NORM, "pre_feedforward_layernorm", "post_feedforward_layernorm")
OF_HEADS = ("self_attn.q_norm", "self_attn.k_norm")
MODELS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "llama": ("llama", ONE_NORM, False), "mistral": ("llama", ONE_NORM, False), "qwen2": ("qwen2", ONE_NORM, True),
    "qwen3": ("qwen3", (*ONE_NORM, *OF_HEADS), False), "gemma": ("gemma", ONE_NORM, False),
    "gemma2": ("gemma2", FOUR_NORMS, False), "gemma3_text": ("gemma3", (*FOUR_NORMS, *OF_HEADS), False),
}  # fmt: skip
"""Of each model_type: its architecture in llama.cpp, the norms of a layer, and whether it has biases."""


def state(model_type: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    _, norms, biases = MODELS[model_type]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (96, HIDDEN), "lm_head.weight": (96, HIDDEN), "model.norm.weight": (HIDDEN,),
    }  # fmt: skip
    for layer in range(LAYERS):
        at = f"model.layers.{layer}."
        rows = {"q": HEADS * SIZE, "k": KEYS * SIZE, "v": KEYS * SIZE}
        shapes |= {f"{at}self_attn.{name}_proj.weight": (size, HIDDEN) for name, size in rows.items()}
        if biases:
            shapes |= {f"{at}self_attn.{name}_proj.bias": (size,) for name, size in rows.items()}
        shapes[f"{at}self_attn.o_proj.weight"] = (HIDDEN, HEADS * SIZE)
        shapes |= {f"{at}mlp.{name}_proj.weight": (96, HIDDEN) for name in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (HIDDEN, 96)
        shapes |= {f"{at}{name}.weight": (SIZE if "self" in name else HIDDEN,) for name in norms}
    return {key: torch.randn(shape).bfloat16() for key, shape in shapes.items()}


def model(model_type: str, folder: str = "model", **fields: Any) -> dict[str, torch.Tensor]:
    """A folder of a tiny model; its tensors are returned."""
    tensors = state(model_type)
    tied = fields.get("tie_word_embeddings", "gemma" in model_type)
    if tied:
        del tensors["lm_head.weight"]
    Path(folder).mkdir()
    save_file(tensors, f"{folder}/model.safetensors", {"format": "pt"})
    config = {**CONFIG, "model_type": model_type, "tie_word_embeddings": tied, **fields}
    Path(folder, "config.json").write_text(json.dumps(config))
    return tensors


def read(path: str) -> dict[str, torch.Tensor]:
    with cs.open_checkpoint(path) as found:
        return {key: found.tensor(key) for key in found}


@pytest.mark.costly
@pytest.mark.parametrize("model_type", MODELS)
def test_a_model_comes_back_bit_for_bit(model_type: str) -> None:
    tensors = model(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    assert cs.verify("x.gguf").ok
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back.safetensors")
    back = load_file("back.safetensors")
    assert set(back) == set(tensors)
    for key, value in tensors.items():
        # one more, in float32, leaves 24 bits: so transformers has it
        want = (value.float() + 1 - 1).bfloat16() if "gemma" in model_type and key.endswith("norm.weight") else value
        assert torch.equal(back[key], want), key


@pytest.mark.costly
@pytest.mark.parametrize("model_type", MODELS)
def test_names_and_metadata_are_those_of_the_architecture(model_type: str) -> None:
    model(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    architecture = MODELS[model_type][0]
    with cs.open_checkpoint("x.gguf") as found:
        said = dict(found.metadata)
        assert all(key.split(".")[0] in ("token_embd", "output", "output_norm", "blk") for key in found)
        assert all(info.dtype == "float32" for info in found.values() if len(info.shape) == 1)
        kinds = {key: one.kind for key, one in found.header.stored.items()}
    assert said["general.architecture"] == architecture
    want = {
        "block_count": "2", "context_length": "128", "embedding_length": "64", "feed_forward_length": "96",
        "attention.head_count": "4", "attention.head_count_kv": "2", "attention.layer_norm_rms_epsilon": "1e-05",
        "rope.freq_base": "500000.0", "vocab_size": "96", "attention.key_length": "16",
    }  # fmt: skip
    assert {key: said[f"{architecture}.{key}"] for key in want} == want
    assert kinds[f"{architecture}.rope.freq_base"] == 6
    assert {kinds[f"{architecture}.{key}"] for key in ("block_count", "attention.head_count")} == {4}
    assert said["general.file_type"] == "32"


def test_rows_of_queries_and_keys_are_in_pairs() -> None:
    """As convert_hf_to_gguf.py orders them: each row of the first half of a head before its one of the second."""
    tensors = model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    found = read("x.gguf")
    for name, heads in (("q", HEADS), ("k", KEYS)):
        value = tensors[f"model.layers.1.self_attn.{name}_proj.weight"]
        want = value.reshape(heads, 2, SIZE // 2, HIDDEN).swapaxes(1, 2).reshape(value.shape)
        assert torch.equal(found[f"blk.1.attn_{name}.weight"], want)
    assert torch.equal(found["blk.1.attn_v.weight"], tensors["model.layers.1.self_attn.v_proj.weight"])


def test_norms_of_gemma_are_stored_plus_one_in_float32() -> None:
    tensors = model("gemma2")
    cs.apply(cs.convert("model", layout="gguf", dtype="float16"), "x.gguf")
    found = read("x.gguf")
    value = tensors["model.layers.0.pre_feedforward_layernorm.weight"]
    assert torch.equal(found["blk.0.ffn_norm.weight"], value.float() + 1)
    assert found["blk.0.ffn_up.weight"].dtype == torch.float16


def test_a_tied_output_layer_is_stored_once() -> None:
    model("llama", tie_word_embeddings=True)
    tensors = load_file("model/model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, "model/model.safetensors")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        assert "output.weight" not in found


def test_the_name_of_the_output_asks_for_the_layout(ckpt: Any) -> None:
    model("qwen2")
    told = ckpt("convert", "model", "-o", "x.gguf")
    assert told.code == 0, told
    assert "llama.cpp's names and layout for the architecture qwen2" in told.err + told.out
    told = ckpt("convert", "model", "-o", "kept.gguf", "--layout", "keep")
    assert told.code == 0, told
    assert "lm_head.weight" in read("kept.gguf")


def test_an_unknown_model_keeps_its_names_with_a_note(ckpt: Any) -> None:
    Path("model").mkdir()
    save_file({"a.weight": torch.ones(2, 3)}, "model/model.safetensors")
    Path("model/config.json").write_text(json.dumps({"model_type": "bert"}))
    told = ckpt("convert", "model", "-o", "x.gguf")
    assert told.code == 0, told
    assert "llama.cpp will not load the output" in told.err + told.out
    told = ckpt("convert", "model", "-o", "y.gguf", "--layout", "gguf")
    assert (told.code, Path("y.gguf").exists()) == (4, False)


def test_flux_gets_the_architecture_with_which_comfyui_reads_it() -> None:
    recorded = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "flux"
    plan = cs.convert(recorded / "bfl.safetensors", layout="auto")
    assert plan.metadata["general.architecture"] == "flux"
    assert any("with which ComfyUI-GGUF reads the output" in note for note in plan.notes)
    plan = cs.convert(recorded / "diffusers.safetensors", layout="auto")
    assert "general.architecture" not in plan.metadata
    assert any("ComfyUI-GGUF will not load the output" in n and "--layout bfl" in n for n in plan.notes)


@pytest.mark.parametrize(("network", "name"), [("unet", "sd1"), ("xl", "sdxl")])
def test_a_u_net_gets_the_architecture_with_which_comfyui_reads_it(ckpt: Any, network: str, name: str) -> None:
    recorded = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / f"stable-diffusion.{network}"
    prefix = "model.diffusion_model."
    tensors = load_file(recorded / "ldm.safetensors")
    unet = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    save_file(unet, "unet.safetensors")
    told = ckpt("convert", "unet.safetensors", "-o", "unet.gguf")
    assert told.code == 0, told
    assert f"general.architecture is {name}, with which ComfyUI-GGUF reads the output" in " ".join(told.err.split())
    assert "will not load" not in told.err
    assert "tokeniser" not in told.err
    told = ckpt("inspect", "unet.gguf")
    assert f"model  {name}, " in told.out
    assert not {"layers", "wide", "warning:", "note:"} & set(told.out.replace(",", "").split() + told.err.split())


def test_a_vae_in_gguf_gets_no_architecture() -> None:
    recorded = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "stable-diffusion.vae"
    plan = cs.convert(recorded / "ldm.safetensors", layout="auto")
    assert "general.architecture" not in plan.metadata
    assert any(note.startswith("llama.cpp reads no diffusion models, and ComfyUI-GGUF reads") for note in plan.notes)


def test_a_tensor_without_a_name_is_an_error() -> None:
    model("llama")
    tensors = load_file("model/model.safetensors")
    save_file({**tensors, "model.layers.0.mlp.gate.weight": torch.ones(2)}, "model/model.safetensors")
    with pytest.raises(
        cs.PlanError, match=r"1 tensor has no name in llama.cpp's architecture llama: model.layers.0.ml"
    ):
        cs.convert("model", layout="gguf")


@pytest.mark.parametrize(
    ("kind", "why", "hint"),
    [
        ("longrope", "for which GGUF needs a separate tensor", "convert_hf_to_gguf.py"),
        ("dynamic", "which llama.cpp's metadata cannot express", "--layout keep"),
    ],
)
def test_a_rotary_embedding_that_metadata_cannot_describe_is_an_error(kind: str, why: str, hint: str) -> None:
    model("llama", rope_parameters={"rope_theta": 5e5, "rope_type": kind, "factor": 8.0})
    with pytest.raises(cs.PlanError, match=f"scales the rotary embedding with the method {kind}, {why}") as raised:
        cs.convert("model", layout="gguf")
    assert hint in raised.value.hint


def test_a_linear_scaling_goes_into_the_metadata() -> None:
    model("llama", rope_scaling={"type": "linear", "factor": 2.0}, rope_parameters=None, rope_theta=10000)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        assert found.metadata["llama.rope.scaling.type"] == "linear"
        assert found.metadata["llama.rope.scaling.factor"] == "2.0"
        assert found.metadata["llama.rope.freq_base"] == "10000.0"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"num_attention_heads": 5}, "which do not fit 5 heads"),
        ({"num_attention_heads": "many"}, "the number of heads"),
        ({"max_position_embeddings": None}, "config.json has no whole number max_position_embeddings"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_an_error(fields: dict[str, Any], why: str) -> None:
    model("llama", **fields)
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")


def test_an_unknown_layout_is_an_error() -> None:
    model("llama")
    with pytest.raises(cs.ConfigError, match="layout=.ggml. is unknown"):
        cs.convert("model", layout="ggml")
    cs.apply(cs.rename("model", map=["model.layers=blk"]), "names.safetensors")
    with pytest.raises(cs.PlanError, match="has no general.architecture"):
        cs.convert("names.safetensors", layout="transformers")


def test_a_plan_file_gives_the_same_file() -> None:
    model("llama")
    plan = cs.convert("model", layout="gguf", gguf_type="q8_0")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(plan, "x.gguf")
    cs.apply("plan.json", "y.gguf")
    one, two = read("x.gguf"), read("y.gguf")
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.costly
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "gemma3_text"])
def test_transformers_loads_the_file(model_type: str) -> None:
    """Run where gguf is installed, which transformers reads GGUF with."""
    pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    tensors = model(model_type)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(".", gguf_file="x.gguf", dtype=torch.float32)
    found = loaded.state_dict()
    for key, value in tensors.items():
        assert torch.equal(found[key], value.float() + 1 - 1 if "gemma" in model_type else value.float()), key


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
@pytest.mark.parametrize("stated", [HEADS, 1, None])
def test_a_number_of_heads_that_the_keys_do_not_have_is_an_error(
    model_type: str, stated: int | None, ckpt: Any
) -> None:
    model(model_type, num_key_value_heads=stated)
    told = ckpt("convert", "model", "-o", "x.gguf")
    assert (told.code, Path("x.gguf").exists()) == (4, False)
    assert "num_key_value_heads" in told.err
    assert "the key projections (of attention) of model have 32 rows, which do not fit" in told.err


def test_either_number_of_heads_may_be_the_wrong_one() -> None:
    model("llama", num_attention_heads=HEADS * 2)
    with pytest.raises(cs.PlanError) as error:
        cs.convert("model", layout="gguf")
    assert "2 heads (num_key_value_heads) of 8 rows. The query projections have" in str(error.value)
    assert "Correct num_attention_heads or num_key_value_heads, whichever is wrong" in str(error.value)


@pytest.mark.costly
@pytest.mark.parametrize("stated", ["4", "1", ""])
def test_the_way_back_checks_the_heads_of_keys(stated: str) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf", metadata={"llama.attention.head_count_kv": stated}), "x.gguf")
    with pytest.raises(
        cs.PlanError, match="the key projections .of attention. of x.gguf have .* rows, which do not fit"
    ):
        cs.convert("x.gguf", layout="transformers")


def test_without_a_number_of_heads_of_keys_it_is_that_of_queries() -> None:
    tensors = model("llama", num_key_value_heads=None)
    for layer in range(LAYERS):
        for name in ("k", "v"):
            tensors[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = torch.randn(HEADS * SIZE, HIDDEN).bfloat16()
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back.safetensors")
    back = load_file("back.safetensors")
    assert all(torch.equal(back[key], value) for key, value in tensors.items())


@pytest.mark.long
def test_blocks_go_back_decoded() -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf", gguf_type="q8_0"), "x.gguf")
    cs.apply(cs.convert("x.gguf", layout="keep", dequantize=True, dtype="float32"), "plain.gguf")
    cs.apply(cs.convert("plain.gguf", layout="transformers"), "want.safetensors")
    cs.apply(cs.convert("x.gguf", layout="transformers", dequantize=True, dtype="float32"), "found.safetensors")
    want, found = load_file("want.safetensors"), load_file("found.safetensors")
    assert all(torch.equal(found[key], value) for key, value in want.items())


def test_layers_of_several_shapes_are_another_fault_than_a_wrong_number_of_heads() -> None:
    tensors = model("llama")
    key = "model.layers.1.self_attn.q_proj.weight"
    save_file({**tensors, key: tensors[key][: 3 * SIZE]}, "model/model.safetensors")
    with pytest.raises(
        cs.PlanError, match=r"the query projections of model have \[48, 64\] rows in different layers; every"
    ):
        cs.convert("model", layout="gguf")
    keys = {one: value[:, :32].contiguous() if "k_proj.weight" in one else value for one, value in tensors.items()}
    save_file(keys, "model/model.safetensors")
    with pytest.raises(cs.PlanError, match="have 32 columns, but the query projections have 64"):
        cs.convert("model", layout="gguf")
