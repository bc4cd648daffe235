"""Tensors are begun before the last blocks of the tensor before them are written: with the same results and errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import adding_lora, compute, compute_steps
from ckptsurgeon.planning.plan.step import Step

from ..helpers.adapters import peft_folder

KEYS = ("a", "b", "c")


def three(rows: int = 1500) -> dict[str, torch.Tensor]:
    """Three tensors, each of which is computed in several blocks."""
    made = {key: torch.randn(rows, 700, generator=torch.Generator().manual_seed(ord(key))) for key in KEYS}
    save_file(made, "model.safetensors")
    return made


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "THREADS", 2)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens, in order: the beginning and the end of each tensor."""
    found: list[str] = []
    begun, finished = compute_steps._begun, compute_steps._finished

    def beginning(run: Any, step: Step, *others: Any) -> Any:
        found.append(f"begin {step.key[0]}")
        return begun(run, step, *others)

    def finishing(run: Any, computing: Any) -> None:
        found.extend([f"end {computing.step.key[0]}"] if computing is not None else [])
        finished(run, computing)

    monkeypatch.setattr(compute_steps, "_begun", beginning)
    monkeypatch.setattr(compute_steps, "_finished", finishing)
    return found


def test_a_tensor_is_begun_before_the_one_before_it_is_written(events: list[str]) -> None:
    made = three()
    cs.apply(cs.convert("model.safetensors", dtype="bf16"), "out.safetensors")
    assert events == ["begin a", "begin b", "end a", "begin c", "end b", "end c"]
    assert all(torch.equal(tensor, made[key].bfloat16()) for key, tensor in load_file("out.safetensors").items())


@pytest.mark.costly
@pytest.mark.parametrize(("memory", "order"), [("1GB", "begin b, end a"), ("64MB", "end a, begin b")])
def test_two_adapters_are_in_memory_at_once_only_if_both_fit(memory: str, order: str, events: list[str]) -> None:
    save_file({f"{key}.weight": tensor.bfloat16() for key, tensor in three().items()}, "model.safetensors")
    factors = {f"{key}.lora_A.weight": torch.randn(256, 700) for key in KEYS}
    factors |= {f"{key}.lora_B.weight": torch.randn(1500, 256) for key in KEYS}
    peft_folder("adapter", factors, r=256, lora_alpha=256)
    cs.apply(cs.lora_merge("model.safetensors", "adapter", memory=memory), "out.safetensors")
    assert order in ", ".join(events)


@pytest.mark.costly
@pytest.mark.parametrize("bad", KEYS)
def test_the_error_of_the_first_tensor_is_the_one_that_is_raised(bad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    three()
    real = compute_steps.blockwise

    def failing(step: Step, *others: Any) -> Any:
        if step.key > bad:
            raise cs.PlanError(f"{step.key} cannot be begun")
        made = real(step, *others)

        def block(*args: Any) -> Any:
            if step.key == bad:
                raise cs.PlanError(f"{step.key} cannot be computed")
            return made(*args)

        return block

    monkeypatch.setattr(compute_steps, "blockwise", failing)
    with pytest.raises(cs.PlanError, match=f"{bad} cannot be computed"):
        cs.apply(cs.convert("model.safetensors", dtype="bf16"), "out.safetensors")


def same_bits(dtype: torch.dtype, alpha: int, largest: float, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether an adapter gives the same bits if its factors are always widened; ``largest`` is one of its numbers."""
    torch.manual_seed(0)
    save_file({"up.weight": torch.randn(256, 512).to(dtype)}, "model.safetensors")
    right, left = torch.randn(4, 512), torch.randn(256, 4)
    left[3, 1] = largest
    right[1] /= max(largest, 1.0)
    peft_folder("adapter", {"up.lora_A.weight": right, "up.lora_B.weight": left}, r=4, lora_alpha=alpha)
    cs.apply(cs.lora_merge("model.safetensors", "adapter"), "single.safetensors")
    monkeypatch.setattr(adding_lora, "_stays_single", lambda *_: False)
    cs.apply(cs.lora_merge("model.safetensors", "adapter"), "double.safetensors")
    found, wanted = (load_file(f"{name}.safetensors")["up.weight"] for name in ("single", "double"))
    return torch.equal(found.view(torch.int16), wanted.view(torch.int16))


@pytest.mark.parametrize(("alpha", "largest"), [(8, 1.0), (4, 1.0), (3, 1.0), (8, 1e-38), (8, np.nan)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_in_single_precision_give_the_same_bits(
    dtype: torch.dtype, alpha: int, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the scale is no power of two, as 3/4, they are widened."""
    assert same_bits(dtype, alpha, largest, monkeypatch)


def test_factors_that_become_too_large_in_single_precision_are_widened(monkeypatch: pytest.MonkeyPatch) -> None:
    assert same_bits(torch.bfloat16, 2**22, 1e33, monkeypatch)
