"""Adapters as policies of a transplant: planned, written, verified, refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

import ckptsurgeon as cs

Run = Callable[..., Any]


def vit(**tensors: torch.Tensor) -> None:
    torch.save(tensors, "src.pth")


def wanting(**shapes: list[int]) -> None:
    rows = [f"    {key}: {{shape: {shape}, init: zeros}}" for key, shape in shapes.items()]
    Path("dst.yaml").write_text("model:\n  tensors:\n" + "\n".join(rows) + "\n")


CASES: dict[str, tuple[list[int], list[int], str]] = {
    "positions-2d": ([1, 17, 6], [1, 50, 6], "positions-2d:prefix=1,from=4x4,to=7x7,method=bicubic,antialias=yes"),
    "positions-2d:from=2x8,to=3x8": (
        [17, 6], [25, 6], "positions-2d:prefix=1,from=2x8,to=3x8,method=bicubic,antialias=yes",
    ),
    "positions-2d:prefix=5": ([1, 9, 6], [1, 14, 6], "positions-2d:prefix=5,from=2x2,to=3x3,method=bicubic,antialias=yes"),
    "positions-1d:prefix=2": ([12, 6], [22, 6], "positions-1d:prefix=2"),
    "patch:antialias=no": ([4, 3, 8, 8], [4, 3, 6, 6], "patch:method=bicubic,antialias=no"),
    "channels": ([4, 3, 5, 5], [4, 1, 5, 5], "channels"),
    "center": ([4, 3, 3, 3], [4, 3, 7, 5], "center"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("policy", CASES)
def test_an_adapted_tensor_verifies_bit_for_bit(policy: str, dtype: str) -> None:
    have, want, spelled = CASES[policy]
    vit(a=torch.randn(have).to(getattr(torch, dtype)), b=torch.ones(2))
    wanting(a=want, b=[2])
    plan = cs.transplant("src.pth", "dst.yaml", on_mismatch={"a": policy}, dtype="keep")
    assert plan.counts == {"copied": 1, "resized": 1}
    assert plan.steps[0].policy == spelled
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    assert cs.Plan.from_json(plan.to_json()) == plan
    cs.apply(plan, "out.safetensors")
    cs.apply("plan.json", "again.safetensors")
    assert Path("out.safetensors").read_bytes() == Path("again.safetensors").read_bytes()
    report = cs.verify("out.safetensors")
    assert (report.compared, report.failed) == (2, ())
    cs.transplant("src.pth", "dst.yaml", on_mismatch={"a": spelled})


def test_another_argument_than_was_planned_fails_the_verification() -> None:
    vit(a=torch.randn(1, 17, 6))
    wanting(a=[1, 50, 6])
    plan = cs.transplant("src.pth", "dst.yaml", on_mismatch="positions-2d")
    cs.apply(plan, "out.pth")
    other = cs.transplant("src.pth", "dst.yaml", on_mismatch="positions-2d:antialias=no")
    failed = cs.verify("out.pth", plan=other).failed
    assert [failure.why for failure in failed][-1].startswith("was made by positions-2d")


def test_positions_are_computed_in_double_precision_and_rounded_once() -> None:
    vit(a=torch.randn(1, 17, 6))
    wanting(a=[1, 50, 6])
    cs.apply(cs.transplant("src.pth", "dst.yaml", on_mismatch="positions-2d"), "out.pth")
    values = cs.open_checkpoint("out.pth").tensor("a").double()
    table = cs.open_checkpoint("src.pth").tensor("a").double()
    grid = functional.interpolate(
        table[:, 1:].reshape(1, 4, 4, 6).permute(0, 3, 1, 2), size=(7, 7), mode="bicubic", antialias=True
    )
    wanted = grid.permute(0, 2, 3, 1).reshape(1, 49, 6)
    assert torch.equal(values[:, 1:], wanted.float().double())


@pytest.mark.costly
@pytest.mark.parametrize("policy", ["positions-2d:antialias=no", "patch"])
def test_a_large_tensor_is_adapted_block_by_block(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have, want = ([1, 1 + 16 * 16, 64], [1, 1 + 24 * 24, 64]) if "pos" in policy else ([8, 3, 16, 16], [8, 3, 12, 20])
    vit(a=torch.randn(have))
    wanting(a=want)
    cs.apply(cs.transplant("src.pth", "dst.yaml", on_mismatch=policy), "whole.safetensors")
    monkeypatch.setattr("ckptsurgeon.engine.compute.one_block.BLOCK_BYTES", 4000)
    cs.apply(cs.transplant("src.pth", "dst.yaml", on_mismatch=policy), "blocks.safetensors")
    assert Path("whole.safetensors").read_bytes() == Path("blocks.safetensors").read_bytes()


def test_a_live_module_takes_adapted_tensors() -> None:
    vit(weight=torch.randn(4, 3, 3, 3), bias=torch.zeros(4))
    net = torch.nn.Conv2d(1, 4, 3)
    report = cs.load_into(net, "src.pth", on_mismatch="channels")
    assert report.counts == {"copied": 1, "resized": 1}
    source = cs.open_checkpoint("src.pth").tensor("weight")
    torch.testing.assert_close(net.weight.detach(), source.sum(1, keepdim=True))


def test_integers_in_the_middle_of_a_kernel_are_moved() -> None:
    vit(a=torch.arange(9).reshape(1, 1, 3, 3))
    Path("dst.yaml").write_text("model: {tensors: {a: {shape: [1, 1, 5, 5], dtype: int64}}}")
    cs.apply(cs.transplant("src.pth", "dst.yaml", on_mismatch="center"), "out.safetensors")
    made = cs.open_checkpoint("out.safetensors").tensor("a")
    assert torch.equal(made, functional.pad(torch.arange(9).reshape(1, 1, 3, 3), (1, 1, 1, 1)))


def test_8_bit_floats_are_interpolated_as_the_numbers_they_are() -> None:
    vit(a=torch.tensor([1.0, 2.0, 4.0]).to(torch.float8_e4m3fn))
    wanting(a=[6])
    cs.apply(cs.transplant("src.pth", "dst.yaml", on_mismatch="interpolate"), "out.safetensors")
    wanted = functional.interpolate(torch.tensor([[[1.0, 2.0, 4.0]]]), size=6, mode="linear")[0, 0]
    assert torch.equal(cs.open_checkpoint("out.safetensors").tensor("a"), wanted)


REFUSED: dict[str, tuple[list[int], list[int], str]] = {
    "positions-2d": ([1, 18, 6], [1, 50, 6], "not two squares, even without 1 or 2 prefix tokens"),
    "positions-2d:prefix=2": ([1, 17, 6], [1, 50, 6], "a square and a square after 2 prefix tokens"),
    "positions-2d:from=4x5": ([1, 17, 6], [1, 50, 6], "are not 4x5 and a square"),
    "positions-2d:method=bicubic": ([1, 9, 6], [1, 14, 6], "prefix=5 would fit"),
    "positions-1d": ([1, 17, 6], [1, 50, 8], "the width is 6 in the source and 8 in the destination"),
    "positions-1d:prefix=17": ([17, 6], [50, 6], "none after the 17 prefix tokens"),
    "patch": ([4, 3, 8, 8], [4, 1, 6, 6], "the channels differ"),
    "channels": ([4, 5, 3, 3], [4, 7, 3, 3], "1 or 3 input channels; 5 cannot become 7"),
    "center": ([4, 3, 3, 3], [4, 3, 4, 3], "3 cannot be centred in 4"),
    "interpolate": ([2, 2, 2], [3, 3, 3], "3 dimensions differ"),
    "slice": ([2, 2], [3, 2], "the source is smaller in dimension 0"),
    "pad": ([3, 2], [2, 2], "the source is larger in dimension 0"),
    "overlap": ([3, 2], [2], "the source has 2 dimensions, the destination 1"),
}


@pytest.mark.parametrize("policy", REFUSED)
def test_a_policy_that_does_not_fit_says_why(policy: str, ckpt: Run) -> None:
    have, want, why = REFUSED[policy]
    vit(a=torch.randn(have))
    wanting(a=want)
    done = ckpt("transplant", "src.pth", "dst.yaml", "--on-mismatch", f"a={policy}")
    said = " ".join(done.err.split())
    assert done.code == 4
    assert f"--on-mismatch a={policy} does not fit: " in said
    assert why in said
    assert not list(Path().glob("dst.init*"))


@pytest.mark.parametrize(
    ("dtype", "why"),
    [("int64", "real floating-point numbers"), ("complex64", "real floating"), ("bool", "real floating")],
)
def test_what_is_no_real_number_is_not_resampled(dtype: str, why: str) -> None:
    vit(a=torch.ones(1, 17, 6).to(getattr(torch, dtype)))
    wanting(a=[1, 50, 6])
    with pytest.raises(cs.PlanError, match=why):
        cs.transplant("src.pth", "dst.yaml", on_mismatch="positions-2d", dtype="keep")


@pytest.mark.parametrize("policy", ["positions-1d", "positions-2d", "patch", "interpolate"])
def test_a_dimension_of_zero_is_not_resampled(policy: str) -> None:
    vit(a=torch.ones(4, 3, 0, 0) if policy == "patch" else torch.ones(1, 0, 6))
    wanting(a=[4, 3, 2, 2] if policy == "patch" else [1, 4, 6])
    with pytest.raises(cs.PlanError, match="a dimension of 0"):
        cs.transplant("src.pth", "dst.yaml", on_mismatch=policy)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("a=position-2d", "Did you mean positions-2d"),
        ("a=postions-2d:prefix=1", "Did you mean positions-2d"),
        ("a=positions-2d:prefx=1", "Did you mean prefix?"),
        ("a=positions-2d:prefix=one", "prefix of the policy positions-2d is 'one', not a whole number"),
        ("a=positions-2d:to=14", "not a grid of HEIGHTxWIDTH, as in 14x14"),
        ("a=positions-2d:method=nearest", "not bicubic or bilinear"),
        ("a=positions-2d:prefix=1,prefix=2", "prefix twice"),
        ("a=positions-2d,to=12x20", "Write a colon before the arguments: positions-2d:to=12x20"),
        ("a=pad(parts=2)", "Write a colon before the arguments: pad:parts=2."),
        ("a=positions-2d:", "has no argument ''"),
        ("a=slice:prefix=1", "has no arguments"),
        ("a=", "'' is not a policy"),
        ("a:init", "'a' is not a policy. Did you mean a=init?"),
        ("a:b:pad", "Did you mean a:b=pad?"),
        ("a:positions-2d:prefix=1,to=2x2", "Did you mean a=positions-2d:prefix=1,to=2x2?"),
        ("**.a:inti", "Use one of error, init"),
        ("=positions-2d", "--on-mismatch is empty"),
        ("nothing", "Use one of error, init"),
    ],
)
def test_a_policy_that_cannot_be_understood_is_named(policy: str, said: str, ckpt: Run) -> None:
    vit(a=torch.ones(2))
    done = ckpt("transplant", "src.pth", "src.pth", "--on-mismatch", policy, "-o", "out.pth")
    assert done.code == 2
    assert said in " ".join(done.err.split())


def test_arguments_of_a_policy_hold_equals_signs_and_so_may_patterns() -> None:
    torch.save({"a=b": torch.ones(1, 17, 2)}, "src.pth")
    Path("dst.yaml").write_text("model: {tensors: {a=b: {shape: [1, 10, 2]}}}")
    plan = cs.transplant("src.pth", "dst.yaml", on_mismatch="a=b=positions-2d:prefix=1,method=bilinear")
    assert plan.steps[0].policy == "positions-2d:prefix=1,from=4x4,to=3x3,method=bilinear,antialias=yes"


@pytest.mark.parametrize(
    "said", ["{a: 'positions-2d:prefix=1'}", "['a=positions-2d:prefix=1']", "positions-2d:prefix=1"]
)
def test_a_recipe_takes_policies_with_arguments(said: str, ckpt: Run) -> None:
    vit(a=torch.randn(1, 17, 6))
    wanting(a=[1, 50, 6])
    recipe = f"source: src.pth\ndestination: dst.yaml\non_mismatch: {said}\noutput: out.pth\nassert: {{a: resized}}\n"
    Path("recipe.yaml").write_text(recipe)
    assert ckpt("apply", "recipe.yaml").code == 0
    assert ckpt("verify", "out.pth").code == 0


def test_a_module_may_be_called_as_a_policy_is(ckpt: Run) -> None:
    vit(**{"patch.weight": torch.randn(2, 3, 4, 4)})
    wanting(**{"patch.weight": [2, 3, 6, 6]})
    for policy in ("patch=patch", "patch=patch:method=bilinear", "patch:antialias=no", "patch"):
        assert ckpt("transplant", "src.pth", "dst.yaml", "--on-mismatch", policy, "-n").code == 0


def test_the_policy_of_an_edited_plan_must_fit() -> None:
    vit(a=torch.randn(1, 17, 6))
    wanting(a=[1, 50, 6])
    data = cs.transplant("src.pth", "dst.yaml", on_mismatch="positions-2d").to_json()
    for policy in ("positions-2d:prefix=2", "patch", "slice", "", "nonsense"):
        data["steps"][0]["policy"] = policy
        Path("plan.json").write_text(json.dumps(data))
        with pytest.raises(cs.CheckpointError) as caught:
            cs.apply("plan.json", "out.safetensors")
        assert caught.value.exit_code in (2, 4)
        assert not Path("out.safetensors").exists()


def test_the_error_of_a_mismatch_names_the_adapters_that_fit() -> None:
    vit(a=torch.randn(4, 3, 7, 7))
    wanting(a=[4, 1, 7, 7])
    with pytest.raises(cs.PlanError) as caught:
        cs.transplant("src.pth", "dst.yaml")
    assert "slice, overlap, interpolate, channels" in str(caught.value.hint)
