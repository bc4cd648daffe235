"""Small tensors of quantised weights are compared with each other and with the settings: g_idx, quant_state, quant_map."""

from __future__ import annotations

import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.quantised_values import notes_on_values
from ckptsurgeon.tensors.encoders.bitsandbytes import FP4, NF4
from ckptsurgeon.tensors.info import TensorInfo
from ckptsurgeon.tensors.quantised.encoding import QuantisedTensor, QuantisedTensors
from ckptsurgeon.util.note_kind import NoteKind

from ..helpers.four_bits import FOUR_BITS
from ..helpers.quantised import IN, LAYERS, OUT, Quantised
from ..helpers.zoo import BY_NAME

SHUFFLED = torch.randperm(IN, generator=torch.Generator().manual_seed(0)).to(torch.int32) % 4
ORDER = "g_idx that is not in the order of the groups, although its quantization_config says desc_act false"


def with_part(model: Quantised, end: str, value: torch.Tensor, **settings: Any) -> Quantised:
    return replace(
        model, store=lambda g: {**model.store(g), end: value.clone()}, settings={**model.settings, **settings}
    )


def notes(model: Quantised, folder: Path) -> list[str]:
    """What is noted of numbers of quantised tensors; why one of them cannot be decoded is another note."""
    return [one for one in cs.inspect(model.folder(folder)).notes if re.search(r"\d quantised tensor", one)]


def test_an_order_that_the_settings_deny_is_noted(tmp_path: Path) -> None:
    found = notes(with_part(BY_NAME["gptq"], ".g_idx", SHUFFLED, desc_act=False), tmp_path / "m")
    names = ", ".join(f"{layer}.weight" for layer in sorted(LAYERS))
    why = "so runtimes may ignore g_idx, and compute wrong weights"
    assert found == [f"{tmp_path / 'm'}: 2 quantised tensors have a {ORDER}, {why}: {names}"]
    assert found[0] in cs.convert(tmp_path / "m").notes


