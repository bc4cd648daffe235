"""The table of a plan: its figures never flatter, and it never grows long."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.planning.plan.coded_part import CodedPart
from ckptsurgeon.planning.plan.files import PlanSource, PlanTarget
from ckptsurgeon.planning.plan.plan import Plan
from ckptsurgeon.planning.plan.step import Step
from ckptsurgeon.render.columns import Hanging
from ckptsurgeon.render.plan import _bar, plan_lines, plan_view


def copied(key: str, size: int = 1) -> Step:
    return Step(key, "copy", "float32", (size,), 0, key, "float32", (size,))


def drawn(key: str, size: int = 1) -> Step:
    return Step(key, "init", "float32", (size,), reason="missing")


def plan(*steps: Step) -> Plan:
    return Plan("transplant", (), PlanTarget("tensors", "dst.yaml", "dst.yaml"), steps)


def shown(*steps: Step, width: int = 100) -> list[str]:
    text = io.StringIO()
    Console(file=text, width=width, highlight=False).print(plan_view(plan(*steps)))
    return text.getvalue().splitlines()


@pytest.mark.parametrize(
    ("loaded", "fresh", "says"),
    [
        (1, 0, "############ 100 %"),
        (999, 1, "###########. >99 %"),
        (9949, 51, "###########.  99 %"),
        (1, 999, "#........... <1 %"),
        (0, 1, "............   0 %"),
        (1, 1, "######......  50 %"),
    ],
)
def test_nearly_all_is_not_all_and_nearly_nothing_not_nothing(loaded: int, fresh: int, says: str) -> None:
    steps = [*([copied("a.w", loaded)] if loaded else []), *([drawn("a.v", fresh)] if fresh else [])]
    lines = shown(*steps, copied("b", 1))
    row = next(line for line in lines if line.split()[0].startswith("a"))
    assert " ".join(says.split()) in " ".join(row.split())


def test_a_module_that_is_only_tied_says_to_what() -> None:
    lines = shown(copied("model.embed.w", 4), replace(copied("head.w", 4), tied_to="model.embed.w"))
    rows = {line.split()[0]: line for line in lines[1:]}
    assert rows["head"].endswith("  tied to model.embed.w")
    assert "tied" not in rows["model"]
    assert "100 %  of 4 values" in rows["total"]


def test_a_resized_weight_that_is_stored_as_codes_has_its_own_shape() -> None:
    """Its codes and scales have other shapes, and are not what was resized."""
    weight = Step("w", "interpolate", "float32", (256, 512), 0, "w", "float32", (256, 384), policy="interpolate")
    parts = [
        replace(weight, key=key, dtype=dtype, shape=shape,
                coded=CodedPart("w", "float32", (256, 512), "gptq", role, (1, 128), "float16"))
        for key, dtype, shape, role in (("q", "int32", (64, 256), "codes"), ("s", "float16", (4, 256), "scale"))
    ]  # fmt: skip
    said = " ".join(" ".join(shown(*parts)).split())
    assert said.count("interpolate (256, 384) to (256, 512)") == said.count("interpolate") == 2


def coded(key: str, dtype: str, shape: tuple[int, ...], role: str, **more: Any) -> Step:
    part = CodedPart("w", "float32", (256, 512), "gptq", role, (1, 128), "float16")
    return Step(key, "copy", dtype, shape, 0, "w", "float32", (256, 512), coded=part, **more)


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        ([Step("w", "copy", "q8_0", (64, 272), 0, "w", "q8_0", (64, 272))], "16.4 k"),  # 34 bytes for 32 numbers
        ([Step("w", "copy", "q4_k", (64, 144), 0, "w", "float32", (64, 256), operation="quantize")], "16.4 k"),
        ([Step("w", "copy", "float4_e2m1fn_x2", (8, 8), 0, "w", "float4_e2m1fn_x2", (8, 8))], "128"),
        ([coded("q", "int32", (64, 256), "codes"), coded("s", "float16", (4, 256), "scale")], "131.1 k"),
        ([copied("w", 34)], "34"),
    ],
)
def test_values_are_counted_as_numbers_not_as_bytes(steps: list[Step], values: str) -> None:
    assert shown(*steps)[-1].endswith(f"100 %  of {values} values")


def test_packed_codes_that_are_copied_count_as_the_values_that_they_decode_to() -> None:
    """A configuration is needed for their number of bits, which a plan does not have, but its open sources do."""
    packed = {
        "a.weight_packed": torch.zeros(16, 4, dtype=torch.int32), "a.weight_scale": torch.ones(16, 1),
        "a.weight_shape": torch.tensor([16, 32]), "b.weight": torch.ones(8),
    }  # fmt: skip
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    settings = {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }  # fmt: skip
    Path("m").mkdir()
    save_file(packed, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
    text = io.StringIO()
    Console(file=text, width=100).print(plan_view(cs.rename("m", map="a=c")))
    assert text.getvalue().splitlines()[-1].endswith("100 %  of 520 values")


def test_the_part_of_a_padded_weight_is_that_of_its_numbers() -> None:
    codes = replace(coded("q", "int32", (64, 256), "codes"), op="pad", policy="pad", source_shape=(128, 512))
    assert " 50 %  of 131.1 k values" in shown(codes)[-1]


@pytest.mark.parametrize("width", [80, 120])
def test_more_numbered_modules_than_fit_are_one_row(width: int) -> None:
    lines = shown(*(copied(f"layers.{i}.w") for i in range(17)), drawn("layers.17.w"), width=width)
    assert [line.split()[0] for line in lines[1:]] == ["layers.{0..17}", "total"]
    assert lines[1].split()[1:3] == ["17", "1"]


def test_as_many_as_fit_have_a_row_each() -> None:
    lines = shown(*(copied(f"layers.{i}.w") for i in range(16)))
    assert [line.split()[0] for line in lines[1:]] == [*(f"layers.{i}" for i in range(16)), "total"]


def test_numbered_modules_are_joined_within_their_own_module() -> None:
    blocks = [f"net.{kind}.{i}" for kind in ("conv", "norm") for i in range(9)]
    lines = shown(*(copied(f"{block}.w") for block in blocks), drawn("net.norm.9.w"))
    assert [line.split()[:3] for line in lines[1:]] == [
        ["net.conv", "9", "-"],
        ["net.norm", "9", "1"],
        ["total", "18", "1"],
    ]
    top = shown(*(copied(f"{kind}.w") for kind in [*(str(i) for i in range(12)), *"abcdef"]))
    assert [line.split()[0] for line in top[1:]] == ["{0..11}", *"abcdef", "total"]


def test_names_without_numbers_end_in_a_row_for_the_rest() -> None:
    lines = shown(*(copied(f"{chr(97 + i)}.w") for i in range(20)), drawn("z.v"))
    assert len(lines) == 1 + 16 + 1
    assert lines[-2].split()[:5] == ["and", "6", "more", "5", "1"]
    assert lines[-1].split()[:3] == ["total", "20", "1"]


def test_every_step_has_a_line_of_its_own() -> None:
    lines = list(plan_lines(plan(drawn("b.c"), drawn("a"))))
    assert lines == ["  b.c  initialised  -  in no source", "  a    initialised  -  in no source"]


def test_a_source_s_key_is_said_where_it_is_another() -> None:
    sources = (PlanSource("a.safetensors", "a.safetensors", "", (), ()),)
    moved = replace(copied("b.c"), source_key="x")
    lines = list(plan_lines(replace(plan(copied("a"), moved), sources=sources)))
    assert lines == ["  a    copied  a.safetensors", "  b.c  copied  a.safetensors: x"]


@pytest.mark.parametrize("key", ["..", ".", ".a"])
def test_a_row_has_a_name_where_a_key_begins_with_a_dot(key: str) -> None:
    assert [line.split()[0] for line in shown(copied(key), copied("a..b"))[1:]] == [key, "a", "total"]


def test_the_colour_of_a_label_or_bar_ends_with_it() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=60)
    console.print(Hanging(Text("  not used  ", "yellow"), "a.weight, b.weight"))
    console.print(_bar(0.5, "excluded by --exclude x"))
    label, bar = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert label == "\x1b[33m  not used  \x1b[0ma.weight, b.weight"
    assert "\x1b[32m######\x1b[0m" in bar
    assert "\x1b[2m  excluded by --exclude x\x1b[0m" in bar
