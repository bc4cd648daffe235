"""Shapes that are stored as values beside codes are held against the codes: bitsandbytes' states, weight_shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status
from ckptsurgeon.tensors.bitsandbytes_values import VALUES

from ....helpers.four_bits import FOUR_BITS

FILE = "m/model.safetensors"
SOUND: Mapping[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [32, 64]}


def nf4(**changes: Any) -> list[str]:
    """Save two weights (32, 64) as bitsandbytes does, one with another state; return the notes on them."""
    tensors = {}
    for name, fields in (("a", SOUND), ("b", {**SOUND, **changes})):
        state = torch.frombuffer(bytearray(json.dumps(fields).encode()), dtype=torch.uint8)
        tensors |= {
            f"{name}.weight": torch.zeros(1024, 1, dtype=torch.uint8), f"{name}.weight.absmax": torch.ones(32),
            f"{name}.weight.quant_map": torch.tensor(VALUES["nf4"]), f"{name}.weight.quant_state.bitsandbytes__nf4": state,
        }  # fmt: skip
    return said(tensors)


def packed(shape: list[int]) -> list[str]:
    """Save a weight (32, 64) in four bits as compressed-tensors does, with this ``weight_shape``."""
    return said(
        {
            "a.weight_packed": torch.zeros(32, 8, dtype=torch.int32), "a.weight_scale": torch.ones(32, 2),
            "a.weight_shape": torch.tensor(shape),
        }
    )  # fmt: skip


def gptq(zero: int, bits: int = 4, **settings: Any) -> list[str]:
    """Save a weight (32, 64) as GPTQ does, with this zero point everywhere; return the notes on it."""
    word = sum(zero << at for at in range(0, 32, bits))
    zeros = torch.full((2, 32 * bits // 32), word - (1 << 32 if word >> 31 else 0), dtype=torch.int32)
    return said(
        {
            "a.qweight": torch.zeros(64 * bits // 32, 32, dtype=torch.int32), "a.scales": torch.ones(2, 32),
            "a.qzeros": zeros, "a.g_idx": torch.arange(64, dtype=torch.int32) // 32,
        },
        {"quant_method": "gptq", "bits": bits, "group_size": 32, **settings},
    )  # fmt: skip


def said(tensors: dict[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> list[str]:
    Path("m").mkdir()
    save_file(tensors, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps({"quantization_config": settings} if settings else {}))
    named = ("quant_state", "weight_shape", "qzeros")
    plan, seen = cs.convert("m"), cs.inspect("m").notes
    notes = [note.removeprefix("m: ") for note in plan.notes if any(one in note for one in named)]
    assert notes == [note for note in seen if any(one in note for one in named)]
    return notes


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"shape": [32, 32]}, "gives the shape [32, 32], which is 1,024 values, but there are 2,048 codes"),
        ({"blocksize": 128}, "gives a block size of 128, but there are 32 scales for 2,048 codes"),
    ],
)
def test_a_state_of_another_weight_is_said(changes: dict[str, Any], why: str) -> None:
    assert nf4(**changes) == [f"the quant_state of b.weight {why}"]


@pytest.mark.parametrize("field", ["shape", "blocksize"])
def test_a_note_shows_only_a_part_of_a_long_number(field: str) -> None:
    (note,) = nf4(**{field: [10**3900] if field == "shape" else 10**3900})
    assert "…" in note
    assert len(note) < 300


@pytest.mark.parametrize("shape", [[10**3900] * 3, [2**60, 64], [10**3900, 1]])
def test_a_product_that_python_does_not_print_is_too_many_values(shape: list[int]) -> None:
    (note,) = nf4(shape=shape)
    assert "which is too many values, but there are 2,048 codes" in note
    assert len(note) < 300
    assert cs.check("m").row("quantisation").found
    cs.convert("m")
    with pytest.raises(cs.PlanError, match="which is too many values"):
        cs.convert("m", dequantize=True)


@pytest.mark.parametrize(
    ("width", "is_said"), [(True, False), (10**3900, True), (64, False)], ids=["truth", "long", "width"]
)
def test_only_a_number_is_a_width_and_a_long_one_is_cut(width: Any, is_said: bool) -> None:
    layers_of("mlp.up_proj", [32, 64], config={"model_type": "llama", "hidden_size": width})
    notes = [note for note in cs.inspect("m").notes if "weight_shape" in note]
    assert len(notes) == is_said
    assert all(len(note) < 400 for note in notes)


def test_another_block_size_of_quantised_scales_is_said(tmp_path: Path) -> None:
    end = ".weight.quant_state.bitsandbytes__nf4"
    model, path = FOUR_BITS["bnb-nf4-nested"], tmp_path / "m"
    state = json.loads(bytes(model.store(torch.Generator())[end].tolist())) | {"nested_blocksize": 16}
    said = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    replace(model, store=lambda g: {**model.store(g), end: said.clone()}).folder(path)
    (found,) = cs.check(path).row("quantisation").found
    assert found.status is Status.FAIL
    assert "gives a block size of 16 for the scales, but the absmax has 128 values, the nested_absmax 1" in found.what


@pytest.mark.parametrize("changes", [{"shape": [32, 32]}, {"blocksize": 128}])
def test_a_state_of_another_weight_fails_the_check(changes: dict[str, Any]) -> None:
    nf4(**changes)
    found = [one for one in cs.check("m").row("quantisation").found if "quant_state" in one.what]
    assert [one.status for one in found] == [Status.FAIL]


@pytest.mark.costly
@pytest.mark.parametrize(("shape", "status"), [([32, 64], "PASS"), ([64, 32], "FAIL")])
def test_a_transposed_state_does_not_fit_the_width_of_the_model(shape: list[int], status: str) -> None:
    nf4(shape=shape)
    tensors = {key.replace("b.", "model.layers.0.mlp.up_proj."): one for key, one in load_file(FILE).items()}
    save_file({key: one for key, one in tensors.items() if not key.startswith("a.")}, FILE)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    config = {"model_type": "llama", "hidden_size": 64, "quantization_config": settings}
    Path("m/config.json").write_text(json.dumps(config))
    why = "gives the shape [64, 32], but it must be [32, 64]: hidden_size is 64 in config.json"
    wanted = [] if status == "PASS" else [f"the quant_state of model.layers.0.mlp.up_proj.weight {why}"]
    notes = [cs.inspect("m").notes, [note.removeprefix("m: ") for note in cs.convert("m", dequantize=True).notes]]
    assert [[note for note in some if "quant_state" in note] for some in notes] == [wanted, wanted]
    assert cs.check("m").row("quantisation").status.value == status


@pytest.mark.parametrize("changes", [{}, {"shape": [2048]}, {"shape": "x"}, {"blocksize": None}, {"shape": [0]}])
def test_a_state_that_fits_or_tells_nothing_gets_no_note(changes: dict[str, Any]) -> None:
    assert nf4(**changes) == []


@pytest.mark.parametrize(
    ("shape", "is_said"), [([32, 64], False), ([32, 62], False), ([64, 32], True), ([16, 64], True), ([32, 512], True)]
)
def test_the_shape_of_packed_weights_fits_the_codes(shape: list[int], is_said: bool) -> None:
    why = f"the weight_shape of a.weight_packed is {shape}, but the codes have the shape [32, 8]"
    assert packed(shape) == ([why] if is_said else [])


def layers_of(module: str, *shapes: list[int], config: Mapping[str, Any]) -> None:
    """Save a layer for each ``weight_shape``, with the codes of a weight (32, 64) in four bits, in the folder m."""
    tensors = {}
    for layer, shape in enumerate(shapes):
        own = {"packed": torch.zeros(32, 8, dtype=torch.int32), "scale": torch.ones(32, 2)}
        own["shape"] = torch.tensor(shape)
        tensors |= {f"model.layers.{layer}.{module}.weight_{end}": one for end, one in own.items()}
    Path("m").mkdir()
    save_file(tensors, FILE)
    Path("m/config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("module", "shapes", "why"),
    [
        ("mlp.up_proj", [[32, 64], [32, 62]], "must be [32, 64]: hidden_size is 64 in config.json"),
        ("mlp.down_proj", [[32, 64], [32, 62], [32, 64]], ""),
        ("mlp.up_proj", [[32, 64], [32, 64]], None),
        ("self_attn.o_proj", [[32, 64], [32, 64]], None),
        ("mlp.down_proj", [[32, 62], [32, 62], [32, 62]], None),
        ("mlp.down_proj", [[32, 64], [32, 62]], None),
    ],
)
def test_a_weight_shape_that_the_codes_allow_may_contradict_the_model(
    module: str, shapes: list[list[int]], why: str | None
) -> None:
    layers_of(module, *shapes, config={"model_type": "llama", "hidden_size": 64 if "up" in module else 32})
    key = f"model.layers.1.{module}.weight_packed"
    but = f"it {why}" if why else "that of 2 similar tensors is [32, 64]"
    wanted = [] if why is None else [f"the weight_shape of {key} is [32, 62], but {but}"]
    notes = [cs.inspect("m").notes, [note.removeprefix("m: ") for note in cs.convert("m").notes]]
    assert [[note for note in some if "weight_shape" in note] for some in notes] == [wanted, wanted]
    found = [one for one in cs.check("m").row("quantisation").found if "no quantization_config" not in one.what]
    assert [one.status for one in found] == [Status.FAIL] * len(wanted)


@pytest.mark.parametrize(
    ("kind", "size", "columns", "is_said"),
    [("llama", 64, 62, True), ("llama", 64, 64, False), ("llama", 62, 62, False), ("my_own", 64, 62, False)],
)
def test_the_columns_of_down_projections_are_the_intermediate_size(
    kind: str, size: int, columns: int, is_said: bool
) -> None:
    shapes = [[32, columns]] * 2
    config = {"model_type": kind, "hidden_size": 32, "intermediate_size": size}
    layers_of("mlp.down_proj", *shapes, config=config)
    notes = [note for note in cs.inspect("m").notes if "weight_shape" in note]
    assert notes == [note.removeprefix("m: ") for note in cs.convert("m").notes if "weight_shape" in note]
    assert len(notes) == is_said
    assert all("is [32, 62], but it must be [32, 64]: intermediate_size is 64 in config.json" in one for one in notes)


@pytest.mark.parametrize(
    ("zero", "bits", "format_", "why"),
    [
        (8, 4, None, "is 8 for each weight, as version 2 of GPTQ stores symmetric weights, but the quantization_config "
         "has no checkpoint_format, so that they are read as version 1"),
        (128, 8, "gptq", "is 128 for each weight, as version 2 of GPTQ stores symmetric weights, but the "
         "quantization_config says gptq (checkpoint_format), so that they are read as version 1"),
        (7, 4, "gptq_v2", "is 7 for each weight, as version 1 of GPTQ stores symmetric weights, but the "
         "quantization_config says gptq_v2 (checkpoint_format), so that they are read as version 2"),
    ],
)  # fmt: skip
def test_zero_points_of_the_other_version_are_said(zero: int, bits: int, format_: str | None, why: str) -> None:
    settings = {"checkpoint_format": format_} if format_ else {}
    assert gptq(zero, bits, sym=True, **settings) == [f"the qzeros of a.qweight {why}"]


@pytest.mark.parametrize(
    ("zero", "settings"),
    [
        (7, {"sym": True}),
        (8, {"sym": True, "checkpoint_format": "gptq_v2"}),
        (8, {"sym": True, "quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"}),
        (8, {"sym": False}),  # a zero point like any other
        (8, {}),
        (5, {"sym": False}),
    ],
)
def test_zero_points_that_fit_or_tell_nothing_get_no_note(zero: int, settings: dict[str, Any]) -> None:
    assert gptq(zero, **settings) == []


def test_zero_points_of_the_other_packing_are_said() -> None:
    (note,) = gptq(7, sym=True, quant_method="auto-round", packing_format="auto_round:gptqmodel")
    assert note.endswith("says auto_round:gptqmodel (packing_format), so that they are read as version 2")


def test_zero_points_of_the_other_version_are_said_of_every_source_that_is_computed_with() -> None:
    settings = {"sym": True, "checkpoint_format": "gptq_v2"}
    gptq(7, **settings)
    Path("m").rename("wrong")
    gptq(7, sym=True)
    notes = list(cs.merge(["m", "wrong"], method="linear", weights=[1, 0], encoding="dequantize").notes)
    assert any(note.startswith("wrong: the qzeros of a.qweight is 7") for note in notes)
    notes += cs.average(["wrong", "m"], encoding="dequantize").notes
    assert not any("has the same weights as" in note for note in notes)  # equal codes stand for other weights
