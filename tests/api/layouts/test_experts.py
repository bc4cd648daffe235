"""Experts one by one and stacked: what transformers itself makes of its files, and what is incomplete."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.operations import perform

from ...helpers.coded_matrices import mlx
from ...helpers.converting import assert_same, converted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
SMALL = {
    "hidden_size": 16, "intermediate_size": 12, "moe_intermediate_size": 10, "shared_expert_intermediate_size": 14,
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 30, "num_experts": 3,
    "num_experts_per_tok": 2, "mlp_only_layers": [1], "tie_word_embeddings": False, "pad_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize("name", ["Qwen2Moe", "Olmoe"])
def test_other_networks_of_the_family_are_stacked_as_transformers_stacks_them(name: str) -> None:
    """Qwen2-MoE with biases, experts that all tokens share and a layer without experts; OLMoE."""
    import transformers

    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SMALL))
    model.save_pretrained("model")
    files, memory = load_file("model/model.safetensors"), dict(model.state_dict())
    assert "model.layers.0.mlp.experts.2.up_proj.weight" in files
    assert_same(converted(files, "stacked"), memory)
    assert_same(converted(memory, "transformers"), files)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("name", ["Qwen2Moe", "Mixtral"])
def test_a_folder_keeps_its_configuration_between_the_layouts_of_transformers_and_mlx(name: str) -> None:
    import transformers

    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SMALL))
    model.save_pretrained("model")
    for source, layout in (("model", "mlx"), ("mlx", "stacked"), ("stacked", "transformers")):
        plan = cs.convert(source, layout=layout)
        cs.apply(plan, layout)
        assert not any("config.json" in note or "no name" in note for note in plan.notes)
        assert Path(layout, "config.json").read_bytes() == Path("model/config.json").read_bytes()
        assert cs.check(layout).ok
        if layout == "mlx":
            continue
        again, loading = type(model).from_pretrained(layout, output_loading_info=True)
        assert not any(loading[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same(dict(again.state_dict()), dict(model.state_dict()))
    assert_same(load_file("transformers/model.safetensors"), load_file("model/model.safetensors"))


@pytest.mark.long
def test_stacked_experts_that_mlx_quantised_become_those_of_transformers() -> None:
    """Decoded, the settings of quantisation are left out, so that config.json describes the result."""
    import transformers

    config = transformers.Qwen3MoeConfig(
        **{**SMALL, "hidden_size": 64, "moe_intermediate_size": 64, "mlp_only_layers": []}
    )
    model = transformers.Qwen3MoeForCausalLM(config)
    model.save_pretrained("model")
    cs.apply(cs.convert("model", layout="mlx"), "mlx")
    tensors = load_file("mlx/model.safetensors")
    for key in [key for key in tensors if "switch_mlp" in key]:
        experts = [mlx(one) for one in tensors.pop(key)]
        tensors |= {key.removesuffix(".weight") + end: torch.stack([one[end] for one in experts]) for end in experts[0]}
    save_file(tensors, "mlx/model.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    Path("mlx/model.safetensors.index.json").write_text(json.dumps(index))  # as mlx-lm does
    settings = {**json.loads(Path("mlx/config.json").read_text()), "quantization": {"group_size": 64, "bits": 4}}
    Path("mlx/config.json").write_text(json.dumps(settings))
    assert cs.check("mlx").row("class-tensors").status.value == "PASS"
    plan = cs.convert("mlx", layout="transformers", dequantize=True)
    cs.apply(plan, "back")
    assert "quantization" not in json.loads(Path("back/config.json").read_text())
    again, loading = type(model).from_pretrained("back", output_loading_info=True)
    assert not any(loading[one] for one in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value) == ("experts" not in key)
        torch.testing.assert_close(again.state_dict()[key], value, atol=0.01, rtol=0)

    added = {"model.layers.0.mlp.experts.0.up_proj.weight": torch.ones(64, 64)}  # this expert is in the stack, too
    save_file(tensors | added, "mlx/model.safetensors")
    index["weight_map"] |= dict.fromkeys(added, "model.safetensors")
    Path("mlx/model.safetensors.index.json").write_text(json.dumps(index))
    row = cs.check("mlx").row("class-tensors")
    assert row.status.value != "PASS"
    assert "does not use 3 modules of the weights: model.layers.0.mlp.switch_mlp.up_proj" in row.found[0].what


def test_settings_of_quantisation_are_not_copied_to_another_layout() -> None:
    """They may name modules, by the names of one layout."""
    import transformers

    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL))
    model.save_pretrained("model")
    config = json.loads(Path("model/config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "modules_to_not_convert": ["lm_head"]}
    Path("model/config.json").write_text(json.dumps(config))
    plan = cs.convert("model", layout="stacked")
    assert any("config.json is not copied into an output folder" in note for note in plan.notes)


@pytest.mark.long
def test_a_transplant_into_transformers_leaves_its_own_files_to_it() -> None:
    """transformers converts them itself; other layouts are converted here."""
    folder = RECORDED / "mixtral"
    shutil.copy(folder / "config.json", "config.json")
    own = cs.transplant(folder / "transformers.safetensors", "config.json")
    assert any("made from older tensors as transformers" in note for note in own.notes)
    assert not any("from the layout of" in note for note in own.notes)
    theirs = cs.transplant(folder / "mistral.safetensors", "config.json")
    assert any("converted from the layout of Mistral" in note for note in theirs.notes)
    for name, plan in (("own", own), ("theirs", theirs)):
        cs.apply(plan, name)
    wanted = load_file(folder / "stacked.safetensors")
    assert_same(load_file("own/model.safetensors"), wanted)
    assert_same(load_file("theirs/model.safetensors"), wanted)


@pytest.mark.costly
@pytest.mark.parametrize("family", ["mixtral", "qwen-moe"])
def test_a_transplant_into_a_file_converts_experts_both_ways(family: str) -> None:
    files = [RECORDED / family / f"{layout}.safetensors" for layout in ("transformers", "stacked")]
    for source, destination in (files, reversed(files)):
        plan = cs.transplant(source, destination, layout="auto")
        cs.apply(plan, "out.safetensors", force=True)
        assert_same(load_file("out.safetensors"), load_file(destination))


def test_each_operation_of_a_layout_is_performed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convert, rename after the user's operations and transplant: on 90,000 tensors each operation takes a second."""
    folder = RECORDED / "qwen-moe"
    performed: list[str] = []
    operated = perform._operated

    def counted(tensors: Any, operation: Any, hits: Any) -> Any:
        performed.append(str(operation))
        return operated(tensors, operation, hits)

    monkeypatch.setattr(perform, "_operated", counted)
    one = folder / "transformers.safetensors"
    norm = "model.norm.weight"
    rows = [{"scale": norm, "by": 2.0}]
    plans = [
        cs.convert(one, layout="stacked"),
        cs.rename(one, operations=[*rows, {"split": norm, "into": ["a", "b"]}, {"concat": ["a", "b"], "into": norm}],
                  layout="stacked"),
        cs.transplant(one, folder / "stacked.safetensors", layout="auto"),
        cs.transplant(one, folder / "stacked.safetensors", operations=rows, layout="stacked"),
    ]  # fmt: skip
    theirs = ["concat", "stack", "stack"]
    assert [row.partition(" ")[0] for row in performed] == [
        *theirs, "scale", "split", "concat", *theirs, *theirs, "scale", *theirs,
    ]  # fmt: skip
    assert [len(plan.sources[0].operations) for plan in plans] == [3, 6, 3, 4]
    assert next(step.made_of for step in plans[1].steps if step.key == norm) == (norm,)


