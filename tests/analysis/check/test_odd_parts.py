"""Scales, exponents and zero points of one layer that are unlike those of the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.coded_matrices import SETTINGS, awq, gptq, llm_int8, mlx, nf4
from ...helpers.coded_models import coded_tensors, write_model

Tensors = dict[str, torch.Tensor]
LAYERS = 6
ODD = "model.layers.3.self_attn.q_proj"


def quantised(scheme: str, layers: int = LAYERS) -> Path:
    """A folder of six layers, quantised by ckpt itself."""
    draw = torch.Generator().manual_seed(0)
    state = {
        f"model.layers.{layer}.self_attn.{name}.weight": 0.05 * torch.randn(128, 128, generator=draw)
        for layer in range(layers)
        for name in ("q_proj", "k_proj")
    }
    Path("plain").mkdir()
    Path("plain/config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    save_file(state, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize=scheme), "model")
    return Path("model")


def changed(folder: Path, end: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.startswith(ODD) and key.endswith(end))
    state[key] = change(state[key])
    save_file(state, path, metadata={"format": "pt"})
    (folder / "ckptsurgeon.json").unlink()  # the recipe, whose checksums fit no longer


def found(folder: Path) -> dict[str, str]:
    """The checks that fail or warn, and what they say."""
    report = cs.check(folder, skip=["model-card", "class-tensors"])
    return {row.id: row.found[0].what for row in report.rows if row.found}


@pytest.mark.parametrize("scheme", ["mxfp4", "nvfp4", "fp8-block", "int4-group128"])
def test_a_model_that_ckpt_has_quantised_passes(scheme: str) -> None:
    assert found(quantised(scheme)) == {}


@pytest.mark.parametrize(
    ("scheme", "end", "change", "check", "said"),
    [
        ("mxfp4", "_scale", torch.zeros_like, "scales", "scales that are all zero"),
        ("mxfp4", "_scale", lambda one: one + 40, "scales", "scales above 1e+06"),
        ("mxfp4", "_scale", lambda one: one + 10, "value-family", "mean scale of 1 tensor is far"),
        ("mxfp4", "_scale", lambda one: one * 0 + 127, "value-family", "mean scale of 1 tensor is far"),
        ("mxfp4", "_scale", lambda one: one - 10, "value-family", "mean scale of 1 tensor is far"),
        ("mxfp4", "_scale", lambda one: one * 0 + 255, "scales", "NaN or infinities"),
        ("nvfp4", "weight_global_scale", lambda one: one / 100, "value-family", "mean scale of 1 tensor is far"),
        ("fp8-block", "weight_scale_inv", lambda one: one * 100, "value-family", "mean scale of 1 tensor is far"),
    ],
)
def test_the_layer_that_is_odd_is_named(
    scheme: str, end: str, change: Callable[[torch.Tensor], torch.Tensor], check: str, said: str
) -> None:
    folder = quantised(scheme)
    changed(folder, end, change)
    told = found(folder)
    assert said in told[check]
    assert ODD in told[check]
    fused = {"scales"} if scheme == "nvfp4" else set()  # it is far from those of k and v in its own layer, too
    assert told.keys() == {check} | fused


@pytest.mark.costly
@pytest.mark.parametrize(
    ("scheme", "end", "number"),
    [
        ("nvfp4", "weight_global_scale", 1),
        ("fp8-block", "weight_scale_inv", 1),
        ("int8", "weight_scale", 1),
        ("int4-group128", "weight_scale", 1),
        ("mxfp4", "weight_scale", 127),
    ],
)
def test_two_other_layers_show_scales_that_were_never_set(scheme: str, end: str, number: int) -> None:
    folder = quantised(scheme, layers=3)
    assert found(folder) == {}
    path = folder / "model.safetensors"
    (folder / "ckptsurgeon.json").unlink()  # the values are changed on purpose
    state = load_file(path)
    key = f"model.layers.1.self_attn.q_proj.{end}"
    save_file({**state, key: torch.full_like(state[key], number)}, path, {"format": "pt"})
    told = found(folder)
    fused = {"scales"} if scheme == "nvfp4" else set()  # it is far from those of k and v in its own layer, too
    assert told.keys() == {"value-family"} | fused
    assert f"far from that of other layers: {key} has 1, the median is" in told["value-family"]
    few = {key: one for key, one in load_file(path).items() if ".layers.2." not in key}
    save_file(few, path, {"format": "pt"})
    assert any("decoded matrix is at least 32 times" in note for note in cs.inspect(folder).notes)
    assert found(folder).keys() == (fused or {"value-family"}), "check says what the verbs say"


@pytest.mark.parametrize(("factor", "status"), [(50, "PASS"), (1000, "WARN")])
def test_a_plain_weight_far_from_two_others_is_named(factor: float, status: str) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {f"layers.{layer}.up_proj.weight": torch.randn(64, 64, generator=draw) / 20 for layer in range(3)}
    state["layers.1.up_proj.weight"] *= factor
    save_file(state, "x.safetensors")
    assert cs.check("x.safetensors").row("value-family").status.value == status


def test_scales_that_are_exponents_are_compared_as_numbers_in_other_formats() -> None:
    """MLX stores them as uint8, GGUF in its blocks, and a file of safetensors may have them as float8_e8m0fnu."""
    state = load_file(quantised("mxfp4") / "model.safetensors")
    odd = f"{ODD}.weight_scale"
    for change, expected in ((0, {}), (8, {"value-family"})):
        changed_state = {**state, odd: state[odd] + change}
        powers = {
            key: one.view(torch.float8_e8m0fnu) if key.endswith("_scale") else one for key, one in changed_state.items()
        }
        save_file(powers, "powers.safetensors")
        assert found(Path("powers.safetensors")).keys() == {*expected}
        names = {"weight_packed": "weight", "weight_scale": "scales"}
        mlx = {f"{key.rpartition('.')[0]}.{names[key.rpartition('.')[2]]}": one for key, one in changed_state.items()}
        mlx = {key: one.view(torch.uint32) if key.endswith("weight") else one for key, one in mlx.items()}
        Path("mlx").mkdir(exist_ok=True)
        save_file(mlx, "mlx/model.safetensors", {"format": "mlx"})
        settings = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        Path("mlx/config.json").write_text(json.dumps({"quantization": settings, "quantization_config": settings}))
        assert found(Path("mlx")).keys() == {*expected}


@pytest.mark.parametrize(("factor", "status"), [(1, "PASS"), (128, "WARN")])
def test_scales_in_blocks_of_mxfp4_are_compared(factor: float, status: str) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {
        f"blk.{layer}.ffn_up_exps.weight": torch.randn(2, 64, 64, generator=draw) / 20 for layer in range(LAYERS)
    }
    weights["blk.2.ffn_up_exps.weight"] *= factor
    weights["blk.4.ffn_up_exps.weight"] *= 0
    save_file(weights, "x.safetensors")
    cs.apply(cs.convert("x.safetensors", gguf_type="mxfp4", layout="keep"), "x.gguf")
    report = cs.check("x.gguf")
    assert report.row("scales").status.value == "PASS"
    assert report.row("value-family").status.value == status
    assert all("mean scale of 1 tensor is far" in one.what for one in report.row("value-family").found)


def modelopt(state: Tensors) -> Tensors:
    """The same nvfp4 weights under ModelOpt's names: codes are multiplied by ``weight_scale_2``."""
    names = {"weight_packed": "weight", "weight_scale": "weight_scale", "weight_global_scale": "weight_scale_2"}
    found = {}
    for key, one in state.items():
        module, _, end = key.rpartition(".")
        found[f"{module}.{names[end]}"] = 1 / one[0] if end == "weight_global_scale" else one
    return found