@pytest.mark.parametrize(
    ("order", "settings"),
    [
        (SHUFFLED, {"desc_act": True}),
        (SHUFFLED, {}),
        (torch.arange(IN, dtype=torch.int32) // 32, {"desc_act": False}),
        (torch.arange(IN, dtype=torch.int32) // 32, {"desc_act": True, "static_groups": True}),
        (torch.arange(IN, dtype=torch.int32) // 32, {}),
    ],
)
def test_other_orders_are_not(order: torch.Tensor, settings: dict[str, Any], tmp_path: Path) -> None:
    assert notes(with_part(BY_NAME["gptq"], ".g_idx", order, **settings), tmp_path / "m") == []


def test_an_order_that_was_lost_is_noted(tmp_path: Path) -> None:
    in_order = torch.arange(IN, dtype=torch.int32) // 32
    (note,) = notes(with_part(BY_NAME["gptq"], ".g_idx", in_order, desc_act=True), tmp_path / "m")
    said = "have a g_idx in the order of the groups, although its quantization_config says desc_act true, so perhaps"
    assert f"2 quantised tensors {said}" in note


def zeros(word: int) -> torch.Tensor:
    """Zero points whose 32-bit words are all the same."""
    return torch.full_like(BY_NAME["gptq"].store(torch.Generator())[".qzeros"], word - (word >> 31 << 32))


@pytest.mark.parametrize("word", [0x77777777, 0x88888888])
def test_zero_points_in_the_middle_are_symmetric(word: int, tmp_path: Path) -> None:
    assert notes(with_part(BY_NAME["gptq"], ".qzeros", zeros(word), sym=True), tmp_path / "m") == []


@pytest.mark.costly
@pytest.mark.parametrize("word", [0x77777776, 0x33333333, 0])
def test_other_zero_points_are_noted_if_the_settings_say_symmetric(word: int, tmp_path: Path) -> None:
    (found,) = notes(with_part(BY_NAME["gptq"], ".qzeros", zeros(word), sym=True), tmp_path / "m")
    assert "2 quantised tensors have qzeros that are not the middle of the codes" in found
    assert notes(with_part(BY_NAME["gptq"], ".qzeros", zeros(word), sym=False), tmp_path / "n") == []


def with_order(*first: int) -> torch.Tensor:
    return torch.tensor([*first, *(SHUFFLED.tolist()[len(first) :])], dtype=torch.int32)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("order", "status", "said"),
    [
        (
            with_order(7),
            "FAIL",
            "a g_idx with the index of a group that does not exist, so that the weight cannot be decoded",
        ),
        (
            with_order(-1),
            "FAIL",
            "a g_idx with the index of a group that does not exist, so that the weight cannot be decoded",
        ),
        (SHUFFLED * 0, "WARN", "without columns of some groups, so that the scales of these groups are not used"),
        (SHUFFLED.clamp(max=2), "WARN", "without columns of some groups"),
        (with_order(0, 0, 0, 0, 0, 0, 0, 0), "WARN", "some groups have more columns than group_size, and others fewer"),
        (SHUFFLED, "PASS", ""),
    ],
)
def test_an_order_that_the_groups_deny_is_noted(order: torch.Tensor, status: str, said: str, tmp_path: Path) -> None:
    model = with_part(BY_NAME["gptq"], ".g_idx", order, desc_act=True)
    assert [said in one for one in notes(model, tmp_path / "m")] == ([True] if said else [])
    assert cs.check(tmp_path / "m").row("quantisation").status.value == status
    assert any(said in one for one in cs.convert(tmp_path / "m").notes) or not said


@pytest.mark.parametrize("settings", [{"group_size": None}, {"group_size": -1}, {"group_size": 64}])
def test_groups_are_not_counted_if_no_group_size_fits_them(settings: dict[str, Any], tmp_path: Path) -> None:
    order = with_order(0, 0, 0, 0, 0, 0, 0, 0)
    found = notes(with_part(BY_NAME["gptq"], ".g_idx", order, desc_act=True, **settings), tmp_path / "m")
    assert not [note for note in found if "more columns" in note]


@pytest.mark.parametrize("order", [SHUFFLED, with_order(0, 0, 0, 0, 0, 0, 0, 0)])
def test_so_is_an_order_of_compressed_tensors(order: torch.Tensor, tmp_path: Path) -> None:
    settings = BY_NAME["int4-packed"].settings
    weights = {"num_bits": 4, "type": "int", "group_size": 32, "strategy": "group", "actorder": "group"}
    changed = {**settings, "config_groups": {"group_0": {"weights": weights, "targets": ["Linear"]}}}
    found = notes(with_part(BY_NAME["int4-packed"], ".weight_g_idx", order, **changed), tmp_path / "m")
    assert ["more columns than group_size" in note for note in found] == ([] if order is SHUFFLED else [True])


@pytest.mark.parametrize(("sizes", "is_noted"), [((32, 32, 32, 4), False), ((32, 36, 28, 4), True)])
def test_the_last_group_of_sorted_columns_may_be_smaller(sizes: tuple[int, ...], is_noted: bool) -> None:
    info = {
        "x.qweight": TensorInfo("int32", (100 // 4, 64)),
        "x.g_idx": TensorInfo("int32", (100,)),
        "x.scales": TensorInfo("float16", (4, 64)),
    }
    codes = QuantisedTensors((QuantisedTensor("x.weight", "GPTQ", "x.qweight", {key[1:]: key for key in info}, None),))
    order = struct.pack("<100i", *[group for group, size in enumerate(sizes) for _ in range(size)][::-1])
    settings = {"desc_act": True, "group_size": 32}
    assert bool(list(notes_on_values("m", codes, info, settings, lambda _: order, {}))) == is_noted


def test_a_wrong_order_in_a_tensor_that_is_too_large_for_a_note_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All values are measured, so that no order need be read for a note."""
    monkeypatch.setattr("ckptsurgeon.checkpoint.quantised_values.MOST", 0)
    assert notes(with_part(BY_NAME["gptq"], ".g_idx", with_order(7)), tmp_path / "m") == []
    (found,) = cs.check(tmp_path / "m").row("quantisation").found
    assert found.status.value == "FAIL"
    assert "g_idx with the index of a group that does not exist" in found.what


def test_the_usual_order_with_a_smaller_last_group_has_no_note() -> None:
    info = {
        "x.qweight": TensorInfo("int32", (4304 // 8, 64)),
        "x.g_idx": TensorInfo("int32", (4304,)),
        "x.scales": TensorInfo("float16", (34, 64)),
    }
    codes = QuantisedTensors((QuantisedTensor("x.weight", "GPTQ", "x.qweight", {key[1:]: key for key in info}, None),))
    order = struct.pack("<4304i", *(column // 128 for column in range(4304)))
    settings = {"desc_act": False, "group_size": 128}
    assert not list(notes_on_values("m", codes, info, settings, lambda _: order, {}))
    assert list(notes_on_values("m", codes, info, {**settings, "group_size": 64}, lambda _: order, {}))


def state(kind: str, **more: object) -> torch.Tensor:
    said = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [OUT, IN], **more}
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("name", FOUR_BITS)
def test_what_bitsandbytes_stores_has_no_note(name: str, tmp_path: Path) -> None:
    assert notes(FOUR_BITS[name], tmp_path / "m") == []


@pytest.mark.parametrize(
    ("end", "value", "said"),
    [
        (".weight.quant_state.bitsandbytes__nf4", state("fp4"), "a quant_state that says fp4 under a key that says nf4"),
        (
            ".weight.quant_map", torch.from_numpy(FP4.copy()),
            "a quant_map whose values are not those of nf4, the quant_type of its quant_state",
        ),
        (
            ".weight.quant_map", torch.from_numpy(NF4[::-1].copy()),
            "a quant_map whose values are not those of nf4, the quant_type of its quant_state",
        ),
    ],
)  # fmt: skip
def test_what_contradicts_a_state_is_noted(end: str, value: torch.Tensor, said: str, tmp_path: Path) -> None:
    found = notes(with_part(FOUR_BITS["bnb-nf4-sound"], end, value), tmp_path / "m")
    assert [one.partition(": ")[2].partition(": ")[0] for one in found] == [f"2 quantised tensors have {said}"]
    (failure,) = cs.check(tmp_path / "m").row("quantisation").found
    assert (failure.status.value, failure.todo) == ("FAIL", NoteKind.BROKEN_CODES.todo)


@pytest.mark.parametrize(("scale", "is_said"), [(torch.full((1,), 7.0), True), (torch.ones(3), True), (None, False)])
def test_two_scales_that_differ_are_noted(scale: torch.Tensor | None, is_said: bool, tmp_path: Path) -> None:
    """No verb decodes such a weight."""
    model = BY_NAME["fp8-tensor"]
    own = model.store(torch.Generator())[".weight_scale"]
    both = {".weight_scale": own, ".weight_scale_inv": own if scale is None else scale}
    changed = replace(model, store=lambda g: {**model.store(g), **{end: one.clone() for end, one in both.items()}})
    found = [note for note in notes(changed, tmp_path / "m") if "two scales" in note]
    assert bool(found) == is_said
    if is_said:
        assert "2 quantised tensors have two scales (weight_scale and weight_scale_inv), which differ" in found[0]
        assert "FAIL" in [one.status.value for one in cs.check(tmp_path / "m").row("quantisation").found]


def test_settings_of_another_type_are_noted(tmp_path: Path) -> None:
    model = FOUR_BITS["bnb-fp4-sound"]
    found = notes(replace(model, settings={**model.settings, "bnb_4bit_quant_type": "nf4"}), tmp_path / "m")
    assert len(found) == 1
    assert "says bnb_4bit_quant_type nf4, but 2 quantised tensors are fp4" in found[0]
