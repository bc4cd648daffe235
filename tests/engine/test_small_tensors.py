"""Small tensors that are computed as one are what each is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import compute_steps
from ckptsurgeon.engine.compute import compute_steps as together
from ckptsurgeon.methods.merge._registry import merge_methods

SHAPES = ((), (1,), (3,), (2, 5), (0, 4), (7, 1, 2), (200, 100))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64)
ELEMENTWISE = {"linear": {"weights": [0.25, 0.75]}, "median": {}, "task_arithmetic": {}, "ties": {}, "ram": {}}


def model(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {
        f"layers.{i}.{str(dtype)[6:]}.{j}": (torch.randn(shape) * 3).to(dtype)
        for i in range(3)
        for dtype in DTYPES
        for j, shape in enumerate(SHAPES)
    }


def saved(seeds: str, kind: str) -> list[str]:
    for seed in seeds:
        state = model(ord(seed))
        save_file(state, f"{seed}.safetensors") if kind == "safetensors" else torch.save(state, f"{seed}.pth")
    return [f"{seed}.{kind}" for seed in seeds]


def both(plan: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], dict[str, Any], list[cs.Receipt]]:
    """Return what a plan makes of many tensors at once, and of one after the other."""
    receipts = [cs.apply(plan(), "together.safetensors")]
    monkeypatch.setattr(together, "FEW", 0)
    receipts.append(cs.apply(plan(), "alone.safetensors"))
    assert cs.verify("together.safetensors").ok
    return load_file("together.safetensors"), load_file("alone.safetensors"), receipts


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""

    return [*one] == [*other] and all(raw(one[key]) == raw(other[key]) for key in one)


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_cast(kind: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = saved("a", kind)
    one, other, (receipt, alone) = both(lambda: cs.convert(source, dtype=dtype), monkeypatch)
    assert same(one, other)
    assert receipt.nbytes_read == alone.nbytes_read


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("ema", [None, 0.3])
def test_an_average(ema: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = saved("abc", "safetensors")
    one, other, _ = both(lambda: cs.average(sources, ema=ema), monkeypatch)
    assert same(one, other)


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("method", ELEMENTWISE)
def test_a_merge(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in "abc":
        save_file({k: v for k, v in model(ord(seed)).items() if not v.is_complex()}, f"{seed}.safetensors")
    base = {} if merge_methods()[method].base == "none" else {"base": "c.safetensors"}
    more = {**ELEMENTWISE[method], **base}
    one, other, _ = both(lambda: cs.merge(["a.safetensors", "b.safetensors"], method=method, **more), monkeypatch)
    assert same(one, other)


@pytest.mark.long
def test_many_are_computed_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({f"w.{i}": torch.full((3,), float(i)) for i in range(1000)}, "a.safetensors")
    times = []
    found = compute_steps.computed_together
    monkeypatch.setattr(
        compute_steps, "computed_together", lambda group, context: times.append(len(group)) or found(group, context)
    )
    cs.apply(cs.convert("a.safetensors", dtype="float16"), "o.safetensors")
    assert times == [1000]


def test_a_value_that_becomes_infinite_is_said_of_its_tensor() -> None:
    save_file({f"w.{i}": torch.full((3,), 1e5 if i == 2 else 1.0) for i in range(5)}, "a.safetensors")
    receipt = cs.apply(cs.convert("a.safetensors", dtype="float16"), "o.safetensors")
    assert [note for note in receipt.notes if "infinite" in note] == ["3 values of w.2 became infinite or NaN"]
    assert load_file("o.safetensors")["w.3"].tolist() == [1, 1, 1]


def test_a_file_that_is_cut_short_is_refused_whole() -> None:
    save_file({f"w.{i}": torch.full((3,), 1.0) for i in range(5)}, "a.safetensors")
    plan = cs.convert("a.safetensors", dtype="float16")
    Path("a.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:-8])
    with pytest.raises(cs.CheckpointError):
        cs.apply(plan, "o.safetensors")
    assert not Path("o.safetensors").exists()


@pytest.mark.parametrize("name", sorted(name for name, one in merge_methods().items() if one.elementwise is not False))
def test_what_is_declared_elementwise_is(name: str) -> None:
    """Tensors one after the other are merged as each alone: nothing of a shape, a row or a neighbour counts."""
    from ckptsurgeon.methods.merge._slices import PIECE

    from ..helpers.merge_arrays import Arrays

    method = merge_methods()[name]
    draw = np.random.default_rng(3)
    count = method.models[1] or 3
    values = {one.name: 1 if one.kind == "whole number" else 0.5 for one in method.parameters if one.default is None}
    needs = {one.name: [values[one.name]] * count if one.each else values[one.name]
             for one in method.parameters if one.name in values}  # fmt: skip
    assert method.is_elementwise(needs)
    with_base = method.base == "required"
    sizes = [(5, 7), (40,), (), (PIECE // 8, 9)]
    tensors = [draw.standard_normal((count + with_base, *size)).astype("f4") for size in sizes]

    def merged(values: Any) -> Any:
        made = Arrays([*values[:count]], values[count] if with_base else None)
        return made.merged(method.prepare(made, dict(needs))).reshape(-1)

    alone = np.concatenate([merged(one) for one in tensors])
    joined = merged(np.concatenate([one.reshape(len(one), -1) for one in tensors], axis=1))
    assert alone.tobytes() == joined.tobytes()


@pytest.mark.costly
@pytest.mark.parametrize("size", [3, 300_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_not_finite_in_an_input_is_said_of_what_it_spoils(size: int, dtype: torch.dtype) -> None:
    good = {"v": torch.ones(2, dtype=dtype), "w": torch.ones(size, dtype=dtype)}
    bad = {"v": good["v"].clone(), "w": good["w"].clone()}
    bad["w"][[0, 2]] = torch.tensor([float("nan"), float("inf")], dtype=dtype)
    save_file(good, "a.safetensors")
    save_file(bad, "b.safetensors")
    plans = [
        cs.average(["a.safetensors", "b.safetensors"]),
        cs.merge(["a.safetensors", "b.safetensors"], method="linear", weights=[0.5, 0.5]),
        cs.merge(["a.safetensors", "b.safetensors"], base="a.safetensors", method="ties", density=[0.5, 0.5]),
    ]
    for plan in plans:
        notes = cs.apply(plan, "o.safetensors", force=True).notes
        assert [note for note in notes if "infinite" in note and "small tensor" not in note] == [
            "NaN and infinite values come from the inputs: w (2 values)"
        ]
    twice = cs.average(["a.safetensors"] * 2)
    assert cs.apply(twice, "o.safetensors", force=True).notes == twice.notes


@pytest.mark.parametrize("size", [4, 300_000])
def test_what_is_cut_to_the_largest_of_a_type_without_infinity_is_said(size: int) -> None:
    values = torch.ones(size)
    values[:4] = torch.tensor([1e6, 448.0, -float("inf"), 465.0])
    save_file({"w": values, "v": torch.tensor([464.0, float("nan")])}, "a.safetensors")
    receipt = cs.apply(cs.convert("a.safetensors", dtype="float8_e4m3fn"), "o.safetensors")
    assert receipt.notes == (
        f"{'1 small tensor has' if size > 4 else '2 small tensors have'} NaN or infinite values: {'v' if size > 4 else 'v, w'}",
        "3 values of w became the largest value of float8_e4m3fn, or NaN",
        "NaN and infinite values come from the inputs: v (1 value)",
    )
    found = load_file("o.safetensors")["w"].float()
    assert torch.equal(found, values.to(torch.float8_e4m3fn).float())
    merged = cs.merge(["a.safetensors"] * 2, method="linear", weights=[0.5, 0.5], dtype="float8_e4m3fn")
    assert receipt.notes[1] in cs.apply(merged, "m.safetensors").notes


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("size", [4, 600])
def test_a_code_that_means_nan_is_said_whatever_it_is_decoded_to(size: int, dtype: str | None) -> None:
    codes = torch.ones(size, size).to(torch.float8_e4m3fn)
    codes.view(torch.uint8)[1, 2] = 0x7F
    state = {"v.weight": torch.ones(2), "w.weight": codes, "w.weight_scale": torch.ones(size, 1)}
    save_file(state, "a.safetensors")
    said = "NaN and infinite values come from the inputs: w.weight (1 value)"
    receipt = cs.apply(cs.convert("a.safetensors", dequantize=True, dtype=dtype), "o.safetensors")
    assert [note for note in receipt.notes if "come from" in note] == [said]
    module = torch.nn.ModuleDict({"w": torch.nn.Linear(size, size, bias=False)})
    notes = cs.load_into(module, "a.safetensors", encoding="dequantize").notes
    assert [note for note in notes if "come from" in note] == [said]


def test_a_cast_of_many_small_tensors_says_which_has_a_nan() -> None:
    state = {f"w{number}": torch.ones(3) for number in range(200)}
    state["w7"][1] = torch.nan
    save_file(state, "a.safetensors")
    receipt = cs.apply(cs.convert("a.safetensors", dtype="bfloat16"), "o.safetensors")
    assert receipt.notes == ("NaN and infinite values come from the inputs: w7 (1 value)",)


@pytest.mark.costly
@pytest.mark.parametrize("size", [4, 300_000])
@pytest.mark.parametrize(("dtype", "tiny"), [("float8_e4m3fn", 2e-4), ("float8_e5m2", 1e-6), ("float16", 1e-8)])
def test_values_that_a_cast_makes_zero_are_said(size: int, dtype: str, tiny: float) -> None:
    values = torch.full((size,), -tiny)
    values[0], values[1], values[2] = 0, 1, torch.nan
    save_file({"w": values, "v": torch.tensor([1.0, 0, 0])}, "a.safetensors")
    lost = f"{size - 3} of {size} values of w became zero"
    merged = cs.merge(["a.safetensors"] * 2, method="linear", weights=[0.5, 0.5], dtype=dtype)
    for plan in (cs.convert("a.safetensors", dtype=dtype), merged):
        notes = cs.apply(plan, "o.safetensors", force=True).notes
        assert [note for note in notes if "zero" in note] == [lost]
        assert torch.equal(load_file("o.safetensors")["w"].float() == 0, torch.arange(size).ne(1) & ~values.isnan())


def test_a_few_values_that_become_zero_are_not_said_and_several_tensors_are_a_line() -> None:
    tiny = torch.ones(11)
    tiny[0] = 1e-8
    save_file({"few": tiny, "a": tiny[:10].clone(), "b": tiny[:2].clone()}, "a.safetensors")
    assert cs.apply(cs.convert("a.safetensors", dtype="float16"), "o.safetensors").notes == (
        "values of 2 tensors became zero: a (1 of 10), b (1 of 2)",
    )
    assert not cs.apply(cs.convert("a.safetensors", dtype="bfloat16"), "o.safetensors", force=True).notes


def test_zeros_of_a_merge_that_narrows_nothing_are_its_own() -> None:
    save_file({"w": torch.full((4,), 6e-8).half()}, "a.safetensors")
    save_file({"w": torch.zeros(4).half()}, "b.safetensors")
    assert not cs.apply(cs.average(["a.safetensors", "b.safetensors"]), "o.safetensors").notes


@pytest.mark.costly
@pytest.mark.parametrize("size", [4, 300_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_variances_that_a_merge_makes_negative_are_said(size: int, dtype: torch.dtype) -> None:
    for name, value in (("a", 1.0), ("b", 0.25)):
        values = torch.ones(size, dtype=dtype)
        values[:2] = value
        save_file({"bn.running_var": values, "bn.weight": values - 2}, f"{name}.safetensors")
    both = ["b.safetensors", "a.safetensors"]
    receipt = cs.apply(cs.merge(both, method="linear", weights=[2.0, -1.0], normalize=False), "o.safetensors")
    assert receipt.notes == (
        "2 values of the variance bn.running_var became negative, but layers take their square root",
    )
    assert not cs.apply(cs.merge(both, method="linear", weights=[0.5, 0.5]), "p.safetensors").notes
    save_file({"bn.running_var": -load_file("a.safetensors")["bn.running_var"]}, "n.safetensors")
    twice = cs.average(["n.safetensors"] * 2)
    assert cs.apply(twice, "q.safetensors").notes == tuple(dict.fromkeys(twice.notes))
