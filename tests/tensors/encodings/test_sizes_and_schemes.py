"""Settings and parts of quantised tensors that do not fit the codes are said, and published models are not faulted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError
from ckptsurgeon.tensors.quantised.sizes import logical_shapes

from ...helpers.four_bits import FOUR_BITS
from ...helpers.quantised import eight_bits, fp8, scales, words
from ...helpers.zoo import BY_NAME, IN, OUT, Quantised
from .test_agreement import GEMV, VERBS
from .test_missing_parts import THREE, State, folder_of

HALF = torch.float16
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": None}
NVFP4 = {**INT4, "type": "float", "strategy": "tensor_group", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
INT8 = {**FP8, "type": "int"}


def compressed(format: str, weights: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": dict(weights), "input_activations": None}
    return {
        "quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"], "kv_cache_scheme": None,
        "config_groups": {"group_0": group}, **changed,
    }  # fmt: skip


def group(format: str, weights: Mapping[str, Any], *targets: str) -> dict[str, Any]:
    return {"targets": list(targets), "weights": dict(weights), "format": format}


def packed(g: torch.Generator, columns: int = IN // 8, **more: torch.Tensor) -> State:
    found = {".weight_packed": words(g, OUT, columns), ".weight_scale": scales(g, OUT, IN // 32, dtype=HALF)}
    return {**found, ".weight_shape": torch.tensor([OUT, IN]), **{f".{end}": tensor for end, tensor in more.items()}}


def channel(g: torch.Generator, dtype: torch.dtype) -> State:
    codes = fp8(g, OUT, IN) if dtype.is_floating_point else eight_bits(g, OUT, IN, dtype=dtype)
    return {".weight": codes, ".weight_scale": scales(g, OUT, 1, dtype=HALF)}


E4M3, BYTE = torch.float8_e4m3fn, torch.int8
ZEROS = torch.zeros(OUT, IN // 32, dtype=torch.int8)
ORDER = torch.arange(IN, dtype=torch.int32) // 32
NV = BY_NAME["nvfp4-packed"].store
MODEL_OPT = {
    "quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16, "dynamic": False}}},
}  # fmt: skip
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}

SOUND = [
    Quantised("w4a16", "", packed, compressed("pack-quantized", INT4)),
    Quantised("w4a16-static", "", packed, compressed("pack-quantized", {**INT4, "actorder": "static"})),
    Quantised("w4a16-weight", "", packed, compressed("pack-quantized", {**INT4, "actorder": "weight"})),
    Quantised(
        "w4a16-order", "", lambda g: packed(g, weight_g_idx=ORDER.clone()),
        compressed("pack-quantized", {**INT4, "actorder": "group"}),
    ),
    Quantised("zeros-of-old-versions", "", lambda g: packed(g, weight_zero_point=ZEROS.clone()),
              compressed("pack-quantized", INT4)),
    Quantised("fp8-dynamic", "", lambda g: channel(g, E4M3), compressed("float-quantized", FP8)),
    Quantised("fp8-naive", "", lambda g: channel(g, E4M3), compressed("naive-quantized", FP8)),
    Quantised(
        "fp8-cache", "", lambda g: {**channel(g, E4M3), ".k_scale": scales(g, 1)},
        compressed("float-quantized", FP8, kv_cache_scheme={"num_bits": 8, "type": "float", "strategy": "tensor"}),
    ),
    Quantised("w8a8", "", lambda g: channel(g, BYTE), compressed("int-quantized", INT8)),
    Quantised("nvfp4", "", NV, compressed("nvfp4-pack-quantized", NVFP4)),
    Quantised("nvfp4-modelopt", "", BY_NAME["nvfp4-modelopt"].store, MODEL_OPT),
    Quantised(
        "nvfp4-of-32", "", lambda g: {**BY_NAME["nvfp4-modelopt"].store(g), ".weight_scale": fp8(g, OUT, IN // 32)},
        {"quant_method": "modelopt", "quant_algo": "W4A8_NVFP4_FP8", "group_size": 32},
    ),
    Quantised(  # rows padded to tiles of 128
        "nvfp4-comfy", "", lambda g: {**BY_NAME["nvfp4-modelopt"].store(g), ".weight_scale": fp8(g, 128, IN // 16)},
    ),
    Quantised(
        "mixed", "", lambda g: channel(g, E4M3),
        compressed("mixed-precision", {}, config_groups={
            "group_0": group("nvfp4-pack-quantized", NVFP4, "re:.*up_proj"),
            "group_1": group("float-quantized", FP8, "re:.*q_proj", "re:.*k_proj")}),
    ),
    Quantised(
        "two-groups-of-one-format", "", lambda g: channel(g, E4M3),
        compressed("pack-quantized", {}, config_groups={
            "group_0": {"targets": ["re:.*experts.*"], "weights": INT4},
            "group_1": {"targets": ["Linear"], "weights": FP8}}),
    ),
    Quantised(
        "gptq-order", "", lambda g: {**BY_NAME["gptq"].store(g), ".g_idx": ORDER.flip(0)}, {**GPTQ, "desc_act": True}
    ),
    Quantised(
        "gptq-one-group", "",
        lambda g: {".qweight": words(g, IN // 8, OUT), ".qzeros": words(g, 1, OUT // 8),
                   ".scales": scales(g, 1, OUT, dtype=HALF)},
        {**GPTQ, "group_size": -1, "desc_act": True},
    ),
    Quantised("awq-of-autoround", "", BY_NAME["awq"].store,
              {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": False, "version": "gemm"}),
    replace(BY_NAME["fp8-block"], settings={**BY_NAME["fp8-block"].settings, "fmt": "e4m3"}),
    replace(BY_NAME["bnb-int8"], settings={**BY_NAME["bnb-int8"].settings, "bnb_4bit_quant_type": "fp4"}),
]  # fmt: skip
WORDS = ("quantization_config says", "does not fit the codes")


def said(found: Any) -> list[str]:
    return [note.partition(": ")[2] for note in found.notes if any(word in note for word in WORDS)]


@pytest.mark.parametrize("one", SOUND, ids=lambda one: one.name)
def test_nothing_is_said_of_models_as_they_are_published(one: Quantised, tmp_path: Path) -> None:
    folder = one.folder(tmp_path / "m")
    assert not said(cs.inspect(folder))
    assert not said(cs.transplant(folder, folder))


def test_no_part_of_a_sound_model_is_of_another_size(tmp_path: Path) -> None:
    assert not [note for note in said(cs.inspect(GEMV.folder(tmp_path / "m"))) if "does not fit" in note]


BY_SOUND = {one.name: one for one in SOUND}


def with_weights(settings: Mapping[str, Any], **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(settings))
    found["config_groups"]["group_0"]["weights"].update(changed)
    return found


def of(name: str, **changed: Any) -> Quantised:
    one = BY_SOUND.get(name) or BY_NAME[name]
    return replace(one, settings={**one.settings, **changed})


def of_weights(name: str, **changed: Any) -> Quantised:
    return replace(BY_SOUND[name], settings=with_weights(BY_SOUND[name].settings, **changed))


def without(one: Quantised, end: str) -> Quantised:
    return replace(one, store=lambda g: {name: tensor for name, tensor in one.store(g).items() if name != end})


def with_zero_points(one: Quantised) -> Quantised:
    """Codes that were packed with zero points, as only those of an asymmetric scheme are."""

    def store(g: torch.Generator) -> dict[str, torch.Tensor]:
        tensors = one.store(g)
        rows, columns = tensors[".weight_scale"].shape
        return {**tensors, ".weight_zero_point": torch.ones(rows // 8, columns, dtype=torch.int32)}

    return replace(one, store=store)


def with_bytes(one: Quantised) -> Quantised:
    """The same with codes of uint8, as a program writes them that casts codes."""

    def store(g: torch.Generator) -> dict[str, torch.Tensor]:
        tensors = one.store(g)
        return {**tensors, ".weight": tensors[".weight"].view(torch.uint8)}

    return replace(one, store=store)


NUMBER = "the shapes of 2 quantised tensors say"
CONTRADICTIONS = [
    (of("nvfp4", **compressed("pack-quantized", INT4)), f"format pack-quantized, but {NUMBER} nvfp4"),
    (of("nvfp4", config_groups=compressed("", INT4)["config_groups"]), f"type int, but {NUMBER} nvfp4"),
    (of("fp8-dynamic", format="int-quantized"), f"format int-quantized, but {NUMBER} fp8 with channel scales"),
    (of("w4a16", format="int-quantized"), f"format int-quantized, but {NUMBER} int4 packed (compressed-tensors)"),
    (of_weights("nvfp4", group_size=32), f"group_size 32, but {NUMBER} 16"),
    (of_weights("w8a8", type="float"), f"type float, but {NUMBER} int8 with scales"),
    (of_weights("w4a16", strategy="channel", group_size=None), f"strategy channel, but {NUMBER} group"),
    (of_weights("w4a16", symmetric=False), "symmetric false, but 2 quantised tensors have no weight_zero_point"),
    (with_zero_points(of("w4a16")), "symmetric true, but 2 quantised tensors have weight_zero_point"),
    (of_weights("w4a16", actorder="group"), "actorder group, but 2 quantised tensors have no weight_g_idx"),
    (without(of("gptq-order"), ".g_idx"), "desc_act true, but 2 quantised tensors have no g_idx"),
    (of("fp8-block", fmt="e5m2"), "fmt e5m2, but 2 quantised tensors are e4m3"),
    (of("bnb-nf4", bnb_4bit_quant_type="fp4"), "bnb_4bit_quant_type fp4, but 2 quantised tensors are nf4"),
    (of("bnb-fp4-bf16", bnb_4bit_quant_type="nf4"), "bnb_4bit_quant_type nf4, but 2 quantised tensors are fp4"),
    (
        of("bnb-fp4-bf16", bnb_4bit_quant_storage="float16"),
        "bnb_4bit_quant_storage float16, but 2 quantised tensors are stored as bfloat16 (a cast changed their bytes)",
    ),
    (
        of("bnb-fp4-bf16", bnb_4bit_quant_storage="uint8"),
        "bnb_4bit_quant_storage uint8, but 2 quantised tensors are stored as bfloat16 (a cast changed their bytes)",
    ),
    (with_bytes(of("w8a8")), "format int-quantized, but 2 quantised tensors have codes of uint8 in place of int8"),
]


@pytest.mark.parametrize(("one", "note"), CONTRADICTIONS, ids=lambda value: value[:24] if type(value) is str else "")
def test_settings_that_do_not_fit_are_said(one: Quantised, note: str, tmp_path: Path) -> None:
    names = ", ".join(sorted(f"{layer}.weight" for layer in one.layers))
    assert said(cs.inspect(one.folder(tmp_path / "m"))) == [f"its quantization_config says {note}: {names}"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    notes = said(VERBS[verb](CONTRADICTIONS[0][0].folder(tmp_path / "m")))
    assert any("says format pack-quantized" in note for note in notes)


def test_parts_in_other_shards_are_not_missed(tmp_path: Path) -> None:
    one = of("gptq-order")
    folder, state = one.folder(tmp_path / "m"), one.tensors()
    files = {key: f"model-0000{1 + key.endswith('g_idx')}-of-00002.safetensors" for key in state}
    for name in set(files.values()):
        save_file({key: tensor for key, tensor in state.items() if files[key] == name}, folder / name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert not said(cs.inspect(folder / files[f"{one.layers[0]}.qweight"]))


@pytest.mark.parametrize(
    ("name", "changed", "note"),
    [
        ("w4a16", {"ignore": []}, "targets Linear and does not exclude lm_head.weight, but it is not quantised"),
        ("w4a16", {"ignore": ["lm_head"]}, ""),
        ("w4a16", {"ignore": ["re:.*lm_head"]}, ""),
        (
            "w4a16",
            {"ignore": ["language_model.lm_head"]},  # a module that no tensor is in
            "targets Linear and does not exclude lm_head.weight, but it is not quantised",
        ),
        ("w4a16", {"ignore": ["re:(?=.*)x"]}, ""),  # not evaluated
        ("gptq-order", {"lm_head": True}, "lm_head true and does not exclude lm_head.weight, but it is not quantised"),
        ("gptq-order", {"lm_head": False}, ""),
    ],
)
def test_a_plain_output_layer_that_is_said_to_be_quantised(
    name: str, changed: dict[str, Any], note: str, tmp_path: Path
) -> None:
    one = of(name, **changed)
    folder = one.folder(tmp_path / "m")
    save_file({**one.tensors(), "lm_head.weight": torch.randn(10, IN).bfloat16()}, folder / "model.safetensors")
    assert said(cs.inspect(folder)) == ([f"its quantization_config says {note}"] if note else [])


def test_codes_under_another_format_are_refused_and_diff_says_so(tmp_path: Path) -> None:
    sound = BY_SOUND["nvfp4"].folder(tmp_path / "a")
    other = CONTRADICTIONS[0][0].folder(tmp_path / "b")
    with pytest.raises(PlanError, match="format is nvfp4-pack-quantized in a, pack-quantized in b"):
        cs.transplant(sound, other)
    note = "quantised codes mean different numbers in the two checkpoints: format is nvfp4-pack-quantized in "
    assert any(note in one for one in cs.diff(sound, other).notes)


@pytest.mark.parametrize(
    ("one", "other", "fact"),
    [
        (of("nvfp4"), of_weights("nvfp4", group_size=32), "group_size is 16"),
        (of("nvfp4-modelopt"), of("w4a16"), "type is float"),
        (of("w4a16-order"), of("w4a16"), "actorder is group"),
    ],
)
def test_codes_under_another_scheme_are_refused(one: Quantised, other: Quantised, fact: str, tmp_path: Path) -> None:
    destination = replace(one, settings=other.settings).folder(tmp_path / "b")
    with pytest.raises(PlanError, match=fact):
        cs.transplant(one.folder(tmp_path / "a"), destination)


def test_schemes_that_mean_the_same_are_not_refused(tmp_path: Path) -> None:
    cs.transplant(of("w4a16").folder(tmp_path / "a"), of("w4a16-static").folder(tmp_path / "b"))
    cs.transplant(of("fp8-dynamic").folder(tmp_path / "c"), of("fp8-naive").folder(tmp_path / "d"))


# Parts whose sizes do not fit the codes.


def cut(end: str, *lengths: int) -> Callable[[State], object]:
    def edit(state: State) -> None:
        key = f"{THREE[0]}{end}"
        state[key] = state[key][tuple(slice(length) for length in lengths)].clone()

    return edit


def grown(end: str, times: int) -> Callable[[State], object]:
    key = f"{THREE[0]}{end}"
    return lambda state: state.update({key: state[key].repeat(times)})


UNFIT = [
    ("gptq", cut(".g_idx", IN // 2), "g_idx"),
    ("gptq", cut(".qzeros", 4, OUT // 16), "qzeros"),
    ("int4-second-group", cut(".weight_packed", OUT // 2), "weight_scale"),
    ("int4-packed", cut(".weight_zero_point", OUT, 2), "weight_zero_point"),
    ("nvfp4-packed", cut(".weight_scale", OUT, IN // 32), "weight_scale"),
    ("nvfp4-packed", grown(".weight_global_scale", 4), "weight_global_scale"),
    ("nvfp4-modelopt", cut(".weight_scale", OUT // 2), "weight_scale"),
    ("fp8-channel", cut(".weight_scale", OUT // 2), "weight_scale"),
    ("int8", cut(".weight_scale", OUT // 2), "weight_scale"),
    ("mlx", cut(".biases", OUT, 1), "biases"),
    ("bnb-nf4", cut(".weight.quant_map", 8), "quant_map"),
    ("bnb-int8", cut(".SCB", OUT // 2), "SCB"),
]


@pytest.mark.parametrize(("name", "edit", "part"), UNFIT, ids=[f"{name}-{part}" for name, _, part in UNFIT])
def test_a_part_of_another_size_is_named_and_settings_are_not_blamed(
    name: str, edit: Callable[[State], object], part: str, tmp_path: Path
) -> None:
    unfit = f"1 quantised tensor has {part} of a shape that does not fit the codes: {THREE[0]}.weight"
    assert said(cs.inspect(folder_of(name, tmp_path, edit))) == [unfit]


def test_an_order_of_other_columns_does_not_change_the_number_of_parameters(tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path, cut(".g_idx", IN // 2))
    with cs.open_checkpoint(folder) as checkpoint:
        assert {one.parameters for one in checkpoint.codes.tensors} == {OUT * IN}


def test_settings_of_other_bits_are_blamed_and_no_part(tmp_path: Path) -> None:
    folder = of("gptq-order", bits=8).folder(tmp_path / "m")
    (note,) = said(cs.inspect(folder))
    assert note.startswith(f"its quantization_config says bits 8, but {NUMBER} 4")


def test_logical_shapes_are_those_of_the_plain_weights(tmp_path: Path) -> None:
    for name, shape in {"gptq": (OUT, IN), "nvfp4-packed": (OUT, IN), "bnb-nf4": (OUT * IN,)}.items():
        folder = BY_NAME[name].folder(tmp_path / name)
        with cs.open_checkpoint(folder) as checkpoint:
            assert logical_shapes(checkpoint.codes) == {f"{layer}.weight": shape for layer in BY_NAME[name].layers}


def test_codes_that_a_cast_has_changed_are_not_decoded(tmp_path: Path) -> None:
    one = FOUR_BITS["bnb-nf4-sound"]
    settings = {**one.settings, "bnb_4bit_quant_storage": "bfloat16"}

    def folder(name: str, dtype: torch.dtype) -> Path:
        state = {
            key: tensor.view(-1).view(torch.bfloat16).to(dtype)[:, None] if key.endswith("proj.weight") else tensor
            for key, tensor in one.tensors().items()
        }
        path = replace(one, settings=settings).folder(tmp_path / name)
        save_file(state, path / "model.safetensors")
        return path

    sound, cast = folder("sound", torch.bfloat16), folder("cast", torch.float16)
    assert not said(cs.inspect(sound))
    assert cs.convert(sound, dequantize=True)
    with pytest.raises(
        cs.PlanError, match=r"were stored as bfloat16 \(bnb_4bit_quant_storage\) and then cast to float16"
    ):
        cs.convert(cast, dequantize=True)


@pytest.mark.parametrize("name", ["nvfp4-packed", "nvfp4-modelopt"])
def test_scales_of_nvfp4_that_are_bytes_are_no_exponents(name: str, tmp_path: Path) -> None:
    one = BY_NAME[name]
    state = {k: t.view(torch.uint8) if k.endswith("weight_scale") else t for k, t in one.tensors().items()}
    path = replace(one, settings={}).folder(tmp_path / "m")
    save_file(state, path / "model.safetensors")
    with pytest.raises(cs.PlanError, match=r"a row of 128 columns has 8 scales, not one for each 32 columns"):
        cs.convert(path, dequantize=True)