@pytest.mark.costly
@pytest.mark.parametrize("rename", [dict, modelopt])
def test_global_scales_that_are_all_inverse_are_named(rename: Callable[[Tensors], Tensors]) -> None:
    """The mean of each family is as usual: only the product with the scales of blocks and the codes shows the fault."""
    state = rename(load_file(quantised("nvfp4") / "model.safetensors"))
    ends = ("weight_global_scale", "weight_scale_2")
    save_file(state, "sound.safetensors")
    save_file({key: 1 / one if key.endswith(ends) else one for key, one in state.items()}, "inverse.safetensors")
    assert cs.check("sound.safetensors").verdict.value == "PASS"
    report = cs.check("inverse.safetensors")
    assert [row.id for row in report.rows if row.found] == ["scales"]
    (found,) = report.row("scales").found
    said = f"{2 * LAYERS} tensors of scales that make weights above 10,000: perhaps they are inverse scales"
    assert found.what.startswith(said)
    assert all(key.endswith(ends) for key in found.keys)


@pytest.mark.parametrize("end", [".qzeros", ".biases"])
def test_zero_points_that_are_all_zero_are_named(end: str, tmp_path: Path) -> None:
    from ...helpers.zoo import BY_NAME

    folder = BY_NAME["gptq" if end == ".qzeros" else "mlx"].folder(tmp_path / "m")
    path = folder / "model.safetensors"
    state = load_file(path)
    key = next(key for key in state if key.endswith(end))
    save_file({**state, key: torch.zeros_like(state[key])}, path, metadata={"format": "pt"})
    assert found(folder)["all-zeros"] == f"1 tensor of zero points or biases that are all zero: {key}"


