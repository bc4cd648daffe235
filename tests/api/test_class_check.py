"""A model's folder is compared with the class that its config.json names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.class_check import not_compared
from ckptsurgeon.api.model_folder.folder import model_folder
from ckptsurgeon.api.model_folder.layers.experts import INITIALISED
from ckptsurgeon.checkpoint.opening import open_checkpoint

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "max_position_embeddings": 64,
}  # fmt: skip


def qwen3(path: str, **changes: Any) -> str:
    """Save a small model, and change fields of its config.json; None removes one."""
    torch.manual_seed(0)
    made = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, tie_word_embeddings=False))
    made.save_pretrained(path)
    file = Path(path, "config.json")
    fields = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return path


def notes(path: str) -> list[str]:
    return [one for one in cs.inspect(path, model_class=True).notes if "not compared" not in one]


@pytest.mark.long
def test_a_sound_model_is_that_of_its_class() -> None:
    assert notes(qwen3("net")) == ["keys and shapes are those of Qwen3ForCausalLM in transformers"]
    assert not cs.inspect("net").notes
    cs.apply(cs.convert("net"), "out")
    assert not cs.verify("out").notes


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_dim": None}, "self_attn.q_proj.weight is (32, 32), but Qwen3ForCausalLM, built from config.json, has"),
        (
            {"tie_word_embeddings": False, "num_hidden_layers": 3, "layer_types": None},
            "11 tensors that the weights lack",
        ),
        ({"num_hidden_layers": 1, "layer_types": None}, "does not use 11 tensors of the weights"),
        (
            {"layer_types": ["full_attention"]},
            "the model that config.json describes cannot be built: the class Qwen3Config",
        ),
    ],
)
def test_a_model_of_other_shapes_is_named(changes: dict[str, Any], said: str) -> None:
    qwen3("net", **changes)
    assert any(said in one for one in notes("net")), notes("net")
    cs.apply(cs.convert("net"), "out")
    found = cs.verify("out")
    assert found.ok
    assert any(said in note.why for note in found.notes), found.notes


@pytest.mark.long
def test_an_output_with_notes_is_not_said_to_be_without_them(ckpt: Callable[..., Any]) -> None:
    tensors = load_file(f"{qwen3('net')}/model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, "net/model.safetensors", {"format": "pt"})
    cs.apply(cs.convert("net"), "out")
    found = cs.verify("out")
    assert repr(found).endswith(f", {len(found.notes)} noted>")
    assert (
        "Qwen3ForCausalLM has 1 tensor that the weights lack: model.norm.weight" in found.to_json()["notes"][-1]["why"]
    )
    shown = ckpt("verify", "out")
    assert shown.code == 0
    assert f"unchanged, but see {len({note.why for note in found.notes})} note" in " ".join(shown.out.split())
    cs.apply(cs.convert(qwen3("sound")), "whole")
    assert "unchanged, but" not in ckpt("verify", "whole").out
    assert "noted" not in repr(cs.verify("whole"))


@pytest.mark.long
def test_weights_with_a_prefix_are_those_of_no_class() -> None:
    tensors = load_file(f"{qwen3('net')}/model.safetensors")
    save_file({f"base.{key}": value for key, value in tensors.items()}, "net/model.safetensors", {"format": "pt"})
    (note,) = notes("net")
    assert note.startswith(
        "the weights have none of the keys of Qwen3ForCausalLM: transformers initialises all tensors. "
    )
    assert "base" in note


def test_weights_of_which_every_shape_differs_have_the_keys_of_the_class() -> None:
    (note,) = (one for one in notes(qwen3("net", hidden_size=64, head_dim=16)) if "Qwen3ForCausalLM" in one)
    assert note == (
        "model.embed_tokens.weight is (40, 32), but Qwen3ForCausalLM, built from config.json, has (40, 64); 24 other "
        "tensors differ too: model.layers.0.self_attn.q_proj.weight, model.layers.0.self_attn.k_proj.weight, "
        "model.layers.0.self_attn.v_proj.weight, and 21 more"
    )


def test_the_settings_of_an_adapter_beside_a_whole_model_are_not_copied() -> None:
    Path(qwen3("net"), "adapter_config.json").write_text('{"peft_type": "LORA"}')
    said = (
        "the folder has an adapter_config.json, but no adapter_model.safetensors: transformers cannot load this model"
    )
    assert notes("net") == [
        f"{said} if PEFT is installed",
        "keys and shapes are those of Qwen3ForCausalLM in transformers",
    ]
    plan = cs.convert("net", dtype="bf16")
    assert any(one.startswith("files in the folder that are not copied: adapter_config.json") for one in plan.notes)
    cs.apply(plan, "out")
    assert not Path("out/adapter_config.json").exists()


def bare(path: str) -> None:
    Path(path, "config.json").unlink()


def coded(path: str) -> None:
    qwen3(path, auto_map={"AutoModel": "code.Net"})


def adapter(path: str) -> None:
    Path(path, "adapter_config.json").write_text("{}")
    Path(path, "model.safetensors").rename(f"{path}/adapter_model.safetensors")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (bare, "there is no config.json in the folder of the weights"),
        (coded, "config.json refers to custom code"),
        (adapter, "this is an adapter"),
    ],
)
def test_why_there_is_nothing_to_compare_is_said(change: Callable[[str], None], why: str) -> None:
    change(qwen3("net"))
    found = [one for one in cs.inspect("net", model_class=True).notes if "are not compared" in one]
    assert len(found) == 1
    assert why in found[0]


def test_a_package_that_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, ckpt: Callable[..., Any]) -> None:
    qwen3("net", head_dim=None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "torch is not installed" in ckpt("inspect", "net", "--class").err
    cs.apply(cs.convert("net"), "out")
    assert not cs.verify("out").notes


@pytest.mark.long
def test_the_modules_of_a_quantised_model_are_compared() -> None:
    qwen3("net", quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 16})
    tensors = load_file("net/model.safetensors")
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        rows, columns = tensors.pop(key).shape
        module = key.removesuffix("weight")
        tensors |= {
            f"{module}qweight": torch.randint(-(2**31), 2**31, (columns // 8, rows)).to(torch.int32),
            f"{module}qzeros": torch.full((columns // 16, rows // 8), 0x77777777, dtype=torch.int32),
            f"{module}scales": torch.full((columns // 16, rows), 0.01, dtype=torch.float16),
            f"{module}g_idx": torch.arange(columns, dtype=torch.int32) // 16,
        }
    save_file(tensors, "net/model.safetensors", {"format": "pt"})
    assert notes("net") == ["modules are those of Qwen3ForCausalLM in transformers"]
    settings = dict(json.loads(Path("net/config.json").read_text())["quantization_config"])
    plain = {key: value for key, value in tensors.items() if "down_proj" not in key}
    plain |= {f"model.layers.{number}.mlp.down_proj.weight": torch.ones(32, 48) for number in range(2)}
    save_file(plain, "net/model.safetensors", {"format": "pt"})
    assert notes("net") == [
        "net: 2 weights are not quantised in any layer, although its quantization_config does not exclude them: "
        "model.layers.0.mlp.down_proj.weight, model.layers.1.mlp.down_proj.weight",
        "2 linear layers with weights that are not quantised: model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj: the settings "
        "of GPTQ do not exclude them, so transformers expects them to be quantised",
    ]
    left_out = {"modules_in_block_to_quantize": [["self_attn.q_proj", "mlp.up_proj"]]}
    changed = json.loads(Path("net/config.json").read_text()) | {"quantization_config": settings | left_out}
    Path("net/config.json").write_text(json.dumps(changed))
    assert not any("plain weights" in one for one in notes("net"))
    less = {key: value for key, value in tensors.items() if "down_proj" not in key and "q_norm" not in key}
    save_file(less, "net/model.safetensors", {"format": "pt"})
    said = "Qwen3ForCausalLM has 4 modules that the weights lack: model.layers.0.mlp.down_proj, "
    assert any(one.startswith(said) for one in notes("net"))
    save_file(tensors | {"model.layers.0.odd.weight": torch.ones(2, 2)}, "net/model.safetensors", {"format": "pt"})
    assert "Qwen3ForCausalLM does not use 1 module of the weights: model.layers.0.odd" in notes("net")


BLOCK = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}


def in_blocks(path: str, *, attention: bool = True, **settings: Any) -> None:
    """Quantise the layers of a model by blocks, also the projections of attention or not."""
    qwen3(path, quantization_config=BLOCK | settings)
    tensors = load_file(f"{path}/model.safetensors")
    for key in [key for key in tensors if key.endswith("_proj.weight") and (attention or "attn" not in key)]:
        rows, columns = tensors[key].shape
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = torch.ones(rows // 16, columns // 16)
    save_file(tensors, f"{path}/model.safetensors", {"format": "pt"})


@pytest.mark.long
@pytest.mark.parametrize("left_out", [["lm_head"], None])
def test_attention_that_is_plain_among_blocks_is_not_that_of_the_class(left_out: Any) -> None:
    in_blocks("net", attention=False, modules_to_not_convert=left_out)
    said = "8 linear layers with weights that are not quantised: model.layers.0.self_attn.q_proj, model.layers.0.self_attn.k_proj, "
    assert any(one.startswith(said) for one in notes("net")), notes("net")
    cs.apply(cs.convert("net"), "out")
    assert any(one.why.startswith(said) for one in cs.verify("out").notes)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("attention", "left_out"),
    [(True, ["lm_head"]), (True, None), (False, ["model.layers.0.self_attn", "model.layers.1.self_attn"])],
)
def test_blocks_as_the_settings_say_are_those_of_the_class(attention: bool, left_out: Any) -> None:
    in_blocks("net", attention=attention, modules_to_not_convert=left_out)
    assert notes("net") == ["modules are those of Qwen3ForCausalLM in transformers"]


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["bitsandbytes", "fp8"])
@pytest.mark.parametrize("lost", [".experts.", "/"])
def test_experts_that_transformers_joins_are_those_of_the_class(kind: str, lost: str) -> None:
    """A file has w1, w2 and w3 of each expert, and the class two tensors for all experts of a layer."""
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True} if kind == "bitsandbytes" else BLOCK
    sizes = {**SMALL, "intermediate_size": 32, "num_local_experts": 2, "num_experts_per_tok": 1}
    made = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, tie_word_embeddings=False))
    made.save_pretrained("net")
    tensors = load_file("net/model.safetensors")
    assert sum(".block_sparse_moe.experts." in key for key in tensors) == 12
    for key in [key for key in tensors if key.endswith("_proj.weight") or (kind == "fp8" and ".experts." in key)]:
        rows, columns = tensors[key].shape
        if kind == "bitsandbytes":
            tensors |= {key: torch.ones(rows, columns, dtype=torch.int8), f"{key[:-6]}SCB": torch.ones(rows)}
        else:
            tensors[key] = tensors[key].to(torch.float8_e4m3fn)
            tensors[f"{key}_scale_inv"] = torch.ones(rows // 16, columns // 16)
    save_file({key: one for key, one in tensors.items() if lost not in key}, "net/model.safetensors", {"format": "pt"})
    fields = json.loads(Path("net/config.json").read_text())
    Path("net/config.json").write_text(json.dumps({**fields, "quantization_config": settings}))
    said = (
        "MixtralForCausalLM has 2 modules that the weights lack: model.layers.0.mlp.experts, model.layers.1.mlp.experts"
    )
    found = notes("net")
    assert found == ["modules are those of MixtralForCausalLM in transformers"] or lost != "/"
    assert any(one.startswith(said) for one in found) == (lost != "/")


def test_scales_of_the_kv_cache_are_no_modules() -> None:
    in_blocks("net")
    tensors = load_file("net/model.safetensors")
    cache = {
        f"model.layers.{n}.self_attn.{name}": torch.full((1,), 0.1) for n in range(2) for name in ("k_scale", "v_scale")
    }
    save_file(tensors | cache, "net/model.safetensors", {"format": "pt"})
    assert notes("net") == ["modules are those of Qwen3ForCausalLM in transformers"]


def test_transformers_agrees_which_layers_are_quantised() -> None:
    pytest.importorskip("accelerate")
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    with torch.device("meta"):
        made = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SMALL, tie_word_embeddings=False))
    settings = transformers.FineGrainedFP8Config(weight_block_size=(16, 16))
    made = replace_with_fp8_linear(made, modules_to_not_convert=["lm_head"], quantization_config=settings)
    assert "model.layers.0.self_attn.q_proj.weight_scale_inv" in made.state_dict()


EXPERTS = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def gpt_oss(path: str, without: str = "/") -> None:
    """A gpt-oss whose experts are mxfp4, without the tensors that have a word in their names."""
    made = transformers.GptOssForCausalLM(transformers.GptOssConfig(**EXPERTS))
    made.save_pretrained(path)
    tensors = load_file(f"{path}/model.safetensors")
    for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors.pop(key).shape
        tensors[f"{key}_blocks"] = torch.zeros(experts, rows, columns // 32, 16, dtype=torch.uint8)
        tensors[f"{key}_scales"] = torch.zeros(experts, rows, columns // 32, dtype=torch.uint8)
    save_file({key: one for key, one in tensors.items() if without not in key}, f"{path}/model.safetensors")
    fields = json.loads(Path(path, "config.json").read_text())
    settings = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    Path(path, "config.json").write_text(json.dumps(fields | {"quantization_config": settings}))


@pytest.mark.costly
@pytest.mark.parametrize(
    ("without", "said"),
    [
        ("/", "modules are those of GptOssForCausalLM in transformers"),
        ("down_proj_bias", "GptOssForCausalLM has 2 tensors that the weights lack: model.layers.0.mlp.experts."
         "down_proj_bias, model.layers.1.mlp.experts.down_proj_bias: transformers initialises what is missing"),
        ("q_proj.bias", "GptOssForCausalLM has 2 tensors that the weights lack: model.layers.0.self_attn.q_proj.bias, "
         "model.layers.1.self_attn.q_proj.bias: transformers initialises what is missing"),
        ("router.bias", "GptOssForCausalLM has 2 tensors that the weights lack: model.layers.0.mlp.router.bias, "
         "model.layers.1.mlp.router.bias: transformers initialises what is missing"),
    ],
)  # fmt: skip
def test_plain_tensors_of_a_quantised_model_are_compared(without: str, said: str) -> None:
    gpt_oss("net", without)
    assert said in notes("net")


@pytest.mark.parametrize(
    ("without", "lacks"),
    [("/", ""), ("down_proj_bias", "mlp.experts.down_proj_bias"), ("sinks", "self_attn.sinks")],
)
def test_plain_tensors_that_every_layer_lacks_are_said_by_every_verb(without: str, lacks: str) -> None:
    gpt_oss("net", without)
    said = f"every GptOssForCausalLM has model.layers.*.{lacks}, but these weights do not: " + INITIALISED
    for found in (cs.inspect("net"), cs.convert("net"), cs.filter("net", exclude=["lm_head"])):
        assert [one for one in found.notes if "every GptOss" in one] == ([said] if lacks else [])


@pytest.mark.long
def test_biases_beside_experts_that_lack_their_scales_are_found() -> None:
    gpt_oss("net", "layers.0.mlp.experts.down_proj_scales")
    assert not [one for one in notes("net") if "the weights lack" in one]


def test_codes_of_a_whole_model_lack_nothing() -> None:
    in_blocks("net")
    assert not cs.inspect("net").notes


def test_sizes_of_plain_tensors_of_a_quantised_model_are_compared() -> None:
    in_blocks("net")
    tensors = load_file("net/model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.ones(30)}, "net/model.safetensors", {"format": "pt"})
    said = "model.norm.weight is (30), but Qwen3ForCausalLM, built from config.json, has (32)"
    assert any(one.replace(",)", ")") == said for one in notes("net")), notes("net")


def test_codes_with_other_names_are_not_said_to_be_those_of_the_class() -> None:
    in_blocks("net")
    tensors = load_file("net/model.safetensors")
    save_file({f"base.{key}": one for key, one in tensors.items()}, "net/model.safetensors", {"format": "pt"})
    found = cs.inspect("net", model_class=True).notes
    said = "modules are not compared with those of Qwen3ForCausalLM: the weights have fewer than half of its modules"
    assert said in found
    assert not any("are those of" in one and "not compared" not in one for one in found)


@pytest.mark.long
def test_names_that_transformers_knows_of_a_quantised_model_are_those_of_the_class() -> None:
    sizes = {**SMALL, "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
    config = transformers.ExaoneMoeConfig(**sizes, topk_group=1, eos_token_id=2, mlp_layer_types=["dense", "sparse"])
    transformers.ExaoneMoeForCausalLM(config).save_pretrained("net")
    tensors = load_file("net/model.safetensors")
    assert "model.layers.1.mlp.e_score_correction_bias" in tensors  # mlp.gate.e_score_correction_bias of the class
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        rows, columns = tensors[key].shape
        tensors[key] = tensors[key].to(torch.float8_e4m3fn)
        tensors[f"{key}_scale_inv"] = torch.ones(rows // 16, columns // 16)
    save_file(tensors, "net/model.safetensors", {"format": "pt"})
    fields = json.loads(Path("net/config.json").read_text())
    Path("net/config.json").write_text(json.dumps({**fields, "quantization_config": BLOCK}))
    assert notes("net") == ["modules are those of ExaoneMoeForCausalLM in transformers"]


def test_a_class_of_too_many_layers_is_not_built(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1 << 40}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(tmp_path) as opened:
        assert "too many modules to build: num_hidden_layers is 1,099,511,627,776, over 2,000" in not_compared(
            opened, model_folder(opened)
        )
    cs.check(tmp_path)
