"""NaN and infinite values in small tensors and in copied bytes: every verb says it, and masks are no fault."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.checkpoint.values import value_notes
from ckptsurgeon.engine.one_output_part import unsound_copy_notes
from ckptsurgeon.tensors.dtypes import has_non_finite, size_of_float

from ..conftest import Result

SAID = "have NaN or infinite values"
DTYPES = {
    **{f"float8_{kind}": getattr(torch, f"float8_{kind}") for kind in ("e4m3fn", "e5m2", "e4m3fnuz", "e5m2fnuz")},
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip
Run = Callable[..., Result]


def network(**others: torch.Tensor) -> dict[str, torch.Tensor]:
    """A few layers, with further tensors."""
    made = {f"layers.{n}.norm.weight": torch.rand(16) for n in range(3)}
    return {**made, **{f"layers.{n}.fc.weight": torch.randn(300, 200) for n in range(3)}, **others}


@pytest.mark.costly
@pytest.mark.parametrize("dtype", DTYPES)
def test_bit_patterns_are_judged_as_torch_judges_them(dtype: str) -> None:
    if dtype.startswith("float8"):
        every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(DTYPES[dtype])
    elif dtype in ("float16", "bfloat16"):
        every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(DTYPES[dtype])
    else:
        largest = torch.finfo(DTYPES[dtype]).max
        every = torch.tensor([0.0, -0.0, 1.5, largest, -largest, math.inf, -math.inf, math.nan], dtype=DTYPES[dtype])
    assert size_of_float(dtype) == every.element_size()
    finite = torch.isfinite(every.double())
    some = ~finite | ~finite.roll(-1) | ~finite.roll(1)  # and the largest finite numbers
    some |= (every.double() == 0) | (torch.arange(len(every)) % (1 if len(every) < 1000 else 7) == 0)
    for at in some.nonzero().flatten().tolist():  # torch 2.6 takes no mask of 8-bit floats
        value = every[at]
        raw = value.reshape(1).view(torch.uint8).numpy().tobytes()
        assert has_non_finite(dtype, raw) == (not torch.isfinite(value.double()))
    assert not has_non_finite("float32", struct.pack("<4f", 1e38, -3e38, 0.0, 2.0))


@pytest.mark.costly
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_verbs_that_read_headers_say_it_of_small_tensors(ckpt: Run, value: float) -> None:
    state = network()
    state["layers.1.norm.weight"][5] = value
    save_file(state, "bad.safetensors")
    save_file(network(), "good.safetensors")
    for words in (
        ["inspect", "bad.safetensors"], ["convert", "bad.safetensors", "-n"], ["diff", "good.safetensors", "bad.safetensors"],
        ["filter", "bad.safetensors", "--exclude", "layers.0", "-n"], ["view", "bad.safetensors", "-o", "page.html"],
        ["transplant", "bad.safetensors", "good.safetensors", "-n"],
    ):  # fmt: skip
        assert "1 small tensor has NaN or infinite values: layers.1.norm.weight" in " ".join(ckpt(*words).err.split())
    assert "infinite" not in ckpt("inspect", "good.safetensors").err


def test_masks_may_be_infinite() -> None:
    mask = torch.triu(torch.full((8, 8), -math.inf), 1)
    save_file(network(attn_mask=mask, **{"h.0.attn.bias": mask.clone()}), "model.safetensors")
    assert not any(SAID in note or "infinite" in note for note in cs.inspect("model.safetensors").notes)
    plan = cs.convert("model.safetensors")
    assert not any("infinite" in note for note in cs.apply(plan, "out.safetensors").notes)


def test_few_of_many_small_tensors_are_read_of_every_role(monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"layers.{n}.{name}": torch.ones(4) for n in range(400) for name in ("norm.weight", "fc.bias")}
    state["head.bias"] = torch.full((4,), math.nan)
    save_file(state, "model.safetensors")
    reads: list[int] = []
    own = has_non_finite
    monkeypatch.setattr(value_notes, "has_non_finite", lambda dtype, raw: reads.append(len(raw)) or own(dtype, raw))
    notes = cs.inspect("model.safetensors").notes
    assert len(reads) <= value_notes.SAMPLED
    said = next(note for note in notes if "NaN" in note)
    assert (
        f"1 small tensor of {len(reads)} that were looked at (801 in all) has NaN or infinite values: head.bias" in said
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_says_it_of_what_it_copies(dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in network(odd=torch.ones(3, dtype=torch.uint8)).items()}
    state["layers.2.fc.weight"][0, 0] = math.nan
    save_file(state, "model.safetensors")
    plan = cs.rename("model.safetensors", map=["layers=l"])
    assert not any("NaN" in note for note in plan.notes)  # a matrix, which no header verb reads
    receipt = cs.apply(plan, "out", max_shard_size="150KB")
    assert any("NaN or infinite values were copied (ckpt check counts them): l.2.fc.weight" in n for n in receipt.notes)
    assert Path("out").is_dir()


def test_a_tensor_that_is_renamed_is_named_once() -> None:
    save_file({"encoder.norm.weight": torch.tensor([1.0, math.nan])}, "model.safetensors")
    receipt = cs.apply(cs.rename("model.safetensors", map=["encoder="]), "out.safetensors")
    assert sum("NaN" in note for note in receipt.notes) == 1


def test_a_key_within_the_key_of_another_tensor_is_said() -> None:
    said = ["1 small tensor has NaN or infinite values: layers.0.fc_weight, and 0.fc"]
    keys = ["fc_weight", "layers.0.fc", "0.fc", "layers.0.fc_weight"]
    (note,) = unsound_copy_notes({key: key for key in keys}, said)
    assert note.endswith(": fc_weight, layers.0.fc")


def test_what_the_plan_has_said_is_not_said_again() -> None:
    state = network()
    state["layers.1.norm.weight"][0] = math.nan
    save_file(state, "model.safetensors")
    plan = cs.convert("model.safetensors")
    assert sum("NaN" in note for note in cs.apply(plan, "out.safetensors").notes) == 1


def test_a_large_tensor_is_looked_at_where_each_task_begins() -> None:
    state = {"first": torch.ones(3, dtype=torch.uint8), "weight": torch.zeros(3 << 20)}
    state["weight"][(2 << 20) - 1] = math.nan  # at the end of a task of 8 MB: not looked at
    save_file(state, "late.safetensors")
    assert not any("NaN" in note for note in cs.apply(cs.convert("late.safetensors"), "a.safetensors").notes)
    state["weight"][(2 << 20) + 100] = math.inf
    save_file(state, "found.safetensors")
    assert any("NaN" in note for note in cs.apply(cs.convert("found.safetensors"), "b.safetensors").notes)