def test_an_adapter_of_a_tied_output_layer_has_its_module_in_the_base() -> None:
    """The base stores the embedding alone."""
    for folder in ("base", "adapter"):
        Path(folder).mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    Path("base/config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.randn(32, 8)}, "base/model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(settings))
    factors = {"A": torch.randn(2, 8), "B": torch.randn(32, 2)}
    name = "base_model.model.lm_head.lora_{}.weight"
    save_file({name.format(part): one for part, one in factors.items()}, "adapter/adapter_model.safetensors")
    rows = {row.id: row.status.value for row in cs.check("adapter", base="base").rows}
    assert (rows["adapter-base"], rows["adapter-shapes"]) == ("PASS", "PASS")


def test_blocks_and_layers_of_zeros_are_sound() -> None:
    """They have the smallest exponent of mxfp4, a byte of 0."""
    draw = torch.Generator().manual_seed(0)
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(LAYERS)]
    state = {name: 0.05 * torch.randn(128, 128, generator=draw) for name in names}
    state[names[1]][0, :32] = 0
    state[names[2]][5] *= 1e-5
    state[names[4]] *= 0
    Path("plain").mkdir()
    Path("plain/config.json").write_text(json.dumps({"model_type": "llama", "torch_dtype": "float32"}))
    save_file(state, "plain/model.safetensors")
    cs.apply(cs.convert("plain", quantize="mxfp4"), "model")
    assert found(Path("model")).keys() == {"all-zeros"}


