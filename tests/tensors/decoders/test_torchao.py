"""torchao's tensors in safetensors: the metadata tell their class, and what is written says that they are plain."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inputs.operations import operate
from ckptsurgeon.engine.compute.reading import read_part
from ckptsurgeon.errors import FormatError, PlanError

from ...helpers.pace import in_time, little_memory


def entry(kind: str, **fields: Any) -> str:
    return json.dumps({"_type": kind, "_data": fields, "_tensor_data_names": ["qdata", "scale"]})


def saved(path: Path, entries: dict[str, str], **more: torch.Tensor) -> Path:
    """A file with two layers of int8 in one scale a row, and a bias."""
    state = {"bias": torch.ones(4)}
    for number in (0, 1):
        state[f"{number}._weight_qdata"] = torch.arange(-16, 16, dtype=torch.int8).reshape(4, 8)
        state[f"{number}._weight_scale"] = torch.full((4, 1), 0.5)
    metadata = {**entries, "bias": entry("Tensor"), "tensor_names": json.dumps(["0.weight", "1.weight", "bias"])}
    save_file({**state, **more}, path, metadata)
    return path


BOTH = {f"{number}.weight": entry("Int8Tensor", block_size=[1, 8]) for number in (0, 1)}
WEIGHT = torch.arange(-16, 16).reshape(4, 8) / 2


def test_a_decoded_weight_is_a_plain_tensor_in_the_metadata(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    cs.apply(cs.convert(saved(tmp_path / "a.safetensors", BOTH), dtype="float32", dequantize=True), out)
    found = load_file(out)
    assert found.keys() == {"0.weight", "1.weight", "bias"}
    assert torch.equal(found["0.weight"], WEIGHT)
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert [json.loads(metadata[key])["_type"] for key in found] == ["Tensor"] * 3
    assert cs.verify(out).ok


@pytest.mark.parametrize(
    ("described", "why"),
    [
        ({}, "does not say which torchao class the tensor has"),
        ({"0.weight": "[", "1.weight": "[]"}, "does not say which torchao class the tensor has"),
        (
            {key: entry("Int4TilePackedTo4dTensor") for key in BOTH},
            "Int4TilePackedTo4dTensor stores codes in an order that only a kernel of CUDA can read: the kernel's "
            "output for an identity matrix is the transposed weight",
        ),
        ({key: entry("NewTensor") for key in BOTH}, "no decoder knows torchao's class NewTensor"),
        ({key: entry("Int4Tensor") for key in BOTH}, "the tensor has no zero points"),
        ({key: entry("MXTensor", is_swizzled_scales=True) for key in BOTH}, "the order of a GPU kernel"),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(described: dict[str, str], why: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=rf"0\.weight .* cannot be decoded: .*{why}"):
        cs.convert(saved(tmp_path / "a.safetensors", described), dtype="float32", dequantize=True)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"0._weight_act_pre_scale": torch.ones(8)}, "the inputs of the layer are scaled"),
        ({"0._weight_zero_point": torch.zeros(4, 2, dtype=torch.int8)}, "zero points have a different shape"),
        ({"0._weight_scale": torch.ones(3, 1)}, r"the scales have the shape \[3, 1\]"),
        ({"0._weight_scale": torch.ones(4)}, r"the scales have the shape \[4\]"),
    ],
)
def test_parts_that_do_not_fit_are_refused(more: dict[str, torch.Tensor], why: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=why):
        cs.convert(saved(tmp_path / "a.safetensors", BOTH, **more), dtype="float32", dequantize=True)


def four_bits(scale: tuple[int, ...], zero: tuple[int, ...], codes: torch.Tensor) -> dict[str, torch.Tensor]:
    return {
        "0._weight_qdata": codes,
        "0._weight_scale": torch.ones(scale),
        "0._weight_zero_point": torch.zeros(zero),
    }


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (four_bits((2, 4), (1, 4), torch.zeros(4, 8, dtype=torch.int8)), "a different shape from the scales"),
        (four_bits((4, 2), (4, 2), torch.zeros(4, 8, dtype=torch.int8)), r"the scales have the shape \[4, 2\]"),
        (four_bits((3, 4), (3, 4), torch.zeros(4, 8, dtype=torch.int8)), r"the scales have the shape \[3, 4\]"),
        (four_bits((4,), (4,), torch.zeros(4, 8, dtype=torch.int8)), r"the scales have the shape \[4\]"),
        (four_bits((2, 4), (2, 4), torch.zeros(4, 2, dtype=torch.int32)), "the codes are int32"),
    ],
)
def test_parts_of_4_bits_that_do_not_fit_are_refused(more: dict[str, torch.Tensor], why: str, tmp_path: Path) -> None:
    entries = {**BOTH, "0.weight": entry("Int4Tensor", block_size=[1, 8])}
    with pytest.raises(PlanError, match=why):
        cs.convert(saved(tmp_path / "a.safetensors", entries, **more), dtype="float32", dequantize=True)


@pytest.mark.parametrize("columns", [(0, 96), (5, 40), (31, 33), (95, 96)])
def test_a_part_of_4_bits_is_that_of_the_whole(columns: tuple[int, int]) -> None:
    with safe_open(PICKLED_INT4.with_suffix(".safetensors"), "pt") as file:
        expected = file.get_tensor("expected")
    source = cs.open_checkpoint(PICKLED_INT4)
    made = operate([source], [{"dequantize": "**"}])[0].checkpoint
    found = read_part(source, made[WEIGHT_KEY], ((3, 41), columns))
    assert torch.equal(torch.from_numpy(found), expected[3:41, slice(*columns)])


def test_zero_points_of_4_bits_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    more = four_bits((2, 4), (2, 4), torch.zeros(4, 8, dtype=torch.int8))
    more["0._weight_zero_point"][0, 0] = float("nan")
    path = saved(tmp_path / "a.safetensors", {**BOTH, "0.weight": entry("Int4Tensor")}, **more)
    with pytest.raises(FormatError, match="a zero point of the quantised tensor 0.weight is NaN or infinite"):
        cs.apply(cs.convert(path, dtype="float32", dequantize=True), tmp_path / "out.safetensors")


PICKLED_INT4 = Path(__file__).parent / "recorded" / "torchao-int4.pth"
PICKLED = sorted((Path(__file__).parent / "recorded").glob("torchao-*.pth"))
WEIGHT_KEY = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(params=PICKLED, ids=lambda path: path.stem)
def pickled(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_a_pickled_weight_has_the_values_that_torchao_decodes(pickled: Path, tmp_path: Path) -> None:
    if "swizzled" in pickled.stem:
        with pytest.raises(PlanError, match="the order of a GPU kernel"):
            cs.convert(pickled, dtype="float32", dequantize=True)
        return
    for out in (tmp_path / "out.safetensors", tmp_path / "out.pth"):
        cs.apply(cs.convert(pickled, dtype="float32", dequantize=True), out)
        assert cs.verify(out).ok
    with safe_open(pickled.with_suffix(".safetensors"), "pt") as file:
        expected = file.get_tensor("expected")
    assert torch.equal(load_file(tmp_path / "out.safetensors")[WEIGHT_KEY], expected)
    assert torch.equal(torch.load(tmp_path / "out.pth")[WEIGHT_KEY], expected)


def test_a_pickled_weight_is_shown_as_it_is_meant(pickled: Path) -> None:
    found = cs.inspect(pickled)
    (coded,) = found.codes.tensors
    assert coded.name == WEIGHT_KEY
    assert coded.method.startswith("torchao, ")
    assert coded.shape == (48, 96)
    assert found.parameters == 48 * 96
    bits = found.bits_per_weight(coded)
    assert bits is not None
    assert bits < 10


def test_a_pickled_weight_is_not_copied_as_something_else(pickled: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be copied: it is of the class torchao") as error:
        cs.apply(cs.convert(pickled), tmp_path / "out.pth")
    assert "ckpt convert --dequantize" in error.value.hint


class Wrapper(torch.Tensor):
    """A tensor with others as attributes, as torchao's are."""

    @staticmethod
    def __new__(cls, **attributes: Any) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, (4, 8))
        made.__dict__.update(attributes)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def wrapped(path: Path, monkeypatch: pytest.MonkeyPatch, module: str, **attributes: Any) -> Path:
    """A file with a tensor of the class Int8Tensor of some module."""
    parent, _, _ = module.partition(".")
    kind = type("Int8Tensor", (Wrapper,), {"__module__": module})
    for name in (parent, module):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules[module], "Int8Tensor", kind, raising=False)
    torch.save({"weight": kind(**attributes)}, path)
    return path