def test_experts_that_are_missing_are_an_error() -> None:
    files = load_file(RECORDED / "qwen-moe" / "transformers.safetensors")
    lost = "model.layers.2.mlp.experts.11.up_proj.weight"
    with pytest.raises(PlanError, match=f"{re.escape(lost)} is missing from before.safetensors"):
        converted({key: value for key, value in files.items() if key != lost}, "stacked")
    router = "model.layers.2.mlp.gate.weight"
    with pytest.raises(PlanError, match=f"{re.escape(router)} is missing from before.safetensors"):
        converted({key: value for key, value in files.items() if key != router}, "stacked")
    with pytest.raises(PlanError, match="experts"):  # in no layer, so only the numbers have a gap
        converted({key: value for key, value in files.items() if ".experts.5." not in key}, "stacked")


def test_what_a_stack_has_no_name_for_is_an_error() -> None:
    stacked = load_file(RECORDED / "mixtral" / "stacked.safetensors")
    for extra in ("model.layers.0.self_attn.sinks", "model.layers.0.mlp.router.weight"):
        with pytest.raises(PlanError, match=f"no name in the layout mistral of the family mixtral: {extra}"):
            converted({**stacked, extra: torch.ones(6)}, "mistral", heads="6/2")
    with pytest.raises(PlanError, match="number of attention heads is not known"):
        converted(stacked, "mistral")
    odd = {**stacked, "model.layers.0.mlp.experts.gate_up_proj": torch.ones(12, 41, 24)}
    with pytest.raises(PlanError, match="41"):
        converted(odd, "transformers")