def test_a_base_of_another_name_is_named() -> None:
    Path("base").mkdir()
    Path("adapter").mkdir()
    Path("base/config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8)}, "base/model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    factors = {"A": torch.randn(2, 8), "B": torch.randn(8, 2)}
    save_file({name.format(part): one for part, one in factors.items()}, "adapter/adapter_model.safetensors")
    for named, status in (("org/Base", "PASS"), ("org/other", "WARN")):
        settings = {
            "peft_type": "LORA",
            "r": 2,
            "lora_alpha": 4,
            "target_modules": ["q_proj"],
            "base_model_name_or_path": named,
        }
        Path("adapter/adapter_config.json").write_text(json.dumps(settings))
        row = cs.check("adapter", base="base").row("adapter-config")
        assert row.status.value == status
        assert all("the base of adapter is org/other" in one.what for one in row.found)


@pytest.mark.parametrize("module", ["encoder.layer.0.output.dense", "encoder.layer.0.attention.act_fn", "up_proj"])
def test_scales_of_a_module_with_any_name_are_checked(module: str) -> None:
    """Only the end of a scale's key says that it belongs to activations, not the name of its module."""
    codes = torch.ones(8, 8).to(torch.float8_e4m3fn)
    save_file({f"{module}.weight": codes, f"{module}.weight_scale": torch.full((8, 1), 1e9)}, "model.safetensors")
    (found,) = cs.check("model.safetensors").row("scales").found
    assert found.what.startswith("1 tensor of scales above 1e+06")
    assert f"{module}.weight_scale" in found.what


def test_scales_are_multiplied_by_the_codes_of_their_own_module_alone() -> None:
    state = {"up_proj.weight": torch.ones(8, 8), "up_proj.weight_scale": torch.full((8, 1), 30.0)}
    state |= {"up_proj_2.weight": torch.full((8, 8), 448.0), "up_proj_2.weight_scale": torch.ones(8, 1)}
    codes = {key: one.to(torch.float8_e4m3fn) for key, one in state.items() if key.endswith("weight")}
    save_file(state | codes, "model.safetensors")
    assert cs.check("model.safetensors").row("scales").status.value == "PASS"


def test_complex_numbers_that_are_not_finite_are_found() -> None:
    turns = torch.polar(torch.ones(4, 8), torch.rand(4, 8))
    torch.save({"freqs_cis": turns, "a": torch.rand(4, 4)}, "model.pth")
    assert found(Path("model.pth")) == {}
    turns[1, 2] = complex(1, float("nan"))
    torch.save({"freqs_cis": turns, "a": torch.rand(4, 4)}, "model.pth")
    assert found(Path("model.pth")) == {"not-finite": "1 tensor has 1 NaN value: freqs_cis"}


@pytest.mark.parametrize(("number", "status"), [(1, "PASS"), (64, "PASS"), (32, "FAIL")])
def test_a_scale_for_each_column_does_not_fit(number: int, status: str) -> None:
    """Decoding refuses it, although an 8-bit weight may have a scale for each row, or one in all."""
    Path("m").mkdir()
    settings = {"quant_method": "modelopt", "quant_algo": "FP8"}
    Path("m/config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    codes = {"up_proj.weight": torch.ones(64, 32).to(torch.float8_e4m3fn), "up_proj.weight_scale": torch.ones(number)}
    save_file(codes, "m/model.safetensors")
    row = cs.check("m").row("quantisation")
    assert row.status.value == status
    assert all("does not fit the codes" in one.what for one in row.found)


@pytest.mark.long
@pytest.mark.each_value
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("name", ["gptq", "awq", "nf4", "mlx", "llm_int8"])
def test_codes_of_another_layer_are_a_copy(name: str, is_tied: bool) -> None:
    """Codes of an output layer that equal those of the embedding are usual."""
    encode = {"gptq": gptq, "awq": awq, "nf4": nf4, "mlx": mlx, "llm_int8": llm_int8}[name]
    state = coded_tensors(encode, layers=4, tables=("model.embed_tokens", "lm_head"))
    first, second = (
        ("model.embed_tokens.", "lm_head.") if is_tied else (f"model.layers.{n}.mlp.up_proj." for n in (1, 2))
    )
    assert "duplicates" not in found(write_model(Path("m"), state, SETTINGS.get(name)))
    state |= {key.replace(first, second): one.clone() for key, one in state.items() if key.startswith(first)}
    rows = found(write_model(Path("m"), state, SETTINGS.get(name)))
    assert ("duplicates" in rows) != is_tied
    assert is_tied or "equal to another weight, bit for bit: model.layers.2.mlp.up_proj." in rows["duplicates"]