FITTING = {"qdata": torch.ones(4, 8, dtype=torch.int8), "scale": torch.full((4, 1), 0.5)}


def test_only_classes_of_torchao_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = wrapped(tmp_path / "a.pth", monkeypatch, "torchao.quantization", **FITTING)
    assert cs.convert(ours, dtype="float32", dequantize=True)
    other = wrapped(tmp_path / "b.pth", monkeypatch, "otherao.quantization", **FITTING)
    assert not cs.inspect(other).codes
    with pytest.raises(FormatError, match=r"it is of the class otherao\.quantization\.Int8Tensor"):
        cs.convert(other, dtype="float32")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"scale": None}, "contains no scale of the tensor, which torchao's class Int8Tensor needs"),
        ({"qdata": "text"}, r"contains no codes \(qdata\) of the tensor, which torchao's class Int8Tensor needs"),
        ({"scale": torch.ones(3, 1)}, r"the scales have the shape \[3, 1\]"),
        ({"zero_point": torch.zeros(4, 2)}, "zero points have a different shape"),
        ({"act_pre_scale": torch.ones(8)}, "the inputs of the layer are scaled"),
        (
            {"qdata": torch.ones(4, 16, dtype=torch.int8)},
            r"a weight of shape \[4, 16\], but the stated shape is \[4, 8\]",
        ),
        ({"qdata": torch.ones(8, 4, dtype=torch.int8).t()}, "transposed"),
    ],
)
def test_pickled_parts_that_do_not_fit_are_refused(
    changed: dict[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = wrapped(tmp_path / "a.pth", monkeypatch, "torchao.quantization", **{**FITTING, **changed})
    with pytest.raises(PlanError, match=why):
        cs.convert(path, dtype="float32", dequantize=True)


def test_two_pickled_weights_are_compared_by_their_values(pickled: Path) -> None:
    if "swizzled" in pickled.stem:
        return
    other = next(one for one in PICKLED if one != pickled and "swizzled" not in one.stem)
    found = cs.diff(pickled, other, values=True)
    assert [one.key for one in found.decoded] == [WEIGHT_KEY]
    same = cs.diff(pickled, pickled, values=True)
    assert (same.identical, same.decoded, same.not_compared) == (1, (), {})


@pytest.mark.long
def test_many_tensors_that_share_many_attributes_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {f"attribute{number}": number for number in range(30_000)}
    first = wrapped(tmp_path / "a.pth", monkeypatch, "torchao.quantization", **FITTING)
    kind = sys.modules["torchao.quantization"].Int8Tensor
    many = {f"{number}.weight": kind() for number in range(3_000)}
    for one in many.values():
        one.__dict__ = shared
    torch.save(many, tmp_path / "many.pth")
    with little_memory(), in_time():
        assert len(cs.inspect(tmp_path / "many.pth").tensors) == 3_000
    assert cs.inspect(first).codes


def test_attributes_of_an_attribute_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped(tmp_path / "a.pth", monkeypatch, "torchao.quantization", **FITTING)
    kind = sys.modules["torchao.quantization"].Int8Tensor
    torch.save({"weight": kind(tensor_impl=kind(**FITTING))}, tmp_path / "nested.pth")
    found = cs.inspect(tmp_path / "nested.pth")
    assert found.nbytes == 4 * 8 + 4 * 4
    with pytest.raises(PlanError, match=r"contains no codes \(qdata\) of the tensor"):
        cs.convert(tmp_path / "nested.pth", dequantize=True)
