"""Quantised tensors that lack a part which those like them have: said by every command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.util.notes import Note, is_serious

from ...helpers.zoo import BY_NAME, IN, OUT
from .test_agreement import VERBS

THREE = tuple(f"model.layers.{layer}.mlp.up_proj" for layer in range(3))
WEIGHTS = "model.safetensors"
State = dict[str, torch.Tensor]


def said(found: Any) -> list[Note]:
    return [
        note.reworded(note.partition(": ")[2])
        for note in found.notes
        if " similar tensor" in note or "for blocks of" in note
    ]


def folder_of(name: str, path: Path, edit: Callable[[State], object] = lambda state: None) -> Path:
    folder = replace(BY_NAME[name], layers=THREE).folder(path / "m")
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS)
    return folder


def without(end: str) -> Callable[[State], object]:
    return lambda state: state.pop(f"{THREE[0]}{end}")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("fp8-block", ".weight_scale_inv"), ("fp8-channel", ".weight_scale"), ("mxfp8", ".weight_scale"),
        ("mxfp4", "_scales"), ("mxfp4", "_blocks"), ("nvfp4-packed", ".weight_scale"),
        ("nvfp4-packed", ".weight_global_scale"), ("nvfp4-modelopt", ".weight_scale_2"), ("int8", ".weight_scale"),
        ("int4-packed", ".weight_scale"), ("int4-packed", ".weight_packed"), ("int4-packed", ".weight_shape"),
        ("gptq", ".scales"), ("gptq", ".qweight"), ("gptq", ".qzeros"), ("gptq", ".g_idx"), ("awq", ".scales"),
        ("bnb-nf4", ".weight.absmax"), ("bnb-nf4", ".weight.quant_state.bitsandbytes__nf4"),
        ("bnb-nf4", ".weight.quant_map"), ("bnb-nf4", ".weight.nested_absmax"), ("bnb-int8", ".SCB"),
        ("mlx", ".scales"), ("aqlm", ".codebooks"), ("eetq", ".weight_scales"), ("hqq", ".scale"), ("exl2", ".q_scale"),
        ("exl3", ".suh"), ("vptq", ".centroids.weight"), ("torchao-int4", "._weight_scale"), ("quip", ".SU"),
    ],
)  # fmt: skip
def test_a_part_that_those_like_it_have_is_said(name: str, end: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path, without(end))
    part = end.removeprefix(".") if end.startswith(".") else f"up_proj{end}"
    why = f"1 quantised tensor lacks {part}, which 2 similar tensors have: {THREE[0]}"
    assert [why in note for note in said(cs.inspect(folder))].count(True) == 1


def test_parts_that_one_tensor_lacks_are_said_once_and_no_shape_is(tmp_path: Path) -> None:
    """The parts that are left are of no encoding, so their shapes fit none."""

    def edit(state: State) -> None:
        for end in (".scales", ".g_idx"):
            del state[f"{THREE[0]}{end}"]

    (note,) = said(cs.inspect(folder_of("gptq", tmp_path, edit)))
    assert note == f"1 quantised tensor lacks g_idx and scales, which 2 similar tensors have: {THREE[0]}.qweight"
    assert is_serious(note)


@pytest.mark.parametrize(
    ("name", "settings", "words", "serious"),
    [
        (
            "fp8-block",
            None,
            "no quantization_config for 3 quantised tensors, so that loaders use the codes as if",
            True,
        ),
        ("int4-packed", None, "no quantization_config for 3 quantised tensors, so that loaders refuse the codes", True),
        (
            "gptq",
            {**BY_NAME["gptq"].settings, "bits": 8},
            "says bits 8, but the shapes of 3 quantised tensors say",
            True,
        ),
    ],
)
def test_settings_with_which_codes_are_decoded_wrong_are_a_warning(
    name: str, settings: dict[str, object] | None, words: str, serious: bool, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path, lambda state: None)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps({key: one for key, one in config.items() if one is not None}))
    (note,) = [one for one in cs.inspect(folder).notes if words in one]
    assert is_serious(note) is serious


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    assert said(VERBS[verb](folder_of("fp8-block", tmp_path, without(".weight_scale_inv"))))


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "edit", "why"),
    [
        ("fp8-block", without(".weight_scale_inv"), "1 quantised tensor lacks weight_scale_inv"),
        ("gptq", lambda state: None, "its quantization_config says bits 8"),
    ],
)
def test_verify_says_so(name: str, edit: Callable[[State], object], why: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path, edit)
    if name == "gptq":
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = {**BY_NAME[name].settings, "bits": 8}
        (folder / "config.json").write_text(json.dumps(config))
    cs.apply(cs.convert(folder), tmp_path / "out")
    found = cs.verify(tmp_path / "out")
    assert found.ok
    (path, said), other = [(note.name, note.why) for note in found.notes]
    assert "tie_word_embeddings" in other[1]
    assert path == str(tmp_path / "out")
    assert said.startswith(why)


def test_a_scale_of_another_name_is_a_lost_one(tmp_path: Path) -> None:
    def rename(state: State) -> None:
        state[f"{THREE[0]}.weights_scale"] = state.pop(f"{THREE[0]}.weight_scale")

    folder = folder_of("int4-packed", tmp_path, rename)
    assert said(cs.inspect(folder)) == [
        f"1 quantised tensor lacks weight_scale, which 2 similar tensors have: {THREE[0]}.weight_packed"
    ]


@pytest.mark.parametrize(("part", "size"), [("absmax", 64), ("nested_absmax", 256)])
def test_scales_of_bitsandbytes_for_other_blocks_than_the_rest_has_are_said(
    part: str, size: int, tmp_path: Path
) -> None:
    def edit(state: State) -> None:
        key = f"{THREE[0]}.weight.{part}"
        state[key] = torch.cat([state[key], state[key]])

    folder = folder_of("bnb-nf4", tmp_path, edit)
    why = f"1 quantised tensor has too few or too many values in {part} for blocks of {size}, the block size of 2 similar tensors"
    assert [why in one for one in said(cs.inspect(folder))].count(True) == 1


def test_plain_weights_are_left_out_on_purpose(tmp_path: Path) -> None:
    def edit(state: State) -> None:
        for key in [key for key in state if key.startswith(THREE[0])]:
            del state[key]
        state |= {f"{THREE[0]}.weight": torch.ones(OUT, IN).bfloat16(), "lm_head.weight": torch.ones(10, IN)}

    for name in ("fp8-block", "int4-packed", "gptq", "bnb-nf4", "bnb-int8", "mlx"):
        assert not said(cs.inspect(folder_of(name, tmp_path / name, edit)))


def test_a_part_in_another_shard_is_not_lost(tmp_path: Path) -> None:
    folder = folder_of("fp8-block", tmp_path)
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {key: names[key == f"{THREE[0]}.weight_scale_inv"] for key in state}
    for name in names:
        save_file({key: one for key, one in state.items() if places[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert not said(cs.inspect(folder))
    assert not any(said(cs.inspect(folder / name)) for name in names)


@pytest.mark.parametrize("name", ["fp8-experts", "fp4-experts"])
def test_experts_without_their_scales_keep_their_name(name: str, tmp_path: Path) -> None:
    folder = BY_NAME[name].folder(tmp_path / "m")
    state = {key: one for key, one in load_file(folder / WEIGHTS).items() if not key.endswith("_scale_inv")}
    save_file(state, folder / WEIGHTS)
    with pytest.raises(cs.PlanError, match=r"experts\.gate_up_proj of .* the scale that decodes the codes is missing"):
        cs.convert(folder, dequantize=True)
