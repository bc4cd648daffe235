"""Which weights of a model `ckpt convert --quantize` rounds, what the folder says of them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.encoders._schemes import SCHEMES

from ...helpers.transformers_models import GPT2
from ...helpers.zoo import BY_NAME

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 60, "bos_token_id": 1,
    "eos_token_id": 2, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip
LAYERS = [
    f"model.layers.{number}.{name}"
    for number in range(2)
    for name in (
        "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj",
        "self_attn.v_proj",
    )
]  # fmt: skip


def saved(path: Path, config: dict[str, Any] = LLAMA) -> Path:
    """A model of transformers, as it saves one."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(config)
    torch.manual_seed(0)
    made = AutoConfig.for_model(fields.pop("model_type"), **fields)
    AutoModelForCausalLM.from_config(made).to(torch.bfloat16).save_pretrained(path)
    return path


def settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def quantised(folder: Path) -> list[str]:
    """The modules that are quantised."""
    return sorted(one.name.removesuffix(".weight") for one in cs.open_checkpoint(folder).codes.tensors)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", SCHEMES)
def test_linear_layers_are_quantised_and_the_folder_says_so(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    plan = cs.convert(folder, quantize=name)
    cs.apply(plan, tmp_path / "q")
    assert quantised(tmp_path / "q") == LAYERS
    found = settings(tmp_path / "q")
    assert found[SCHEMES[name].ignore] == ["lm_head", "model.embed_tokens"]
    written = cs.open_checkpoint(tmp_path / "q")
    assert written.notes == ()
    assert written.quantisation == found
    assert json.loads((tmp_path / "q" / "config.json").read_text())["dtype"] == "bfloat16"
    assert f"quantised to {name}: 14 of 16 matrices (linear layers of LlamaForCausalLM)" in plan.notes
    assert "not quantised (output layer): lm_head.weight" in plan.notes
    assert "not quantised (embedding): model.embed_tokens.weight" in plan.notes
    assert "not quantised (not a matrix): 5 tensors" in plan.notes
    report = cs.verify(tmp_path / "q")
    assert (report.ok, report.notes) == (True, ())
    scales = {
        one.dtype for key, one in load_file(tmp_path / "q" / "model.safetensors").items() if "weight_scale" in key
    }
    wanted = {"fp8-block": torch.float32, "mxfp4": torch.uint8, "nvfp4": torch.float8_e4m3fn}
    assert scales == {wanted.get(name, torch.bfloat16)}


@pytest.mark.long
def test_transformers_computes_with_what_the_codes_stand_for(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = saved(tmp_path / "m")
    cs.apply(cs.convert(folder, quantize="fp8-block"), tmp_path / "q")
    cs.apply(cs.convert(tmp_path / "q", dequantize=True), tmp_path / "d")
    tokens = torch.arange(1, 12).view(1, -1)
    with torch.no_grad():
        outputs = [
            AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).eval()(tokens).logits
            for name in ("q", "d", "m")
        ]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert float((outputs[0] - outputs[2]).abs().max()) < 0.1 * float(outputs[2].abs().max())


def test_transformers_rounds_blocks_to_the_same_codes(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(256, 384, generator=generator) * torch.logspace(-20, 20, 256)[:, None]
    values[:128, :128] = 0
    for dtype in (torch.float32, torch.bfloat16):
        save_file({"a.weight": values.to(dtype)}, tmp_path / "m.safetensors")
        cs.apply(cs.convert(tmp_path / "m.safetensors", quantize="fp8-block"), tmp_path / "q.safetensors", force=True)
        stated = SimpleNamespace(quantization_config=SimpleNamespace(weight_block_size=(128, 128), scale_fmt="float"))
        wanted = Fp8Quantize(stated).convert({"a.weight": values.to(dtype)})
        found = load_file(tmp_path / "q.safetensors")
        assert torch.equal(found["a.weight"].view(torch.uint8), wanted["a.weight"].view(torch.uint8))
        assert torch.equal(found["a.weight_scale_inv"], wanted["a.weight_scale_inv"])


def test_blocks_at_the_edges_may_be_smaller(tmp_path: Path) -> None:
    """As in DeepSeek-V3, which has 576 rows: five scales."""
    save_file({"a.weight": torch.randn(200, 60)}, tmp_path / "m.safetensors")
    cs.apply(cs.convert(tmp_path / "m.safetensors", quantize="fp8-block"), tmp_path / "q.safetensors")
    assert load_file(tmp_path / "q.safetensors")["a.weight_scale_inv"].shape == (2, 1)


def test_patterns_choose(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    plan = cs.convert(folder, quantize="int8", include=["model.layers.1"], exclude=["**.o_proj"])
    cs.apply(plan, tmp_path / "q")
    assert quantised(tmp_path / "q") == [one for one in LAYERS if ".1." in one and "o_proj" not in one]
    ignored = settings(tmp_path / "q")["ignore"]
    assert {"model.layers.1.self_attn.o_proj", "model.layers.0.mlp.up_proj", "lm_head"} <= {*ignored}
    left = [f"model.layers.{number}.self_attn.o_proj.weight" for number in range(2)]
    assert f"not quantised (--exclude): {', '.join(left)}" in plan.notes
    assert any(note.startswith("not quantised (not in --include): ") and "3 more" in note for note in plan.notes)


@pytest.mark.long
def test_an_output_layer_is_quantised_if_it_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m")
    cs.apply(cs.convert(folder, quantize="int8", include=["lm_head", "model.layers.0.mlp"]), tmp_path / "q")
    assert quantised(tmp_path / "q") == ["lm_head", *LAYERS[:3]]
    assert "lm_head" not in settings(tmp_path / "q")["ignore"]
    cs.apply(cs.convert(folder, quantize="int8", include=["**"]), tmp_path / "all")
    assert quantised(tmp_path / "all") == LAYERS


@pytest.mark.long
def test_a_tied_output_layer_stays(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", {**LLAMA, "tie_word_embeddings": True})
    cs.apply(cs.convert(folder, quantize="nvfp4"), tmp_path / "q")
    assert settings(tmp_path / "q")["ignore"] == ["model.embed_tokens", "lm_head"]
    tied = torch.randn(60, 128)
    torch.save({"embed.weight": tied, "lm_head.weight": tied, "a.up.weight": torch.randn(8, 128)}, tmp_path / "t.pth")
    plan = cs.convert(tmp_path / "t.pth", quantize="int8", include=["lm_head", "a"])
    cs.apply(plan, tmp_path / "t.safetensors")
    assert "not quantised (tied to embed.weight): lm_head.weight" in plan.notes
    assert load_file(tmp_path / "t.safetensors")["lm_head.weight"].dtype == torch.float32


def test_tied_matrices_are_tied_codes(tmp_path: Path) -> None:
    shared = torch.randn(8, 32)
    torch.save({"a.up.weight": shared, "b.up.weight": shared}, tmp_path / "t.pth")
    cs.apply(cs.convert(tmp_path / "t.pth", quantize="int8"), tmp_path / "q.pth")
    ties = cs.open_checkpoint(tmp_path / "q.pth").ties
    assert ties == {"b.up.weight": "a.up.weight", "b.up.weight_scale": "a.up.weight_scale"}


def test_routers_stay_and_experts_do_not(tmp_path: Path) -> None:
    config = {
        **LLAMA, "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32,
    }  # fmt: skip
    folder = saved(tmp_path / "m", config)
    plan = cs.convert(folder, quantize="fp8-block")
    cs.apply(plan, tmp_path / "q")
    found = quantised(tmp_path / "q")
    assert sum(".experts." in one for one in found) == 12
    assert "model.layers.0.mlp.gate" not in found
    assert "model.layers.0.mlp.gate" in settings(tmp_path / "q")["modules_to_not_convert"]
    assert "not quantised (router of experts): model.layers.0.mlp.gate.weight" in plan.notes
    assert any("without their global scales" in note for note in cs.convert(folder, quantize="nvfp4").notes)


def test_experts_in_one_tensor_stay(tmp_path: Path) -> None:
    save_file(
        {"layers.0.mlp.experts.gate_up_proj": torch.randn(4, 32, 64), "layers.0.attn.q_proj.weight": torch.randn(32, 32)},
        tmp_path / "m.safetensors",
    )  # fmt: skip
    plan = cs.convert(tmp_path / "m.safetensors", quantize="fp8-block")
    stated = json.loads(plan.metadata["quantization_config"])
    assert stated["modules_to_not_convert"] == ["layers.0.mlp.experts"]
    assert "not quantised (experts in one tensor): layers.0.mlp.experts.gate_up_proj" in plan.notes


def test_conv1d_of_gpt2_is_no_linear_layer(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", {**GPT2, "architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(cs.PlanError, match=r"has no matrix to quantise \(.*Conv1D is not Linear"):
        cs.convert(folder, quantize="int8")


def test_without_a_class_names_tell(tmp_path: Path) -> None:
    state = {
        "enc.embed.weight": torch.randn(10, 32), "enc.layers.0.fc1.weight": torch.randn(16, 32), "enc.pos": torch.randn(4, 32),
        "enc.layers.0.norm.weight": torch.ones(32), "lm_head.weight": torch.randn(10, 32), "mask": torch.ones(4, 4).bool(),
        "enc.layers.0.gate.weight": torch.randn(4, 32), "enc.layers.0.idx.weight": torch.ones(4, 4, dtype=torch.int64),
        "enc.layers.0.none.weight": torch.ones(0, 32),
    }  # fmt: skip
    save_file(state, tmp_path / "m.safetensors")
    plan = cs.convert(tmp_path / "m.safetensors", quantize="int8")
    cs.apply(plan, tmp_path / "q.safetensors")
    found = load_file(tmp_path / "q.safetensors")
    assert [key for key, one in found.items() if one.dtype == torch.int8] == ["enc.layers.0.fc1.weight"]
    assert "quantised to int8: 1 of 8 matrices (linear layers, guessed from their names)" in plan.notes
    assert "not quantised (it is int64): enc.layers.0.idx.weight" in plan.notes
    assert "not quantised (it has no elements): enc.layers.0.none.weight" in plan.notes
    assert "not quantised (not the weight of a layer): enc.pos, mask" in plan.notes
    assert all(torch.equal(found[key], one) for key, one in state.items() if key != "enc.layers.0.fc1.weight")


def test_a_matrix_that_does_not_fit_is_an_error_that_names_it(tmp_path: Path, ckpt: Any) -> None:
    save_file({"a.fc.weight": torch.randn(8, 120), "b.fc.weight": torch.randn(8, 128)}, tmp_path / "m.safetensors")
    done = ckpt("convert", "m.safetensors", "--quantize", "int4-group128", "-o", "q.safetensors")
    assert done.code == 4
    assert "a.fc.weight cannot be quantised to int4-group128: its 120 columns are not a multiple of 128" in done.err
    assert "--exclude a.fc.weight" in done.err
    done = ckpt("convert", "m.safetensors", "--quantize", "int4-group128", "--exclude", "a", "-o", "q.safetensors")
    assert done.code == 0
    assert "1 of 2 matrices" in done.err


@pytest.mark.long
def test_a_quantised_model_is_decoded_first_in_one_pass(tmp_path: Path, ckpt: Any) -> None:
    BY_NAME["gptq"].folder(tmp_path / "m")
    done = ckpt("convert", "m", "--quantize", "int4-group128", "-o", "q")
    assert done.code == 4
    assert "is already quantised" in done.err
    assert "--dequantize and --quantize together" in done.err
    assert ckpt("convert", "m", "--dequantize", "--quantize", "int4-group128", "-o", "q").code == 0
    assert cs.verify("q").ok
    found = settings(tmp_path / "q")
    assert (found["quant_method"], found["format"]) == ("compressed-tensors", "pack-quantized")
    state = load_file("q/model.safetensors")
    assert not [key for key in state if "qweight" in key or "g_idx" in key]
    assert {one.dtype for key, one in state.items() if key.endswith("weight_scale")} == {torch.bfloat16}
    assert cs.open_checkpoint("q").notes == ()


def test_what_is_decoded_and_not_chosen_is_plain(tmp_path: Path) -> None:
    BY_NAME["fp8-block"].folder(tmp_path / "m")
    cs.apply(cs.convert(tmp_path / "m", dequantize=True, quantize="int8", include=["**.q_proj"]), tmp_path / "q")
    state = load_file(tmp_path / "q" / "model.safetensors")
    kinds = {key: one.dtype for key, one in state.items() if "self_attn" in key and key.endswith(".weight")}
    assert sorted(map(str, kinds.values())) == ["torch.bfloat16", "torch.int8"]
    assert settings(tmp_path / "q")["ignore"] == ["model.embed_tokens", "model.layers.0.self_attn.k_proj", "lm_head"]


def test_dtype_is_that_of_the_rest_and_of_scales(tmp_path: Path) -> None:
    save_file({"a.fc.weight": torch.randn(8, 128), "norm.weight": torch.ones(4)}, tmp_path / "m.safetensors")
    cs.apply(cs.convert(tmp_path / "m.safetensors", quantize="int8", dtype="float16"), tmp_path / "q.safetensors")
    found = {key: one.dtype for key, one in load_file(tmp_path / "q.safetensors").items()}
    assert found == {"a.fc.weight": torch.int8, "a.fc.weight_scale": torch.float16, "norm.weight": torch.float16}


@pytest.mark.long
def test_a_plan_in_a_file_makes_the_same(tmp_path: Path, ckpt: Any) -> None:
    saved(tmp_path / "m")
    assert ckpt("convert", "m", "--quantize", "mxfp4", "-o", "q").code == 0
    Path("plan.json").write_text(ckpt("convert", "m", "--quantize", "mxfp4", "-n", "--json").out)
    rows = json.loads(Path("plan.json").read_text())["sources"][0]["operations"]
    assert rows == [
        {"quantize": [f"model.layers.*.{one.partition('.0.')[2]}.weight" for one in LAYERS[:7]], "to": "mxfp4"}
    ]
    assert ckpt("apply", "plan.json", "-o", "again").code == 0
    for name in ("model.safetensors", "config.json"):
        assert Path("q", name).read_bytes() == Path("again", name).read_bytes()


@pytest.mark.long
def test_the_receipt_and_the_terminal_have_the_errors(tmp_path: Path, ckpt: Any) -> None:
    saved(tmp_path / "m")
    done = ckpt("convert", "m", "--quantize", "int8", "-o", "q")
    assert "and 9 more with errors that are no larger (-v shows all)" in done.out
    assert done.out.count("_proj.weight (") == 5
    done = ckpt("convert", "m", "--quantize", "int8", "-o", "q", "--force", "--json")
    rounded = json.loads(done.out)["rounded"]
    assert [one["key"] for one in rounded] == [f"{one}.weight" for one in LAYERS]
    assert all(0 < one["error"] < 0.02 and 0 < one["largest"] < 0.01 for one in rounded)


def test_what_cannot_be_meant_is_said(tmp_path: Path, ckpt: Any) -> None:
    save_file({"a.fc.weight": torch.randn(8, 128)}, tmp_path / "m.safetensors")
    for arguments, code, text in (
        (["--quantize", "int5"], 2, "Use one of fp8-block, fp8-channel, int8, int4-group128, mxfp4, nvfp4."),
        (["--include", "a"], 2, "--include has no effect without --quantize"),
        (["--quantize", "int8", "--layout", "gguf"], 2, "--quantize cannot be used with --layout"),
        (["--quantize", "int8", "--gguf-type", "q8_0"], 2, "--quantize cannot be used with --gguf-type"),
        (["--quantize", "int8", "--include", "b"], 2, "--include b matches none of the 1 source key"),
        (["--quantize", "int8", "--exclude", "a"], 4, "nothing is left: the only source key is excluded."),
    ):
        done = ckpt("convert", "m.safetensors", *arguments, "-o", "q.safetensors")
        assert done.code == code, done.err
        assert text in done.err


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    save_file({"base_model.model.a.lora_A.weight": torch.randn(8, 128)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    with pytest.raises(cs.PlanError, match="is an adapter"):
        cs.convert(tmp_path, quantize="int8")


def test_a_sparse_matrix_is_not_quantised() -> None:
    torch.save({"q_proj.weight": torch.eye(256).to_sparse()}, "sparse.pth")
    with pytest.raises(cs.PlanError, match=r"has no matrix to quantise \(it is sparse\)"):
        cs.convert("sparse.pth", quantize="int8")


def test_linear_layers_of_the_embedding_of_the_time_step_are_called_so() -> None:
    state = {"time_embed.0.weight": torch.ones(16, 16), "out.weight": torch.ones(16, 16)}
    save_file({**state, "label_embed.weight": torch.ones(16, 16)}, "unet.safetensors")
    notes = cs.convert("unet.safetensors", quantize="fp8-channel").notes
    assert "not quantised (linear layer of the embedding of the time step): time_embed.0.weight" in notes
    assert "not quantised (embedding): label_embed.weight" in notes
