"""Settings of quantisation that contradict the codes beside them, or those of other codes: said, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.quantised import eight_bits, scales, words
from ...helpers.zoo import BY_NAME, IN, LAYERS, OUT, PLAIN, ZOO, Quantised

HALF = torch.float16
GEMV = Quantised(
    "awq-gemv", "AWQ, 4 bits",
    lambda g: {".qweight": words(g, OUT, IN // 8), ".qzeros": words(g, OUT, 1), ".scales": scales(g, OUT, 8, dtype=HALF)},
    {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"},
)  # fmt: skip
INT4 = replace(
    BY_NAME["int4-second-group"],
    settings={
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "symmetric": True}}},
    },
)
MODELS = BY_NAME | {"awq-gemv": GEMV, "int4": INT4}
UNSOUND = ("mlx-other-bits",)
"""Those of the zoo whose settings are not those of all of their modules."""


def model(name: str, **changed: Any) -> Quantised:
    one = MODELS[name]
    return replace(one, settings={**one.settings, **changed})


def said(found: Any) -> list[str]:
    return [note for note in found.notes if "quantization_config" in note]


@pytest.mark.parametrize("one", [*ZOO, GEMV, INT4], ids=lambda one: one.name)
def test_nothing_is_said_of_settings_that_are_those_of_their_codes(one: Quantised, tmp_path: Path) -> None:
    folder = one.folder(tmp_path / "m")
    assert bool(said(cs.inspect(folder))) is (one.name in UNSOUND)
    assert bool(said(cs.transplant(folder, folder))) is (one.name in UNSOUND)


def weights(**changed: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 32, **changed}}}}


CONTRADICTIONS = [
    ("gptq", {"bits": 8}, "says bits 8, but the shapes of 2 quantised tensors say 4"),
    ("gptq", {"group_size": 64}, "says group_size 64, but the shapes of 2 quantised tensors say 32"),
    ("gptq", {"group_size": 40}, "says group_size 40, but the shapes of 2 quantised tensors say 32"),  # also 4 groups
    ("awq", {"group_size": 33}, "says group_size 33, but the shapes of 2 quantised tensors say 32"),
    ("int4", weights(group_size=40), "says group_size 40, but .* say 32"),
    ("gptq", {"group_size": -1}, "says group_size -1, but the shapes of 2 quantised tensors say 32"),
    ("gptq", {"quant_method": "awq"}, "says quant_method awq, but the shapes of 2 quantised tensors say GPTQ, 4 bits"),
    ("gptq", {"quant_method": "fp8"}, "says quant_method fp8, but the shapes of 2 quantised tensors say GPTQ, 4 bits"),
    ("awq", {"quant_method": "gptq"}, "says quant_method gptq, but the shapes of 2 quantised tensors say AWQ, 4 bits"),
    ("awq", {"version": "gemv"}, "says version gemv, but the shapes of 2 quantised tensors say gemm"),
    ("awq", {"bits": 8}, "says bits 8, but"),
    ("awq", {"group_size": 128}, "says group_size 128, but the shapes of 2 quantised tensors say 32"),
    ("awq-gemv", {"version": "GEMM"}, "says version gemm, but the shapes of 2 quantised tensors say gemv"),
    ("fp8-block", {"weight_block_size": [128, 128]}, r"says weight_block_size \[128, 128\], but .* \(2, 2\) scales for"),
    ("bnb-nf4", {"load_in_4bit": False, "load_in_8bit": True}, "says load_in_8bit true, but .* say bitsandbytes nf4"),
    ("bnb-nf4", {"quant_method": "gptq"}, "says quant_method gptq, but"),
    ("int4", weights(num_bits=8), "says num_bits 8, but .* say 4: "),
    ("int4", weights(group_size=64), "says group_size 64, but"),
    ("int4-packed", weights(num_bits=8), "says num_bits 8, but .* say 4"),
    ("int4-packed", weights(actorder="group"), "says actorder group, but 2 quantised tensors have no weight_g_idx"),
    ("nvfp4-packed", weights(num_bits=8, group_size=16), "says num_bits 8, but .* say 4"),
    ("fp8-channel", weights(num_bits=4, group_size=None), "says num_bits 4, but .* say 8"),
    ("mlx", {"bits": 8}, "says bits 8, but .* say 4"),
    ("mlx", {"group_size": 256}, "says group_size 256, but .* say 2 scales for "),
    ("awq-gemv", {"group_size": 1}, "says group_size 1, but .* say 8 scales for "),
]  # fmt: skip
VERBS: dict[str, Callable[[Path], Any]] = {
    "inspect": cs.inspect,
    "convert": cs.convert,
    "filter": lambda path: cs.filter(path, exclude=["model.norm"]),
    "rename": lambda path: cs.rename(path, map=["model=decoder"]),
    "diff": lambda path: cs.diff(path, path),
    "transplant": lambda path: cs.transplant(path, path),
    "merge": lambda path: cs.merge([path], method="passthrough"),
}


@pytest.mark.parametrize(("name", "changed", "note"), CONTRADICTIONS)
def test_settings_that_contradict_their_codes_are_said(
    name: str, changed: dict[str, Any], note: str, tmp_path: Path
) -> None:
    found = said(cs.inspect(model(name, **changed).folder(tmp_path / "m")))
    assert len(found) == 1
    assert re.search(note, found[0]), found


@pytest.mark.parametrize(
    ("bits", "group", "said_of_them"),
    [
        (8, 128, "num_bits 8 with group_size 128, but .* say num_bits 4 or group_size 64: "),
        (8, 32, "group_size 32, but .* say 64: "),  # 16 bits are no bits of packed integers
        (4, 256, "group_size 256, but .* say 128: "),
        (3, 32, "group_size 32, but .* say 2 groups in 32 words: "),
    ],
)
def test_either_the_bits_or_the_group_size_of_packed_codes_is_blamed(
    bits: int, group: int, said_of_them: str, tmp_path: Path
) -> None:
    """256 columns of 4 bits in groups of 128, without zero points or an order that would tell the columns."""
    state = {"up.weight_packed": torch.zeros(8, 32, dtype=torch.int32), "up.weight_scale": torch.ones(8, 2)}
    save_file(state, tmp_path / "model.safetensors")
    scheme = {"num_bits": bits, "group_size": group, "type": "int", "strategy": "group", "symmetric": True}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": scheme}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    found = [one for one in said(cs.inspect(tmp_path)) if "group_size" in one or "num_bits" in one]
    assert len(found) == 1
    assert re.search(f"says {said_of_them}", found[0]), found


def test_scales_without_elements_contradict_the_group_size(tmp_path: Path) -> None:
    state = {"up.weight_packed": torch.zeros(8, 32, dtype=torch.int32), "up.weight_scale": torch.ones(8, 0)}
    save_file(state, tmp_path / "model.safetensors")
    settings = {"quant_method": "compressed-tensors", **weights(num_bits=4, group_size=128)}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert any(
        "says group_size 128, but" in one and "no groups in 32 words" in one for one in said(cs.inspect(tmp_path))
    )


@pytest.mark.parametrize("size", [[16, 32], [64, 64], [32, 128]])
def test_blocks_of_another_size_are_not_decoded(size: list[int], tmp_path: Path) -> None:
    """Scales for blocks of 32 x 64 values divide the codes evenly, but may be those of another weight."""
    folder = model("fp8-block", weight_block_size=size).folder(tmp_path / "m")
    why = r"the scale has the shape \[2, 2\], but the codes \[64, 128\] have \d x \d blocks"
    with pytest.raises(cs.PlanError, match=why):
        cs.convert(folder, dequantize=True)
    (found,) = cs.check(folder).row("quantisation").found
    assert (found.status.value, "weight_block_size" in found.what) == ("FAIL", True)


def test_blocks_of_mxfp8_are_their_own_in_a_model_of_other_blocks(tmp_path: Path) -> None:
    """transformers derives the blocks from the scales: experts of 1 x 32 among linear layers of 128 x 128."""
    codes = torch.ones(64, 128).to(torch.float8_e4m3fn)
    scale = torch.full((64, 4), 126, dtype=torch.uint8)
    save_file({"up.weight": codes, "up.weight_scale_inv": scale}, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    assert not said(cs.inspect(tmp_path))
    cs.apply(cs.convert(tmp_path, dequantize=True), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")["up.weight"].flatten().tolist()) == {0.5}


@pytest.mark.parametrize("shape", [(), (64,), (64, 1), (1, 128)])
def test_scales_that_are_no_blocks_are_decoded_although_the_settings_have_blocks(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    codes = torch.ones(64, 128).to(torch.float8_e4m3fn)
    save_file({"up.weight": codes, "up.weight_scale_inv": torch.full(shape, 0.5)}, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    (found,) = cs.check(tmp_path).row("quantisation").found
    assert (found.status.value, "1 quantised tensor has" in found.what) == ("WARN", True)
    cs.apply(cs.convert(tmp_path, dequantize=True), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")["up.weight"].flatten().tolist()) == {0.5}


@pytest.mark.parametrize("rows", [96, 100])
@pytest.mark.parametrize(("name", "is_fused"), [("qkv", True), ("gate_up_proj", True), ("up", False)])
def test_the_error_on_blocks_says_that_fused_weights_may_have_their_own(
    name: str, is_fused: bool, rows: int, tmp_path: Path
) -> None:
    codes = torch.ones(rows, 128).to(torch.float8_e4m3fn)
    save_file({f"{name}.weight": codes, f"{name}.weight_scale_inv": torch.ones(6, 2)}, tmp_path / "model.safetensors")
    settings = {"quant_method": "fp8", "weight_block_size": [32, 64]}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": settings}))
    with pytest.raises(cs.PlanError, match="and cannot be decoded: the.* scale") as error:
        cs.convert(tmp_path, dequantize=True)
    assert ("the tensor has the name of several fused weights" in str(error.value)) is is_fused


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    assert any("says bits 8" in note for note in VERBS[verb](model("gptq", bits=8).folder(tmp_path / "m")).notes)


@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
def test_two_files_that_say_otherwise_of_the_same_codes_are_said(verb: str, tmp_path: Path) -> None:
    folder = model("gptq", sym=True).folder(tmp_path / "m")
    beside = {"bits": 4, "group_size": 32, "desc_act": False}
    for sym, format, expected in ((True, "gptq", 0), (True, "gptq_v2", 1), (False, "gptq", 1)):
        said = {**beside, "sym": sym, "checkpoint_format": format}
        (folder / "quantize_config.json").write_text(json.dumps(said))
        notes = {note for note in VERBS[verb](folder).notes if "in config.json, and" in note}
        assert len(notes) == expected, notes
    assert notes == {f"{folder}: sym is true in config.json, and false in quantize_config.json"}


def test_metadata_and_config_json_that_say_otherwise_are_said(tmp_path: Path) -> None:
    folder = model("gptq").folder(tmp_path / "m")
    metadata = {"quantization_config": json.dumps({**model("gptq").settings, "checkpoint_format": "gptq_v2"})}
    save_file(model("gptq").tensors(), folder / "model.safetensors", metadata=metadata)
    said = f"{folder}: checkpoint_format is gptq_v2 in its metadata, and gptq in config.json"
    assert said in cs.inspect(folder).notes


def test_bits_of_some_modules_are_those_of_their_own_settings(tmp_path: Path) -> None:
    one = model("gptq", bits=8, dynamic={".*q_proj": {"bits": 4}, ".*k_proj": {"bits": 4}})
    assert not said(cs.inspect(one.folder(tmp_path / "m")))


def test_blocks_of_fused_weights_and_of_rows_that_are_left_over_are_their_own(tmp_path: Path) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    codes = eight_bits(torch.Generator(), 100, IN).view(torch.float8_e4m3fn)
    save_file(
        {"a.0.kv_a.weight": codes, "a.0.kv_a.weight_scale_inv": torch.ones(4, 2),
         "a.0.qkv.weight": codes.clone(), "a.0.qkv.weight_scale_inv": torch.ones(6, 2)},
        folder / "model.safetensors",
    )  # fmt: skip
    assert not said(cs.inspect(folder))


@pytest.mark.parametrize("names", [("a.0.qkv", "a.0.out"), ("a.0.out", "a.0.qkv")], ids=["fused-first", "fused-last"])
def test_weights_alike_contradict_blocks_unless_their_name_is_that_of_fused_ones(
    names: tuple[str, str], tmp_path: Path
) -> None:
    folder = BY_NAME["fp8-block"].folder(tmp_path / "m")
    codes = eight_bits(torch.Generator(), 100, IN).view(torch.float8_e4m3fn)
    tensors = {}
    for name in names:
        tensors |= {f"{name}.weight": codes.clone(), f"{name}.weight_scale_inv": torch.ones(6, 2)}
    save_file(tensors, folder / "model.safetensors")
    (note,) = said(cs.inspect(folder))
    assert "1 quantised tensor" in note
    assert note.endswith(": a.0.out.weight")


TOLD = ("gptq", "awq", "fp8-block", "bnb-nf4", "int4-packed", "mxfp4")


@pytest.mark.costly
@pytest.mark.each_value
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", TOLD)
def test_codes_of_which_config_json_says_nothing_are_said(name: str, verb: str, tmp_path: Path) -> None:
    folder = replace(BY_NAME[name], settings={}).folder(tmp_path / "m")
    notes = VERBS[verb](folder).notes
    number = "1 quantised tensor" if len(BY_NAME[name].layers) == 1 else "2 quantised tensors"
    assert any(f"its config.json has no quantization_config for {number}" in one for one in notes)
    for beside, content in (("quantize_config.json", BY_NAME[name].settings), ("config.json", {"quip_params": {}})):
        Path(folder, beside).write_text(json.dumps(content))
        assert not said(cs.inspect(folder))
        Path(folder, "quantize_config.json").unlink(missing_ok=True)


TELL_THEMSELVES = {
    "fp8-comfy", "fp8-descale", "fp8-tensorrt", "int8-comfy", "int8-tensorrt", "fp4-deepseek-v4", "hqq-saved", "qtip",
    "quanto", "quanto-int4", "exl2", "exl3", "squeezellm", "nunchaku", "awq-16", "bytes-of-llama.cpp",
    "unknown", "unknown-alone",
}  # fmt: skip
"""Codes that programs know without settings, by their names, and those of which nobody knows who does."""
UNKNOWN = {one.name for one in ZOO if "unknown encoding" in one.method} | {"unknown", "unknown-alone"}


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.name)
def test_every_encoding_is_said_if_config_json_has_lost_its_settings(one: Quantised, tmp_path: Path) -> None:
    folder = replace(one, settings={}).folder(tmp_path / "m")
    number = "1 quantised tensor" if len(one.layers) == 1 else "2 quantised tensors"
    wanted = f"{folder}: its config.json has no quantization_config for {number}"
    assert [wanted in note for note in said(cs.inspect(folder))] == ([] if one.name in TELL_THEMSELVES else [True])


@pytest.mark.parametrize("one", ZOO, ids=lambda one: one.name)
def test_every_encoding_is_said_if_config_json_has_another_method(one: Quantised, tmp_path: Path) -> None:
    other = "gptq" if one.name == "awq" else "awq"
    folder = replace(one, settings={"quant_method": other}).folder(tmp_path / "m")
    notes = [note for note in said(cs.inspect(folder)) if f"says quant_method {other}, but" in note]
    assert len(notes) == (one.name not in UNKNOWN)


@pytest.mark.each_value
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("name", TOLD)
def test_plain_weights_of_which_config_json_says_that_they_are_quantised_are_said(
    name: str, verb: str, tmp_path: Path
) -> None:
    folder = model(name, **(weights() if name == "int4-packed" else {})).folder(tmp_path / "m")
    state = {key: torch.ones(10, IN) for key in PLAIN[:1]} | {f"{LAYERS[0]}.weight": torch.ones(OUT, IN)}
    save_file(state | {"model.norm.weight": torch.ones(IN)}, folder / "model.safetensors")
    notes = VERBS[verb](folder).notes
    assert any("but no tensor is quantised: model.layers.0.self_attn.q_proj.weight is float32" in n for n in notes)


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "torchao"}, {"quant_method": "compressed-tensors", "format": "dense", **weights()},
     {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, {}],
)  # fmt: skip
def test_plain_weights_may_be_what_a_method_stores(settings: dict[str, Any], tmp_path: Path) -> None:
    folder = replace(BY_NAME["gptq"], settings=settings).folder(tmp_path / "m")
    save_file({f"{LAYERS[0]}.weight": torch.ones(OUT, IN)}, folder / "model.safetensors")
    assert not said(cs.inspect(folder))


def test_a_shard_without_codes_is_not_the_model(tmp_path: Path) -> None:
    folder = BY_NAME["gptq"].folder(tmp_path / "m")
    plain = {"model.layers.1.fc.weight": torch.ones(OUT, IN)}
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (folder / "model.safetensors").rename(folder / names[0])
    save_file(plain, folder / names[1])
    places = dict.fromkeys(BY_NAME["gptq"].tensors(), names[0]) | dict.fromkeys(plain, names[1])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert not said(cs.inspect(folder / names[1]))
    assert not said(cs.inspect(folder))


DIFFERING = [
    ("gptq", {}, {"checkpoint_format": "gptq_v2"}, "checkpoint_format is gptq in a, gptq_v2 in b"),
    ("gptq", {"checkpoint_format": "gptq_v2"}, {"format": "gptq"}, "checkpoint_format is gptq_v2 in a, gptq in b"),
    ("gptq", {"bits": 4}, {"bits": 8}, "bits is 4 in a, 8 in b"),
    ("gptq", {"sym": False}, {"sym": True}, "sym is false in a, true in b"),
    ("gptq", {"desc_act": True}, {"desc_act": False}, "desc_act is true in a, false in b"),
    ("gptq", {}, {"quant_method": "awq"}, "quant_method is gptq in a, awq in b"),
    ("awq", {}, {"version": "gemv"}, "version is gemm in a, gemv in b"),
    ("awq", {"zero_point": True}, {"zero_point": False}, "zero_point is true in a, false in b"),
    ("awq", {}, {"group_size": 128}, "group_size is 32 in a, 128 in b"),
    ("fp8-block", {}, {"weight_block_size": [40, 64]}, r"weight_block_size is \[32, 64\] in a, \[40, 64\] in b"),
    ("int4-packed", weights(symmetric=True), weights(symmetric=False), "symmetric is true in a, false in b"),
]  # fmt: skip


@pytest.mark.costly
@pytest.mark.parametrize(("name", "first", "second", "why"), DIFFERING)
def test_codes_are_not_put_under_settings_that_decode_them_otherwise(
    name: str, first: dict[str, Any], second: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = model(name, **first).folder(Path("a")), model(name, **second).folder(Path("b"), 1)
    recipe = {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": "b", "layer_range": [0, 1]}]}, {"sources": [{"model": "a", "layer_range": [0, 1]}]},
    ]}  # fmt: skip
    Path("recipe.yaml").write_text(json.dumps(recipe))
    for plan in (lambda: cs.transplant(a, b, include=list(LAYERS)), lambda: cs.merge("recipe.yaml")):
        with pytest.raises(
            cs.PlanError, match="the quantised tensors of a would be decoded with the settings of b"
        ) as error:
            plan()
        assert error.value.exit_code == 4
        assert any(f"{layer}.weight" in error.value.details for layer in LAYERS)
    with pytest.raises(cs.PlanError, match=why):
        cs.transplant(a, b)
    assert cs.transplant(a, b, exclude=list(LAYERS)).counts["copied"] == len(PLAIN)
    assert any("quantised codes mean different numbers in the two checkpoints" in note for note in cs.diff(a, b).notes)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("gptq", {"checkpoint_format": "gptq"}, {}),
        ("gptq", {"desc_act": False, "sym": True}, {"desc_act": True, "sym": False}),
        ("gptq", {"damp_percent": 0.1, "dataset": "c4"}, {"damp_percent": 0.01}),
        ("gptq", {"quant_method": "auto-round"}, {"checkpoint_format": "gptq"}),
        ("gptq", {"bits": 8, "dynamic": {".*_proj": {"bits": 4}}}, {}),
        ("awq", {"version": "exllama"}, {"version": "gemm"}),
        ("bnb-nf4", {"bnb_4bit_compute_dtype": "float16"}, {"bnb_4bit_compute_dtype": "bfloat16"}),
        ("fp8-block", {"activation_scheme": "dynamic"}, {"activation_scheme": "static"}),
    ],
)  # fmt: skip
def test_settings_that_decode_alike_are_no_error(
    name: str, first: dict[str, Any], second: dict[str, Any], tmp_path: Path
) -> None:
    a, b = model(name, **first).folder(tmp_path / "a"), model(name, **second).folder(tmp_path / "b", 1)
    cs.apply(cs.transplant(a, b), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    assert all(
        torch.equal(found[f"{one}.scales"], model(name).tensors()[f"{one}.scales"]) for one in LAYERS if name == "gptq"
    )


@pytest.mark.parametrize("name", ["gptq", "awq", "mlx", "hqq"])
def test_codes_without_settings_of_their_own_are_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = model(name).folder(tmp_path / "b", 1)
    save_file(model(name).tensors(), tmp_path / "a" / "codes.safetensors")
    notes = [
        one
        for one in cs.transplant(tmp_path / "a" / "codes.safetensors", folder).notes
        if "loaders of the output use the settings of" in one
    ]
    assert len(notes) == 1
    assert all("codes.safetensors has no settings for 2 quantised tensors of" in note for note in notes)
    assert not any("loaders of the output use the settings of" in one for one in cs.transplant(folder, folder).notes)


class Live(torch.nn.Module):
    """A module with codes, and the configuration of transformers beside them."""

    def __init__(self, one: Quantised) -> None:
        super().__init__()
        self.config = type("Config", (), {"to_dict": lambda _: one.config()})()
        self.proj = torch.nn.Module()
        for end, tensor in one.store(torch.Generator()).items():
            self.proj.register_buffer(end[1:], torch.zeros_like(tensor))


def test_a_live_module_that_decodes_otherwise_gets_no_codes(tmp_path: Path) -> None:
    folder = replace(model("gptq"), layers=("proj",)).folder(tmp_path / "m")
    with pytest.raises(cs.PlanError, match="checkpoint_format is gptq in m, gptq_v2 in Live"):
        cs.load_into(Live(model("gptq", checkpoint_format="gptq_v2")), folder, include=["proj"])
    assert cs.load_into(Live(model("gptq")), folder, include=["proj"]).counts["copied"] == 4


def test_codes_of_two_sources_have_the_same_settings(tmp_path: Path) -> None:
    one = replace(model("gptq"), layers=("a",)).folder(tmp_path / "one")
    two = replace(model("gptq", checkpoint_format="gptq_v2"), layers=("b",)).folder(tmp_path / "two")
    state = {**load_file(one / "model.safetensors"), **load_file(two / "model.safetensors")}
    save_file(state, tmp_path / "both.safetensors")
    with pytest.raises(cs.PlanError, match="checkpoint_format is gptq_v2 in two, gptq in one"):
        cs.transplant([f"{one}:a:a", f"{two}:b:b"], tmp_path / "both.safetensors")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("settings", "number"), [({}, 0), ({"quant_method": "gptq"}, 1), ({"quant_method": "own"}, 0)])
def test_torch_s_own_quantised_tensors_tell_themselves(settings: dict[str, Any], number: int, tmp_path: Path) -> None:
    folder = replace(BY_NAME["gptq"], settings=settings).folder(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    weight = torch.quantize_per_tensor(torch.ones(OUT, IN), 0.1, 0, torch.qint8)
    torch.save({f"{LAYERS[0]}.weight": weight}, folder / "pytorch_model.bin")
    assert len(said(cs.inspect(folder))) == number


def test_an_order_of_columns_that_one_tensor_lacks_is_said(tmp_path: Path) -> None:
    folder = model("int4-packed", **weights(actorder="group")).folder(tmp_path / "m")
    path = folder / "model.safetensors"
    state = load_file(path)
    first, *others = sorted(key.removesuffix(".weight_packed") for key in state if key.endswith(".weight_packed"))
    order = torch.arange(IN, dtype=torch.int32) // 32
    save_file({**state, **{f"{one}.weight_g_idx": order.clone() for one in others}}, path)
    (note,) = said(cs.inspect(folder))
    assert "says actorder group, but 1 quantised tensor has no weight_g_idx: " in note
    save_file({**state, **{f"{one}.weight_g_idx": order.clone() for one in (first, *others)}}, path)
    assert not said(cs.inspect(folder))
