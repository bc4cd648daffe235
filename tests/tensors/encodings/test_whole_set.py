"""Quantised models whose tensors all lack a part that their method needs: said by every command."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.zoo import BY_NAME, OUT
from .test_agreement import VERBS
from .test_missing_parts import THREE, WEIGHTS, State

WORDS = (
    "no quantised tensor has",
    ", which only quantised weights need",
    "loaders look for",
    " similar tensors have ",
    " needs: ",
    "have no scales",
)


def said(found: Any) -> list[str]:
    return [note.partition(": ")[2] for note in found.notes if any(word in note for word in WORDS)]


def folder_of(
    name: str, path: Path, edit: Callable[[State], object], more: Mapping[str, Any] | None = None, **fields: Any
) -> Path:
    """Make a folder of three layers; ``edit`` changes its state dict, ``more`` its settings."""
    one = replace(BY_NAME[name], layers=THREE, **fields)
    folder = replace(one, settings={**one.settings, **more} if more else one.settings).folder(path / "m")
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file({key: value.clone() for key, value in state.items()}, folder / WEIGHTS)
    return folder


def without(end: str, layers: int = 3) -> Callable[[State], object]:
    return lambda state: [state.pop(f"{stem}{end}") for stem in THREE[:layers]]


def nothing(state: State) -> None: ...


PACK, NV = {"format": "pack-quantized"}, {"format": "nvfp4-pack-quantized"}


@pytest.mark.parametrize(
    ("name", "end", "method", "more"),
    [
        ("gptq", ".scales", "GPTQ", {}), ("gptq", ".qzeros", "GPTQ", {"sym": True}), ("gptq", ".qweight", "GPTQ", {}),
        ("gptq", ".qzeros", "GPTQ", {"checkpoint_format": "gptq_v2", "sym": False}),
        ("awq", ".scales", "AWQ", {}), ("awq", ".qzeros", "AWQ", {"zero_point": True}), ("awq", ".qweight", "AWQ", {}),
        ("int4-packed", ".weight_scale", "the format pack-quantized", PACK),
        ("int4-packed", ".weight_packed", "the format pack-quantized", PACK),
        ("int4-packed", ".weight_shape", "the format pack-quantized", PACK),
        ("nvfp4-packed", ".weight_scale", "the format nvfp4-pack-quantized", NV),
        ("nvfp4-packed", ".weight_packed", "the format nvfp4-pack-quantized", NV),
        ("nvfp4-packed", ".weight_global_scale", "the format nvfp4-pack-quantized", NV),
        ("nvfp4-modelopt", ".weight_scale", "nvfp4", {}), ("nvfp4-modelopt", ".weight_scale_2", "nvfp4", {}),
        ("nvfp4-modelopt", ".weight", "nvfp4", {}),
        ("mxfp4", "_scales", "mxfp4", {}), ("mxfp4", "_blocks", "mxfp4", {}),
        ("bnb-nf4", ".weight.absmax", "bitsandbytes", {}), ("bnb-nf4", ".weight.quant_map", "bitsandbytes", {}),
        ("bnb-nf4", ".weight.nested_absmax", "bitsandbytes", {}), ("bnb-nf4", ".weight", "bitsandbytes", {}),
        ("bnb-nf4", ".weight.quant_state.bitsandbytes__nf4", "bitsandbytes", {}),
        ("bnb-int8", ".SCB", "bitsandbytes", {}), ("bnb-int8", ".weight", "bitsandbytes", {}),
        ("mlx", ".scales", "MLX", {}), ("mlx", ".biases", "MLX", {}), ("mlx", ".weight", "MLX", {}),
        ("aqlm", ".codebooks", "AQLM", {}), ("eetq", ".weight", "EETQ", {}),
    ],
)  # fmt: skip
def test_a_needed_part_that_no_tensor_has_is_said(
    name: str, end: str, method: str, more: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path, without(end), more)
    part = end.removeprefix(".weight.").strip("._") if name != "bnb-nf4" or end != ".weight" else "codes"
    (note,) = said(cs.inspect(folder))
    assert note.startswith(f"no quantised tensor has {part}, which {method} needs: {THREE[0]}")


def test_a_part_that_less_than_half_have_is_said(tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path, without(".qzeros", 2), {"sym": True})
    assert said(cs.inspect(folder)) == [f"2 quantised tensors lack qzeros, which GPTQ needs: {', '.join(THREE[:2])}"]


def test_scales_of_activations_do_not_decode_weights(tmp_path: Path) -> None:
    more = {"quant_method": "fp8"}
    folder = folder_of("fp8-tensor", tmp_path, without(".weight_scale"), more)
    (note,) = said(cs.inspect(folder))
    assert note.startswith("no quantised tensor has scales of weights, which fp8 needs: ")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    assert said(VERBS[verb](folder_of("gptq", tmp_path, without(".scales"))))


@pytest.mark.parametrize(
    ("name", "end", "more"),
    [
        ("gptq", ".qzeros", {"checkpoint_format": "marlin"}),
        ("gptq", ".qzeros", {"checkpoint_format": "gptq_v2", "sym": True}),
        ("awq", ".qzeros", {"version": "marlin"}), ("awq", ".qzeros", {"zero_point": False}),
        ("bnb-fp4-bf16", ".bias", {}), ("bnb-int8", ".weight_format", {}),
        ("nvfp4-packed", ".input_global_scale", NV), ("nvfp4-modelopt", ".input_scale", {}),
    ],
)  # fmt: skip
def test_parts_that_a_format_does_not_need_are_not_missed(
    name: str, end: str, more: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path, lambda state: [state.pop(f"{stem}{end}", None) for stem in THREE], more)
    assert not said(cs.inspect(folder))


def test_modes_of_mlx_with_exponents_have_no_biases(tmp_path: Path) -> None:
    def edit(state: State) -> None:
        for stem in THREE[:2]:
            del state[f"{stem}.biases"]
            state[f"{stem}.scales"] = torch.ones(OUT, 4, dtype=torch.uint8)

    folder = folder_of(
        "mlx", tmp_path, edit, {"group_size": 32, "mode": "mxfp4", THREE[2]: {"group_size": 64, "bits": 4}}
    )
    assert not [note for note in cs.inspect(folder).notes if "lack" in note and "biases" in note]


def test_one_tensor_of_mlx_without_biases_is_said(tmp_path: Path) -> None:
    folder = folder_of("mlx", tmp_path, without(".biases", 1))
    (note,) = [note for note in cs.inspect(folder).notes if "biases" in note]
    assert f"1 quantised tensor lacks biases, which 2 similar tensors have: {THREE[0]}" in note


@pytest.mark.parametrize("has_index", [False, True])
def test_parts_in_another_shard_are_not_missed(has_index: bool, tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path, nothing)
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {key: names[key.endswith(".scales")] for key in state}
    for name in names:
        save_file({key: one for key, one in state.items() if places[key] == name}, folder / name)
    if has_index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert not said(cs.inspect(folder))
    assert not any(said(cs.inspect(folder / name)) for name in names)


@pytest.mark.parametrize("ending", ["weight_scale_inv", "weight_scale_2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_beside_which_a_part_of_codes_is_left_are_said_without_settings(
    ending: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a.up.weight": torch.ones(4, 4).bfloat16(), f"a.up.{ending}": torch.ones(1, 1, dtype=dtype)}, path)
    wanted = f"{path}: 1 weight without quantisation has {ending}, which only quantised weights need: a.up.weight"
    assert wanted in cs.inspect(path).notes
    assert wanted in cs.filter(path, include="**").notes
    if dtype == torch.float32:
        with pytest.raises(cs.PlanError, match="nothing decodes them: use the original file"):
            cs.convert(path, dtype="bf16")


def test_a_scale_that_plain_weights_have_too_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a.up.weight": torch.ones(4, 4), "a.up.weight_scale": torch.ones(1)}, path)
    assert not cs.inspect(path).notes


@pytest.mark.parametrize(("name", "ending"), [("awq", ".qweight"), ("gptq", ".qweight"), ("mxfp4", "_blocks")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_codes_of_one_tensor_in_a_dtype_that_codes_never_have_are_said_and_never_cast(
    name: str, ending: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    folder = BY_NAME[name].folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    first = next(key for key in tensors if key.endswith(ending))
    other = {key.replace("layers.0", "layers.1"): one.clone() for key, one in tensors.items() if "layers.0" in key}
    cast = first.replace("layers.0", "layers.1")
    save_file({**tensors, **other, cast: other[cast].to(dtype)}, folder / "model.safetensors", {"format": "pt"})
    wanted = f"numbers in place of codes ({cast} is {str(dtype).removeprefix('torch.')})"
    for plan in (cs.convert(folder), cs.filter(folder, include="**")):
        assert any(wanted in note for note in plan.notes)
    assert any(wanted in note for note in cs.inspect(folder).notes)
    if dtype == torch.float32:
        with pytest.raises(cs.PlanError, match="would use its codes as numbers"):
            cs.convert(folder, dtype="bf16")


def test_scales_that_are_packed_in_words_are_not_said(tmp_path: Path) -> None:
    assert not [note for note in cs.inspect(BY_NAME["exl2"].folder(tmp_path / "m")).notes if "can be decoded" in note]


@pytest.mark.parametrize("name", ["fp8-block", "awq"])
def test_scales_in_integers_are_said(name: str, tmp_path: Path) -> None:
    folder = BY_NAME[name].folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    ends = (".weight_scale_inv", ".scales")
    whole = {key: one.int() if key.endswith(ends) else one for key, one in tensors.items()}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    for notes in (cs.inspect(folder).notes, cs.convert(folder).notes):
        assert any("no weights can be decoded" in note for note in notes)


def test_scales_of_a_cache_belong_to_no_weight(tmp_path: Path) -> None:
    folder = BY_NAME["int8"].folder(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    module = next(key for key in tensors if ".self_attn." in key).partition(".self_attn.")[0] + ".self_attn"
    scales = {f"{module}.{one}": torch.ones(1) for one in ("k_scale", "v_scale")}
    save_file({**tensors, **scales}, folder / "model.safetensors", {"format": "pt"})
    assert not [one.name for one in cs.open_checkpoint(folder).codes.tensors if not one.codes]
    cs.apply(cs.convert(folder, dequantize=True), tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out/model.safetensors")[f"{module}.k_scale"], torch.ones(1))
