"""Layers of several models under one quantization_config: all coded alike, or refused; models in other bases too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.four_bits import FOUR_BITS
from ...helpers.quantised import IN, OUT
from ...helpers.zoo import BY_NAME

FP8 = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float",
                                                                     "strategy": "channel", "symmetric": True}}},
    "ignore": ["lm_head"],
}  # fmt: skip
ROTATED = {"transform_config": {"config_groups": {"R1": {"type": "hadamard", "apply": []}}}}
AQLM = {"quant_method": "aqlm", "num_codebooks": 1}
SIZE = 16


def aqlm(stem: str) -> dict[str, torch.Tensor]:
    codes, books = torch.zeros(SIZE, SIZE // 8, 1, dtype=torch.int16), torch.ones(1, 256, 1, 8).half()
    return {f"{stem}.codes": codes, f"{stem}.codebooks": books, f"{stem}.scales": torch.ones(SIZE, 1, 1, 1).half()}


def folder(name: str, kind: str) -> str:
    """A folder of two layers: plain, as 8-bit floats, those in another basis, or in codes that nothing here decodes."""
    Path(name).mkdir()
    state = {"model.embed_tokens.weight": torch.ones(SIZE, SIZE).bfloat16()}
    for number in range(2):
        stem = f"model.layers.{number}.mlp.up_proj"
        if kind == "aqlm":
            state |= aqlm(stem)
        else:
            state[f"{stem}.weight"] = torch.ones(SIZE, SIZE).to(
                torch.bfloat16 if kind == "plain" else torch.float8_e4m3fn
            )
        if kind.startswith("fp8"):
            state[f"{stem}.weight_scale"] = torch.ones(SIZE, 1)
    save_file(state, f"{name}/model.safetensors")
    settings = {"plain": None, "aqlm": AQLM, "fp8": FP8, "fp8 rotated": {**FP8, **ROTATED}}[kind]
    config: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": SIZE, "hidden_size": SIZE}
    config |= {"quantization_config": settings} if settings else {}
    Path(name, "config.json").write_text(json.dumps(config))
    return name


def stacked(first: str, second: str) -> cs.Plan:
    """Plan a model with layer 0 of the first and layer 1 of the second."""
    pairs = ((folder("a", first), [0, 1]), (folder("b", second), [1, 2]))
    slices = [{"sources": [{"model": name, "layer_range": layers}]} for name, layers in pairs]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    return cs.merge("recipe.yaml")


@pytest.mark.parametrize(
    ("first", "second", "coded"),
    [
        ("aqlm", "plain", "a is quantised (AQLM), and model.layers.1.mlp.up_proj.weight of b would be plain"),
        ("plain", "aqlm", "b is quantised (AQLM), and model.layers.0.mlp.up_proj.weight of a would be plain"),
        ("aqlm", "fp8", "a is quantised (AQLM), and model.layers.1.mlp.up_proj.weight of b would be plain"),
        ("fp8 rotated", "fp8", "a is quantised (fp8 with channel scales), and model.layers.1.mlp.up_proj.weight of b"),
        ("fp8 rotated", "plain", "a is quantised (fp8 with channel scales), and model.layers.1.mlp.up_proj.weight of b"),
    ],
)  # fmt: skip
def test_layers_of_codes_and_of_numbers_are_refused(first: str, second: str, coded: str) -> None:
    with pytest.raises(cs.PlanError) as caught:
        stacked(first, second)
    assert coded in str(caught.value)
    assert "quantization_config" in str(caught.value)


@pytest.mark.parametrize(
    ("first", "second"),
    [("quanto", "hqq"), ("fp8-block", "nunchaku"), ("fp8-block", "squeezellm")],
)
def test_codes_of_two_encodings_are_refused(first: str, second: str, tmp_path: Path) -> None:
    """Some without settings that could contradict each other, or none that a tool here knows."""
    folders = [BY_NAME[name].folder(tmp_path / name) for name in (first, second)]
    slices = [{"sources": [{"model": str(folder), "layer_range": [0, 1]}]} for folder in folders]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    with pytest.raises(cs.PlanError, match=r"q_proj\.weight of .* is quantised|k_proj\.weight of .* is quantised"):
        cs.merge("recipe.yaml")


@pytest.mark.parametrize(
    ("first", "second", "dtype"),
    [
        ("fp8", "plain", "float8_e4m3fn"),
        ("plain", "fp8", "bfloat16"),
        ("aqlm", "aqlm", ""),
        ("fp8 rotated", "fp8 rotated", "float8_e4m3fn"),
    ],
)
def test_layers_alike_are_merged(first: str, second: str, dtype: str) -> None:
    steps = {step.key: step for step in stacked(first, second).steps}
    weights = [steps[f"model.layers.{number}.mlp.up_proj.weight"] for number in range(2) if dtype]
    assert len({one.dtype for one in weights}) == bool(dtype)
    assert all(one.dtype == dtype for one in weights)
    stored = {key.replace("layers.0", "layers.1") for key in steps if "layers.0" in key}
    assert stored == {key for key in steps if "layers.1" in key}


def ignoring(name: str, layer: int) -> str:
    """A folder of 8-bit floats whose settings leave one layer out, which is plain."""
    folder(name, "fp8")
    state, stem = load_file(f"{name}/model.safetensors"), f"model.layers.{layer}.mlp.up_proj"
    state[f"{stem}.weight"] = state[f"{stem}.weight"].bfloat16()
    del state[f"{stem}.weight_scale"]
    save_file(state, f"{name}/model.safetensors")
    config = json.loads(Path(name, "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head", stem]
    Path(name, "config.json").write_text(json.dumps(config))
    return name


@pytest.mark.parametrize("other", ["plain", "fp8"])
@pytest.mark.parametrize("method", ["linear", "slerp", "task_arithmetic"])
def test_a_layer_that_the_settings_leave_out_stays_plain(other: str, method: str) -> None:
    models = [ignoring("a", 0), folder("b", other)]
    given = {"linear": {"weights": [1, 1]}, "slerp": {"parameters": ["t=0.5"]}, "task_arithmetic": {"weights": [0.5]}}
    base = {"base": models[0]} if method == "task_arithmetic" else {}
    plan = cs.merge(models[1:] if base else models, method=method, **base, **given[method])
    dtypes = {step.key: step.dtype for step in plan.steps}
    assert dtypes["model.layers.0.mlp.up_proj.weight"] in ("bfloat16", "float32")
    assert dtypes["model.layers.1.mlp.up_proj.weight"] == "float8_e4m3fn"


def test_plain_layers_beyond_those_of_the_settings_are_refused() -> None:
    ignoring("a", 0), folder("b", "plain")
    slices = [
        {"sources": [{"model": "a", "layer_range": [0, 2]}]},
        {"sources": [{"model": "b", "layer_range": [0, 1]}]},
    ]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    with pytest.raises(cs.PlanError, match=r"model\.layers\.2\.mlp\.up_proj\.weight would be stored as plain numbers"):
        cs.merge("recipe.yaml")


def test_a_model_in_another_basis_is_none_to_transplant_into() -> None:
    with pytest.raises(cs.PlanError, match="transform_config is R1 hadamard in a, none in b"):
        cs.transplant(folder("a", "fp8 rotated"), folder("b", "fp8"))


def test_diff_and_inspect_say_so() -> None:
    notes = cs.diff(folder("a", "fp8 rotated"), folder("b", "fp8")).notes
    assert (
        "quantised codes mean different numbers in the two checkpoints: transform_config is R1 hadamard in a, none in b"
        in notes
    )
    assert [cs.inspect(name).to_json()["basis"] for name in "ab"] == ["R1 hadamard", None]


@pytest.mark.parametrize(
    ("stated", "named"), [("sparse-24-bitmask", True), ("sparse-bitmask", True), ("dense", False), (None, False)]
)
@pytest.mark.parametrize("kind", ["fp8", "plain"])
def test_settings_of_sparse_weights_without_their_masks_are_noted(kind: str, stated: str | None, named: bool) -> None:
    folder("a", kind)
    config = json.loads(Path("a/config.json").read_text())
    settings = FP8 if kind == "fp8" else {"quant_method": "compressed-tensors", "format": "dense"}
    config["quantization_config"] = {**settings, "sparsity_config": {"format": stated}}
    Path("a/config.json").write_text(json.dumps(config))
    found = [one for one in (*cs.inspect("a").notes, *cs.convert("a").notes) if "bitmask" in one]
    said = f"its quantization_config says format {stated} (sparsity_config), but there is no bitmask"
    assert len(found) == 2 * named
    assert all(said in one for one in found)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_plain_layer_of_bitsandbytes_is_encoded_where_codes_are(kind: str) -> None:
    """The settings of its codes (``quant_state``) are also copied to another layer."""
    Path("m").mkdir()
    stems = [f"model.layers.{at}.mlp.up_proj" for at in range(4)]
    parts = FOUR_BITS[f"bnb-{kind}-sound"].store(torch.Generator().manual_seed(0))
    state = {f"{stem}{end}": one.clone() for at, stem in enumerate(stems) if at != 1 for end, one in parts.items()}
    save_file({**state, f"{stems[1]}.weight": torch.ones(OUT, IN).bfloat16()}, "m/model.safetensors")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    settings["llm_int8_skip_modules"] = ["lm_head", stems[1]]
    config = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": IN, "quantization_config": settings}
    Path("m/config.json").write_text(json.dumps(config))
    slices = [{"sources": [{"model": "m", "layer_range": one}]} for one in ([0, 3], [1, 4])]
    Path("recipe.yaml").write_text(json.dumps({"merge_method": "passthrough", "slices": slices}))
    plan = cs.merge("recipe.yaml")
    assert any(one.startswith("1 weight is decoded, computed and encoded again") for one in plan.notes)
    cs.apply(plan, "out/")
    made = load_file("out/model.safetensors")
    assert [made[f"model.layers.{at}.mlp.up_proj.weight"].dtype for at in (1, 3, 4)] == [
        torch.bfloat16, torch.uint8, torch.uint8,
    ]  # fmt: skip
    for end, one in parts.items():
        assert torch.equal(made[f"model.layers.5.mlp.up_proj{end}"], one)
