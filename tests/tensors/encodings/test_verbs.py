"""What each verb does with each encoding: copied, encoded again, or refused with exit 4; never computed on as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.depth import each_in_turn
from ...helpers.zoo import BY_NAME, IN, KEPT, LAYERS, OUT, PLAIN, ZOO, Quantised

each_encoding = each_in_turn("model", ZOO)
each_refused = each_in_turn("model", [one for one in ZOO if one.name not in KEPT])
ALONE = ("unknown-alone", "bytes-of-llama.cpp")
"""Codes with nothing beside them that decodes them."""
OF_MODULES = [one for one in ZOO if "experts" not in one.layers[0]]
"""Those whose plain tensors a module of torch can have."""


def refused(error: pytest.ExceptionInfo[cs.PlanError], model: Quantised) -> str:
    """An error of exit 4 that says which, why and what to do."""
    assert error.value.exit_code == 4
    assert any(layer in error.value.message for layer in model.layers)
    assert "equanti" in error.value.hint
    return error.value.message


def plain(path: Path, layers: tuple[str, ...] = LAYERS) -> Path:
    generator = torch.Generator().manual_seed(7)
    shapes = {PLAIN[0]: (10, IN), PLAIN[1]: (IN,)} | {
        (layer if "experts" in layer else f"{layer}.weight"): ((4, OUT, IN) if "experts" in layer else (OUT, IN))
        for layer in layers
    }
    save_file({key: torch.randn(shape, generator=generator).bfloat16() for key, shape in shapes.items()}, path)
    return path


def same(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(path)
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[key].view(torch.uint8), expected[key].view(torch.uint8)) for key in found if found[key].ndim
    )
    assert all(torch.equal(found[key], expected[key]) for key in found if not found[key].ndim)


@each_encoding
def test_convert_copies_codes_and_refuses_another_dtype(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    cs.apply(cs.convert(folder), tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", model.tensors())
    floating = [
        t for k, t in model.tensors().items() if k not in PLAIN and k not in model.biases() and t.is_floating_point()
    ]
    if any(t.dtype != torch.float32 for t in floating) or floating:
        with pytest.raises(cs.PlanError) as error:
            cs.convert(folder, dtype="float64")
        assert "a cast from" in refused(error, model)


@each_encoding
def test_filter_takes_all_parts_or_none(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    cs.apply(
        cs.filter(folder, exclude=[model.layers[0] + ("*" if "experts" in model.layers[0] else "")]),
        tmp_path / "out.safetensors",
    )
    same(tmp_path / "out.safetensors", {k: v for k, v in model.tensors().items() if not k.startswith(model.layers[0])})
    first = cs.open_checkpoint(folder).codes.tensors[0]
    for key in first.keys if model.name not in ALONE else ():
        if key == first.name:  # the weight itself, and so all of its parts
            continue
        with pytest.raises(cs.PlanError) as error:
            cs.filter(folder, exclude=[f"re:{key.replace('.', '[.]')}"])
        assert error.value.exit_code == 4
        assert "separated" in error.value.message
        assert key in error.value.message


@each_encoding
def test_rename_moves_all_parts_together(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    cs.apply(cs.rename(folder, map=["model=decoder"]), tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", {k.replace("model.", "decoder.", 1): v for k, v in model.tensors().items()})
    keys = cs.open_checkpoint(folder).codes.tensors[0].keys
    if len(keys) > 1:
        with pytest.raises(cs.PlanError, match="no longer have matching names") as error:
            cs.rename(folder, map=[f"re:{keys[-1].replace('.', '[.]')}=elsewhere"])
        assert error.value.exit_code == 4


@each_refused
def test_average_is_refused(model: Quantised, tmp_path: Path) -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.average([model.folder(tmp_path / "a"), model.folder(tmp_path / "b", 1)])
    refused(error, model)


@each_refused
@pytest.mark.parametrize("more", [{}, {"int_buffers": "max"}, {"on_missing": "any"}], ids=str)
def test_merge_is_refused(model: Quantised, more: dict[str, Any], tmp_path: Path) -> None:
    folders = [model.folder(tmp_path / "a"), model.folder(tmp_path / "b", 1)]
    with pytest.raises(cs.PlanError) as error:
        cs.merge(folders, method="linear", weights=[0.5, 0.5], **more)
    refused(error, model)


@each_refused
def test_merge_with_a_model_that_is_not_quantised_is_refused(model: Quantised, tmp_path: Path) -> None:
    paths = [model.folder(tmp_path / "a"), plain(tmp_path / "b.safetensors", model.layers)]
    for on_missing in ("error", "skip", "any"):
        with pytest.raises(cs.PlanError) as error:
            cs.merge(paths, method="linear", weights=[1, 1], on_missing=on_missing)
        assert error.value.exit_code == 4
        assert "quantised" in str(error.value)


@each_encoding
def test_a_merge_that_only_passes_one_model_through_copies_codes(model: Quantised, tmp_path: Path) -> None:
    plan = cs.merge([model.folder(tmp_path / "a")], method="passthrough")
    assert not any("casts them" in note and "float8" in note for note in plan.notes)  # codes are not cast
    cs.apply(plan, tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", model.tensors())


def adapter(folder: Path, layer: str) -> Path:
    folder.mkdir()
    name = f"base_model.model.{layer}"
    save_file(
        {f"{name}.lora_A.weight": torch.randn(2, IN), f"{name}.lora_B.weight": torch.randn(OUT, 2)},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [layer.rpartition(".")[2]]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model", [one for one in OF_MODULES if one.name not in KEPT], ids=lambda one: one.name)
def test_lora_merge_into_codes_is_refused(model: Quantised, tmp_path: Path) -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.lora_merge(model.folder(tmp_path / "m"), adapter(tmp_path / "lora", LAYERS[0]))
    refused(error, model)


@each_refused
def test_lora_extract_from_codes_is_refused(model: Quantised, tmp_path: Path) -> None:
    folder, base = model.folder(tmp_path / "m"), plain(tmp_path / "b.safetensors", model.layers)
    for pair in ((folder, model.folder(tmp_path / "other", 1)), (folder, base), (base, folder)):
        with pytest.raises(cs.PlanError) as error:
            cs.lora_extract(*pair, rank=2)
        assert error.value.exit_code == 4
        assert "quantised" in error.value.message


@each_encoding
def test_transplant_of_codes_into_a_plain_network_is_refused(model: Quantised, tmp_path: Path) -> None:
    target = plain(tmp_path / "t.safetensors", model.layers)
    folder = model.folder(tmp_path / "m")
    with pytest.raises(cs.PlanError) as error:
        cs.transplant(folder, target)
    refused(error, model)


@pytest.mark.costly
@each_encoding
def test_transplant_into_a_declared_network_never_draws_codes(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    cs.init_config(folder, output=tmp_path / "dst.yaml")
    cs.apply(cs.transplant(folder, tmp_path / "dst.yaml"), tmp_path / "out.safetensors")
    same(tmp_path / "out.safetensors", model.tensors())
    one = cs.open_checkpoint(folder).codes.tensors[0]
    if model.name == ALONE[0]:
        return  # a declared network does not say that its integers are codes
    again = {"reinit": [f"re:{one.codes.replace('.', '[.]')}"]}
    if len(one.keys) == 1:  # codes without further parts are kept as a whole
        cs.apply(cs.transplant(folder, tmp_path / "dst.yaml", **again), tmp_path / "again.safetensors")
        same(tmp_path / "again.safetensors", model.tensors())
        return
    with pytest.raises(cs.PlanError) as error:
        cs.transplant(folder, tmp_path / "dst.yaml", **again)
    assert error.value.exit_code == 4


@pytest.mark.costly
@each_encoding
def test_a_destination_keeps_its_codes_or_gets_all_of_another_s(model: Quantised, tmp_path: Path) -> None:
    ours, theirs = model.folder(tmp_path / "a"), model.folder(tmp_path / "b", 1)
    cs.apply(
        cs.transplant(ours, theirs, include=[model.layers[0] + ("*" if "experts" in model.layers[0] else "")]),
        tmp_path / "out.safetensors",
    )
    expected = {k: (model.tensors() if k.startswith(model.layers[0]) else model.tensors(1))[k] for k in model.tensors()}
    same(tmp_path / "out.safetensors", expected)
    first = cs.open_checkpoint(ours).codes.tensors[0]
    for key in first.keys if len(first.keys) > 1 else ():
        if key == first.name:  # the weight itself, and so all of its parts
            continue
        with pytest.raises(cs.PlanError) as error:
            cs.transplant(ours, theirs, include=[f"re:{key.replace('.', '[.]')}"])
        assert error.value.exit_code == 4


@each_encoding
def test_operations_on_codes_are_refused(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    codes = cs.open_checkpoint(folder).codes.tensors[0]
    for key in codes.keys:
        operation = {"scale": f"re:{key.replace('.', '[.]')}", "by": 2}
        with pytest.raises(cs.CheckpointError) as error:
            cs.rename(folder, operations=[operation])
        assert error.value.exit_code == 4


@each_encoding
def test_a_plan_that_was_edited_to_cast_codes_is_refused(model: Quantised, tmp_path: Path) -> None:
    folder = model.folder(tmp_path / "m")
    plan = cs.convert(folder).to_json()
    floats = [
        s
        for s in plan["steps"]
        if s["key"] not in PLAIN and s["dtype"].startswith("float") and s["key"] not in model.biases()
    ]
    for step in floats:
        step |= {"dtype": "bfloat16", "class": "cast"}
    plan["counts"] = {"copied": len(plan["steps"]) - len(floats), "cast": len(floats)}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    if floats:
        with pytest.raises(cs.PlanError) as error:
            cs.apply(tmp_path / "plan.json", tmp_path / "out.safetensors")
        refused(error, model)


@pytest.mark.parametrize("model", OF_MODULES, ids=lambda one: one.name)
def test_loading_into_a_live_module_is_refused_and_changes_nothing(model: Quantised, tmp_path: Path) -> None:
    net = torch.nn.ModuleDict({
        "model": torch.nn.ModuleDict({
            "norm": torch.nn.Linear(1, 1), "layers": torch.nn.ModuleList([torch.nn.ModuleDict({
                "self_attn": torch.nn.ModuleDict({"q_proj": torch.nn.Linear(IN, OUT), "k_proj": torch.nn.Linear(IN, OUT)})
            })]),
        })
    })  # fmt: skip
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(cs.PlanError) as error:
        cs.load_into(net, model.folder(tmp_path / "m"), on_mismatch="init")
    refused(error, model)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_parts_that_get_the_names_of_another_toolkit_are_still_together(tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    cs.apply(cs.rename(folder, map=["**.weight_scale_inv=**.scale"]), tmp_path / "out.safetensors")
    assert f"{LAYERS[0]}.scale" in load_file(tmp_path / "out.safetensors")


def test_tensors_that_are_not_quantised_are_computed_on_as_ever(tmp_path: Path) -> None:
    model = BY_NAME["fp8-block"]
    folder = model.folder(tmp_path / "m")
    cs.apply(cs.filter(folder, include=["model.embed_tokens", "model.norm"]), tmp_path / "part.safetensors")
    plan = cs.convert(tmp_path / "part.safetensors", dtype="float32")
    assert plan.counts == {"cast": 2}


def test_an_error_names_what_would_be_done_to_the_codes_themselves(tmp_path: Path) -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.convert(BY_NAME["fp8-block"].folder(tmp_path / "m"), dtype="bf16")
    assert "a cast from float8_e4m3fn to bfloat16" in error.value.message
    assert all(line.endswith("a cast from float8_e4m3fn to bfloat16") for line in error.value.details)
    with pytest.raises(cs.PlanError, match="a cast from float16 to bfloat16"):  # of the scales: words are not cast
        cs.convert(BY_NAME["gptq"].folder(tmp_path / "words"), dtype="bf16")


def test_every_offender_is_listed_once(tmp_path: Path) -> None:
    with pytest.raises(cs.PlanError) as error:
        cs.convert(BY_NAME["fp8-block"].folder(tmp_path / "m"), dtype="bf16")
    assert [line.partition(" ")[0] for line in error.value.details] == [f"{layer}.weight" for layer in sorted(LAYERS)]
    assert "likewise 1 other tensor" in error.value.message


@pytest.mark.parametrize("name", ["int4-or-8", "hqq"])
def test_numbers_never_pass_by_a_destination_that_keeps_its_codes(name: str, tmp_path: Path) -> None:
    source, folder = plain(tmp_path / "a.safetensors"), BY_NAME[name].folder(tmp_path / "m")
    with pytest.raises(
        cs.PlanError,
        match=r"is quantised in the destination and would stay as it is, although a\.safetensors has it as numbers",
    ) as error:
        cs.transplant(source, folder)
    assert error.value.exit_code == 4
    assert len(error.value.details) == len(LAYERS)
    plan = cs.transplant(source, folder, exclude=list(LAYERS))
    assert plan.counts["copied"] == len(PLAIN)
    assert cs.transplant(source, folder, reinit=[f"{LAYERS[0]}.**", f"{LAYERS[1]}.**"]).counts["copied"] == len(PLAIN)


def test_an_error_says_which_side_is_quantised(tmp_path: Path) -> None:
    model = BY_NAME["fp8-block"]
    source, folder = plain(tmp_path / "a.safetensors"), model.folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["transform_config"] = {"a": 1}  # nothing decodes them
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(model.tensors(), "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(cs.PlanError) as error:
        cs.transplant(source, folder)
    assert f"{LAYERS[0]}.weight of the destination m is quantised" in error.value.message
    assert "would come from the source a.safetensors" in error.value.message


def test_the_tensor_by_which_comfyui_knows_of_scales_is_not_left_out_without_a_word() -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    state = {"m.a.weight": codes, "m.a.scale_weight": torch.ones(()), "m.scaled_fp8": codes[0, :2].clone()}
    save_file({**state, "m.b.weight": torch.ones(4, 4)}, "x.safetensors")
    said = "m.scaled_fp8 is left out: without it ComfyUI ignores the scales, and reads codes as plain numbers"
    assert said in cs.filter("x.safetensors", exclude=["m.scaled_fp8"]).notes
    for plan in (
        cs.filter("x.safetensors", include=["m.b"]),
        cs.rename("x.safetensors", map=["m=n"]),
        cs.convert("x.safetensors"),
    ):
        assert said not in plan.notes


def test_the_tensor_by_which_comfyui_knows_of_scales_goes_when_the_weights_are_decoded() -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    state = {"m.a.weight": codes, "m.a.scale_weight": torch.ones(()), "m.scaled_fp8": codes[0, :2].clone()}
    save_file(
        {**state, "n.b.weight": codes.clone(), "n.b.scale_weight": torch.ones(()), "m.c": torch.ones(4)},
        "x.safetensors",
    )
    said = "left out: m.scaled_fp8, which tells ComfyUI that weights have scales"
    merged = {"weights": [1, 1], "encoding": "dequantize"}
    for plan in (
        cs.convert("x.safetensors", dequantize=True),
        cs.merge(["x.safetensors", "x.safetensors"], method="linear", **merged),
        cs.rename("x.safetensors", operations=[{"dequantize": "m.**"}]),
    ):
        assert said in plan.notes
        assert "m.scaled_fp8" not in [step.key for step in plan.steps]
    for plan in (
        cs.rename("x.safetensors", operations=[{"dequantize": "n.**"}]),
        cs.merge(["x.safetensors", "x.safetensors"], method="linear", weights=[1, 1]),
        cs.transplant("x.safetensors", "x.safetensors"),
    ):
        assert said not in plan.notes
        assert "m.scaled_fp8" in [step.key for step in plan.steps]


def test_a_transplant_that_decodes_says_that_the_tensor_by_which_comfyui_knows_of_scales_goes() -> None:
    codes = torch.ones(4, 4).to(torch.float8_e4m3fn)
    state = {"m.a.weight": codes, "m.a.scale_weight": torch.ones(()), "m.scaled_fp8": codes[0, :2].clone()}
    save_file(state, "x.safetensors")
    save_file(state, "y.safetensors")
    save_file({"m.a.weight": torch.ones(4, 4)}, "plain.safetensors")
    said = "left out: m.scaled_fp8, which tells ComfyUI that weights have scales"
    for source, into in (("x", "y"), ("x", "plain"), ("plain", "x")):
        plan = cs.transplant(f"{source}.safetensors", f"{into}.safetensors", encoding="dequantize")
        assert plan.notes.count(said) == 1
        assert [step.key for step in plan.steps] == ["m.a.weight"]


def test_a_description_of_codes_is_as_long_as_its_source_s(tmp_path: Path) -> None:
    nf4 = next(one for one in ZOO if one.name == "bnb-nf4")
    ours = nf4.folder(tmp_path / "ours")
    longer = {
        key: torch.cat([value, value[:7]]) if "quant_state" in key else value for key, value in nf4.tensors(1).items()
    }
    theirs = nf4.folder(tmp_path / "theirs")
    save_file(longer, theirs / "model.safetensors")
    cs.apply(cs.transplant(theirs, ours), tmp_path / "out")
    assert not cs.diff(theirs, tmp_path / "out", values=True).differs
    assert cs.verify(tmp_path / "out").ok
