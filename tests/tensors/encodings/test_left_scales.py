"""Plain weights with the scales of codes beside them: said by every command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.zoo import BY_NAME, IN, OUT
from .test_agreement import VERBS
from .test_missing_parts import THREE, State
from .test_whole_set import PACK, folder_of, said

PLAIN = torch.randn(OUT, IN).bfloat16()
GROUPS = {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}}


def plain(layers: int) -> Callable[[State], object]:
    """Put plain weights in place of codes and leave their scales."""
    codes = (".qweight", ".weight_packed", ".weight", "_blocks")

    def edit(state: State) -> None:
        for stem in THREE[:layers]:
            end = next(end for end in codes if f"{stem}{end}" in state)
            del state[f"{stem}{end}"]
            state[f"{stem}.weight" if end[0] == "." else stem] = PLAIN

    return edit


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(
    ("name", "part", "more"),
    [
        ("fp8-block", "weight_scale_inv", {}), ("gptq", "qzeros, scales", {}), ("awq", "qzeros, scales", {}),
        ("mlx", "scales", {}), ("mxfp4", "scales", {}), ("bnb-int8", "SCB", {}), ("bnb-nf4", "absmax", {}),
        ("int4-packed", "weight_scale", PACK), ("fp8-channel", "weight_scale", {**GROUPS, "quantization_status": "compressed"}),
    ],
)  # fmt: skip
def test_plain_weights_with_scales_of_codes_beside_them_are_said(
    name: str, part: str, more: Mapping[str, Any], layers: int, tmp_path: Path
) -> None:
    (note,) = said(cs.inspect(folder_of(name, tmp_path, plain(layers), more)))
    start, _, rest = note.partition(", which only ")
    number = "1 weight without quantisation has " if layers == 1 else "3 weights without quantisation have "
    assert start.startswith(number)
    assert sorted(start.removeprefix(number).split(", ")) == part.split(", ")
    assert THREE[0] in rest
    assert ("quant_method" in rest) == (name != "mlx")


@pytest.mark.parametrize(("name", "codes"), [("gptq", "qweight"), ("awq", "qweight"), ("int4-packed", "weight_packed")])
def test_codes_that_were_all_cast_to_floats_are_said(name: str, codes: str, tmp_path: Path) -> None:
    """As a script leaves them that casts each tensor of a state dict."""

    def cast(state: State) -> None:
        state |= {key: tensor.bfloat16() for key, tensor in state.items()}

    folder = folder_of(name, tmp_path, cast)
    for found in (cs.inspect(folder), cs.convert(folder), cs.rename(folder, map=["model=decoder"])):
        (note,) = (one for one in found.notes if "numbers in place of codes" in one)
        assert f".{codes} is bfloat16" in note


@pytest.mark.parametrize(
    ("name", "part", "said_of_it", "status"),
    [
        ("nvfp4-packed", "weight_scale_2", "weight_scale_2, which nvfp4 does not use", "FAIL"),
        ("nvfp4-modelopt", "weight_global_scale", "weight_global_scale, which nvfp4 does not use", "FAIL"),
        ("fp8-tensor", "weight_scale_2", "weight_scale_2, which fp8 does not use", "FAIL"),
        ("mlx", "weight_scale", "weight_scale, which MLX does not use", "FAIL"),
        ("awq", "g_idx", "g_idx, which AWQ does not use: runtimes ignore this order of the columns", "WARN"),
    ],
)
def test_parts_that_an_encoding_does_not_use_are_said(
    name: str, part: str, said_of_it: str, status: str, tmp_path: Path
) -> None:
    value = torch.arange(IN, dtype=torch.int32) // 32 if part == "g_idx" else torch.ones(1)
    one = BY_NAME[name]
    replace(one, store=lambda g: {**one.store(g), f".{part}": value.clone()}).folder(tmp_path / "m")
    wanted = f"2 quantised tensors have {said_of_it}: "
    assert any(wanted in note for note in cs.convert(tmp_path / "m").notes)
    (found,) = cs.check(tmp_path / "m").row("quantisation").found
    assert wanted in found.what
    assert found.status.value == status


@pytest.mark.parametrize(
    ("name", "part", "dtype", "said_of_it"),
    [
        ("gptq", "qweight", torch.uint8, "g_idx, but the dtypes and shapes of the other parts are those of no known"),
        (
            "nvfp4-modelopt", "weight_scale", torch.bfloat16,
            "weight_scale_2, but the dtypes and shapes of the other parts are those of packed integers",
        ),
    ],
)  # fmt: skip
def test_a_part_in_another_dtype_does_not_make_the_others_unused(
    name: str, part: str, dtype: torch.dtype, said_of_it: str, tmp_path: Path
) -> None:
    def cast(state: State) -> None:
        state |= {key: one.to(dtype) if key.endswith(f".{part}") else one for key, one in state.items()}

    folder = folder_of(name, tmp_path, cast)
    (folder / "config.json").write_text("{}")
    notes = cs.inspect(folder).notes
    assert any(said_of_it in note for note in notes)
    assert not any("does not use" in note for note in notes)


def test_a_transplant_of_plain_weights_beside_scales_says_so(tmp_path: Path) -> None:
    folder = folder_of("fp8-block", tmp_path, plain(3))
    save_file({f"{stem}.weight": PLAIN for stem in THREE[:1]}, tmp_path / "plain.safetensors")
    plan = cs.transplant(tmp_path / "plain.safetensors", folder)
    assert said(plan)
    cs.apply(plan, tmp_path / "out")
    assert said(cs.inspect(tmp_path / "out"))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_so(verb: str, tmp_path: Path) -> None:
    assert said(VERBS[verb](folder_of("fp8-block", tmp_path, plain(3))))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fp8-block", {"modules_to_not_convert": ["up_proj"]}), ("fp8-channel", {**GROUPS, "quantization_status": "frozen"}),
        ("fp8-tensor", {}), ("bitnet", {}),
    ],
)  # fmt: skip
def test_weights_that_may_be_plain_beside_scales_are_not_said(
    name: str, more: Mapping[str, Any], tmp_path: Path
) -> None:
    assert not said(cs.inspect(folder_of(name, tmp_path, plain(3), more)))


def test_scales_of_activations_beside_plain_weights_are_not_said(tmp_path: Path) -> None:
    def edit(state: State) -> None:
        keys = [
            f"model.layers.0.self_attn.{end}" for end in ("k_proj.k_scale", "k_proj.input_scale", "q_proj.output_scale")
        ]
        state |= {key: torch.tensor(1.0) for key in keys} | {"model.layers.0.self_attn.k_proj.weight": PLAIN}

    assert not said(cs.inspect(folder_of("fp8-block", tmp_path, edit)))