@pytest.mark.long
def test_scales_of_quantised_experts_are_not_left_out() -> None:
    files = load_file(RECORDED / "qwen-moe" / "transformers.safetensors")
    codes = {key: value.to(torch.float8_e4m3fn) for key, value in files.items() if ".experts." in key}
    scales = {f"{key}_scale_inv": torch.ones(1, 1) for key in codes}
    with pytest.raises(
        PlanError, match=r"72 tensors .* model.layers.0.mlp.experts\.0\.down_proj\.weight_scale_inv"
    ) as caught:
        converted({**files, **codes, **scales}, "stacked")
    assert caught.value.hint == "Decode quantised weights first, with ckpt convert --dequantize."
    save_file({**files, **codes, **scales}, "codes.safetensors")
    cs.apply(cs.convert("codes.safetensors", dequantize=True), "plain.safetensors")
    assert "model.layers.0.mlp.experts.gate_up_proj" in converted(load_file("plain.safetensors"), "stacked")


def test_other_tensors_of_single_experts_keep_their_expert() -> None:
    own = load_file(RECORDED / "mixtral" / "transformers.safetensors")
    scales = {f"{key}_scale": torch.full((1,), float(at)) for at, key in enumerate(own) if ".experts." in key}
    made = converted({**own, **scales}, "mistral", heads="6/2")
    for key, scale in scales.items():
        theirs = key.replace("model.", "").replace("block_sparse_moe", "feed_forward")
        assert torch.equal(made[theirs], scale)
    assert_same(converted(made, "transformers", heads="6/2"), {**own, **scales})


def test_a_layer_without_its_stacked_experts_is_an_error() -> None:
    tensors = load_file(RECORDED / "mixtral" / "stacked.safetensors")
    del tensors["model.layers.1.mlp.experts.down_proj"]
    save_file(tensors, "stacked.safetensors")
    with pytest.raises(PlanError, match=r"model\.layers\.1\.mlp\.experts\.down_proj is missing"):
        cs.convert("stacked.safetensors", layout="transformers")


@pytest.mark.costly
@pytest.mark.parametrize("broken", ["one expert too few", "a layer without up_proj", "a width that config.json denies"])
def test_faults_of_experts_that_mlx_has_stacked_are_found(broken: str) -> None:
    folder = RECORDED / "qwen-moe.qwen3"
    tensors = load_file(folder / "mlx.safetensors")
    at = "model.layers.1.mlp.switch_mlp"
    if broken == "one expert too few":
        tensors |= {key: value[:-1].contiguous() for key, value in tensors.items() if key.startswith(at)}
    elif broken == "a layer without up_proj":
        del tensors[f"{at}.up_proj.weight"]
    else:
        for key in [key for key in tensors if "switch_mlp" in key]:
            tensors[key] = (tensors[key][..., :-1] if "down" in key else tensors[key][:, :-1]).contiguous()
    Path("mlx").mkdir()
    save_file(tensors, "mlx/model.safetensors")
    shutil.copy(folder / "config.json", "mlx")
    report = cs.check("mlx")
    assert [row for row in report.rows if row.status.value == "FAIL" and row.id != "class-tensors"]


@pytest.mark.costly
@pytest.mark.parametrize("network", ["mixtral", "qwen-moe", "qwen-moe.qwen2"])
def test_fused_tensors_have_the_rows_that_vllm_reads(network: str) -> None:
    """Queries before keys before values, gate before up, the experts in their order: as vLLM's layers split them."""
    files = load_file(RECORDED / network / "transformers.safetensors")
    heads = "8/2" if network == "qwen-moe.qwen2" else "6/2"
    fused = converted(files, "fused", heads=heads)
    at, gate, up, down = (
        ("block_sparse_moe", "w1", "w3", "w2") if network == "mixtral" else ("mlp", "gate_proj", "up_proj", "down_proj")
    )
    layer = "model.layers.0"
    qkv = [files[f"{layer}.self_attn.{kind}_proj.weight"] for kind in "qkv"]
    found = fused[f"{layer}.self_attn.qkv_proj.weight"].split([len(one) for one in qkv])
    assert all(torch.equal(one, wanted) for one, wanted in zip(found, qkv, strict=True))
    w13, w2 = fused[f"{layer}.{at}.experts.w13_weight"], fused[f"{layer}.{at}.experts.w2_weight"]
    for number in range(len(w13)):
        expert = f"{layer}.{at}.experts.{number}"
        for part, kind in zip(w13[number].chunk(2), (gate, up), strict=True):
            assert torch.equal(part, files[f"{expert}.{kind}.weight"])
        assert torch.equal(w2[number], files[f"{expert}.{down}.weight"])
    assert not [key for key in fused if ".up_proj" in key or ".q_proj" in key]
    assert_same(converted(fused, "transformers", heads=heads), files)
