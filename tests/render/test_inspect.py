"""The views of an inspection that no file on disk is needed for."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

import ckptsurgeon as cs
from ckptsurgeon.render.inspect import inspection_view, tensor_lines
from ckptsurgeon.render.stats import stats_view
from ckptsurgeon.tensors.info import TensorInfo


def printed(view: object, width: int = 80) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(view)
    return text.getvalue().splitlines()


def odd() -> cs.Inspection:
    tensors = {
        "c": torch.ones(3, dtype=torch.complex64),
        "s": torch.ones(3, 3).to_sparse(),
        "f": torch.tensor([1.0, 3.0]),
        "n": torch.tensor([float("nan"), 1.0, float("inf")]),
    }
    torch.save(tensors, "odd.pth")
    return cs.inspect("odd.pth", stats=True)


def test_rows_without_statistics_say_why() -> None:
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in printed(stats_view(odd()))[1:]}
    assert lines["c"] == "- - - - 0 0 0"
    assert lines["s"] == "it is sparse"
    assert lines["f"] == "2 1 1 3 0 0 0"
    assert lines["n"] == "1 0 1 1 0 1 1"


def test_a_dtype_of_bits_is_not_said_to_be_packed() -> None:
    for dtype, why in (
        ("bits16", "its values are not plain numbers"),
        ("float4_e2m1fn_x2", "several values in one byte"),
    ):
        found = replace(odd(), tensors={"w": TensorInfo(dtype, (2,))}, stats={"w": None}, ties={})
        assert any(f"{dtype}: {why}" in line for line in printed(stats_view(found)))


def test_nan_and_inf_have_columns_only_where_there_are_any() -> None:
    torch.save({"f": torch.ones(2)}, "plain.pth")
    assert printed(stats_view(cs.inspect("plain.pth", stats=True)))[0].split() == ["mean", "std", "min", "max", "zeros"]
    assert printed(stats_view(odd()))[0].split()[-2:] == ["nan", "inf"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_keys_under_stats_are_never_broken(width: int) -> None:
    keys = [f"encoder.layers.{i}.self_attn.in_proj_weight" for i in range(3)]
    torch.save({key: torch.randn(4) for key in keys}, "keys.pth")
    lines = printed(stats_view(cs.inspect("keys.pth", stats=True)), width)
    for key in keys:
        assert sum(line.split()[:1] == [key] for line in lines) == 1
    numbers = [line for line in lines[1:-1] if len(line.split()) >= 5]
    assert len({len(line) for line in [lines[0], *numbers]}) == 1


def test_lines_name_the_shard_and_the_tie() -> None:
    weight = torch.ones(4, 4)
    torch.save({"a": weight, "b": weight, "c": torch.ones(2), "d": torch.ones(2)}, "src.pth")
    cs.init_config("src.pth", output="dst.yaml")
    lines = list(tensor_lines(cs.inspect("src.pth")))
    assert [line.split() for line in lines] == [
        ["a", "(4,", "4)", "float32", "64", "B"],
        ["b", "(4,", "4)", "float32", "64", "B", "tied", "to", "a"],
        ["c", "(2)", "float32", "8", "B"],
        ["d", "(2)", "float32", "8", "B"],
    ]
    cs.apply(cs.transplant("src.pth", "dst.yaml"), "folder", max_shard_size="70B")
    assert all("-of-0000" in line for line in tensor_lines(cs.inspect("folder")))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_what_lies_beside_the_tensors_hangs(width: int) -> None:
    torch.save({"model": {"w": torch.ones(2)}, **{f"some_other_entry_{i}": i for i in range(8)}}, "best.pth")
    lines = printed(inspection_view(cs.inspect("best.pth")), width)
    begin = next(i for i, line in enumerate(lines) if line.startswith("also here  "))
    below = lines[begin + 1 : lines.index("")]
    assert below
    assert all(line.startswith(" " * len("also here  ")) for line in below)
    assert all(line == line.rstrip() and len(line) <= width for line in lines)


def test_stats_end_in_what_they_come_to(ckpt: Any) -> None:
    weight = torch.tensor([0.0, 1.0, float("nan"), float("-inf"), 0.0])
    torch.save({"a": weight, "tied": weight, "b": torch.zeros(3), "c": torch.ones(3).to_sparse()}, "a.pth")
    done = ckpt("inspect", "a.pth", "--stats")
    assert done.out.splitlines()[-2:] == [
        "  values: 0 to 1", "  2 tensors of 8 elements, 1 NaN, 1 Inf, 5 zeros, 1 not measured  in a",
    ]  # fmt: skip
    assert done.code == 1
    found = json.loads(ckpt("inspect", "a.pth", "--stats", "--json").out)["summary"]
    assert found == {
        "measured": 2, "decoded": 0, "not_measured": 1, "elements": 8, "nan": 1, "inf": 1, "zeros": 5, "unsound": ["a"],
    }  # fmt: skip
    assert json.loads(ckpt("inspect", "a.pth", "--json").out)["summary"] is None


def test_stats_count_complex_numbers_that_are_not_finite(ckpt: Any) -> None:
    numbers = torch.complex(torch.tensor([float("nan"), 1, 0, 0]), torch.tensor([1, float("inf"), 0, 1.0]))
    for dtype in (torch.complex32, torch.complex64, torch.complex128):
        torch.save({"a": numbers.to(dtype), "b": torch.ones(2)}, "a.pth")
        done = ckpt("inspect", "a.pth", "--stats")
        assert done.code == 1
        assert done.out.splitlines()[-1] == "  2 tensors of 6 elements, 1 NaN, 1 Inf, 1 zeros  in a"
        torch.save({"a": numbers.to(dtype)[2:]}, "a.pth")
        assert ckpt("inspect", "a.pth", "--stats").code == 0


def test_stats_of_sound_values_end_well_and_excluded_keys_do_not_count(ckpt: Any) -> None:
    torch.save({"a": torch.full((2,), float("nan")), "b": torch.ones(3)}, "a.pth")
    assert ckpt("inspect", "a.pth", "--stats", "--exclude", "a").code == 0
    assert ckpt("inspect", "a.pth", "--stats", "--include", "a").code == 1
    assert ckpt("inspect", "a.pth").code == 0
    assert ckpt("inspect", "a.pth", "--exclude", "c").code == 2
