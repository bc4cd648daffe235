"""Merges that torch computes: here on the CPU, with a GPU in tests/api/test_gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.fusionbench_cases import CASES as FUSIONBENCH
from fixtures.mergekit_cases import CASES

from ...helpers.made_statistics import merged_statistics_of, statistics_of
from ...helpers.merge_arrays import METHODS

Run = Callable[..., Any]
NAMES = ("a", "b", "c", "base")


def models(dtype: torch.dtype = torch.float32) -> None:
    torch.manual_seed(0)
    base = {"w": torch.randn(70, 90), "v": torch.randn(90), "n": torch.tensor(3)}
    for name in NAMES:
        state = {key: value + 0.1 * torch.randn(value.shape) if value.ndim else value for key, value in base.items()}
        save_file(
            {key: value.to(dtype) if value.ndim else value for key, value in state.items()}, f"{name}.safetensors"
        )


def on_device(plan: cs.Plan, device: str) -> cs.Plan:
    """The same plan, computed by torch."""
    steps = [
        step if step.merge is None else replace(step, merge=replace(step.merge, device=device)) for step in plan.steps
    ]
    return replace(plan, steps=tuple(steps))


def planned(method: str, device: str = "cpu") -> cs.Plan:
    """A plan of a case of a method's, or of its defaults."""
    case: Any = next((one for one in CASES.values() if one.method == method and len(one.models) > 1), None)
    case = case or next((one for one in (*CASES.values(), *FUSIONBENCH.values()) if one.method == method), None)
    found = [f"{name}.safetensors" for name in (case.models if case else NAMES[:3])]
    needed = "base" if METHODS[method].base == "required" else None
    base = case.base if case else needed
    parameters = dict(case.parameters) if case else {}
    statistics = statistics_of(found) if METHODS[method].statistics else {}
    if METHODS[method].merged_inputs:
        statistics = merged_statistics_of(found)
    if METHODS[method].measures_base:
        statistics = statistics_of([f"{base}.safetensors"])
    return cs.merge(
        found, method=method, base=f"{base}.safetensors" if base else None, parameters=parameters, device=device,
        statistics=statistics,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_torch_computes_what_numpy_does_and_verify_says_how_near(method: str) -> None:
    models()
    plan = planned(method)
    cs.apply(plan, "numpy.safetensors")
    cs.apply(on_device(plan, "cpu"), "torch.safetensors")
    ours, theirs = load_file("numpy.safetensors"), load_file("torch.safetensors")
    for key, value in ours.items():
        assert torch.allclose(theirs[key].double(), value.double(), rtol=1e-5, atol=1e-5 * float(value.abs().max())), (
            key
        )
    found = cs.verify("torch.safetensors")
    assert found.ok, found.failed
    computed = sum(step.merge is not None for step in plan.steps)
    assert (found.near, found.compared) == (computed, len(plan.steps) - computed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_rounded_to_few_bits_may_differ_by_the_last(dtype: torch.dtype) -> None:
    models(dtype)
    cs.apply(on_device(planned("slerp"), "cpu"), "torch.safetensors")
    assert cs.verify("torch.safetensors").ok


def test_a_value_that_is_farther_off_fails(ckpt: Run) -> None:
    models()
    cs.apply(on_device(planned("linear"), "cpu"), "torch.safetensors")
    done = ckpt("verify", "torch.safetensors")
    assert (
        "close to numpy's result 2, within 1e-5 of the largest value: computed by torch, or on another processor"
        in " ".join(done.out.split())
    )
    plan = cs.merge(["a.safetensors", "b.safetensors", "c.safetensors"], method="linear", weights=[1, 1, 1.01])
    cs.apply(on_device(plan, "cpu"), "other.safetensors")
    data = bytearray(Path("other.safetensors").read_bytes())
    at = data.index(load_file("other.safetensors")["w"][3].numpy().tobytes())
    data[at + 2] ^= 0x20
    Path("other.safetensors").write_bytes(data)
    with cs.open_checkpoint("a.safetensors"):
        found = cs.verify("other.safetensors", plan=on_device(plan, "cpu"))
    assert {failure.key for failure in found.failed} == {"w"}


def test_the_device_is_recorded_and_a_plan_for_another_is_refused() -> None:
    models()
    data = on_device(planned("linear"), "cpu").to_json()
    step = next(step for step in data["steps"] if step["key"] == "w")
    assert step["merge"]["device"] == "cpu"
    assert cs.Plan.from_json(data).to_json() == data
    step["merge"]["device"] = "tpu"
    with pytest.raises(cs.ConfigError, match="'tpu' is not a device to compute on"):
        cs.Plan.from_json(data)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_an_error_that_says_so(ckpt: Run) -> None:
    models()
    asked = ("merge", "a.safetensors", "b.safetensors", "-m", "linear", "--weights", "1,1", "--device")
    done = ckpt(*asked, "cuda", "-o", "out.safetensors")
    assert (done.code, done.err) == (2, "error: --device cuda: torch finds no usable GPU. Leave --device out.\n")
    done = ckpt(*asked, "tpu", "-n")
    assert (done.code, done.err) == (2, "error: --device tpu is unknown. Use cpu or cuda.\n")
    plan = on_device(planned("linear"), "cuda")  # made where there is one
    with pytest.raises(cs.ConfigError, match="the plan merges on the device cuda, but torch finds no usable") as caught:
        cs.apply(plan, "out.safetensors")
    assert caught.value.hint == "Make the plan again, on this machine and without --device."
    assert not Path("out.safetensors").exists()


def test_the_same_seed_draws_the_same_masks_with_torch() -> None:
    models()
    plan = cs.merge(
        ["a.safetensors", "b.safetensors"], method="dare_linear", base="base.safetensors", weights=[1, 1], density=0.5,
        seed=7,
    )  # fmt: skip
    cs.apply(plan, "numpy.safetensors")
    cs.apply(on_device(plan, "cpu"), "torch.safetensors")
    ours, theirs = load_file("numpy.safetensors")["w"], load_file("torch.safetensors")["w"]
    assert torch.allclose(ours, theirs, atol=1e-6)
