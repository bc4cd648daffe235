"""Operations that make tensors larger or smaller, and those on groups: what torch makes of the same tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError, ConfigError, PatternError, PlanError

Tensors = dict[str, torch.Tensor]
Row = dict[str, Any]


def both_ways(source: Tensors, operations: list[Row]) -> Tensors:
    """Rename with operations, verify the output, and compare it with the tensors in memory; return it."""
    save_file(source, "source.safetensors")
    plan = cs.rename("source.safetensors", operations=operations)
    cs.apply(plan, "out.safetensors", force=True)
    assert cs.verify("out.safetensors").ok
    written = load_file("out.safetensors")
    made = cs.rename("source.safetensors", operations=operations).inputs.sources[0]  # type: ignore[attr-defined]
    assert set(made) == set(written)
    for key, one in written.items():
        assert torch.equal(made.tensor(key), one), key
    return written


def pooled(weight: torch.Tensor, heads: int, to: int) -> torch.Tensor:
    """Means of neighbouring heads, in double precision."""
    size = len(weight) // heads
    groups = weight.double().reshape(to, heads // to, size, *weight.shape[1:])
    return groups.mean(1).reshape(to * size, *weight.shape[1:]).to(weight.dtype)


def averaged(weight: torch.Tensor, groups: list[list[int]], by: Sequence[float] = (), dim: int = 0) -> torch.Tensor:
    """The weighted mean of each group, in double precision, rounded once."""
    found = []
    for group in groups:
        rows = weight.double().index_select(dim, torch.tensor(group))
        if not by:
            found.append(rows.mean(dim))
            continue
        shares = torch.tensor([by[at] for at in group], dtype=torch.float64)
        found.append((rows * (shares / shares.sum()).reshape((-1, 1) if dim == 0 else (1, -1))).sum(dim))
    return torch.stack(found, dim).to(weight.dtype)


COUNTS = [1, 3, 0, 0.5, 2, 4]
CASES: dict[str, tuple[Row, Callable[[torch.Tensor], torch.Tensor]]] = {
    "slice": ({"slice": "w", "begin": 2, "end": 9}, lambda w: w[2:9]),
    "slice of columns": ({"slice": "w", "dim": 1, "end": 3}, lambda w: w[:, :3]),
    "slice from the end": ({"slice": "w", "dim": -1, "begin": -2, "end": 6}, lambda w: w[:, -2:]),
    "slice before the end": ({"slice": "w", "begin": 0, "end": -1}, lambda w: w[:-1]),
    "take": ({"take": "w", "indices": "5,0..2,2,23"}, lambda w: w[[5, 0, 1, 2, 2, 23]]),
    "take many": ({"take": "w", "indices": "1,3,5,7,9,11,13,15,17,23"}, lambda w: w[[*range(1, 18, 2), 23]]),
    "take columns": ({"take": "w", "dim": 1, "indices": "5,0,3"}, lambda w: w[:, [5, 0, 3]]),
    "take blocks": ({"take": "w", "indices": "3,3,0", "block": 6}, lambda w: w.reshape(4, 36)[[3, 3, 0]].reshape(18, 6)),
    "take a range": ({"take": "w", "indices": "2..3,4..8"}, lambda w: w[2:9]),
    "combine": ({"combine": "w", "groups": "0+2..3,23,4+1"}, lambda w: averaged(w, [[0, 2, 3], [23], [4, 1]])),
    "combine many": ({"combine": "w", "groups": "1..20,22+23"}, lambda w: averaged(w, [[*range(1, 21)], [22, 23]])),
    "combine columns": (
        {"combine": "w", "groups": "0+4,1..2,3+5", "dim": 1, "weights": COUNTS},
        lambda w: averaged(w, [[0, 4], [1, 2], [3, 5]], COUNTS, 1),
    ),
    "zero": ({"zero": "w"}, torch.zeros_like),
    "scale rows": ({"scale": "w", "by": 0.5, "begin": 2, "end": -1}, lambda w: torch.cat([w[:2], w[2:-1] / 2, w[-1:]])),
    "scale columns": ({"scale": "w", "by": 2, "dim": 1, "begin": 4}, lambda w: torch.cat([w[:, :4], w[:, 4:] * 2], 1)),
    "scale all, by the last": ({"scale": "w", "by": 2, "dim": -1}, lambda w: w * 2),
    "pad": ({"pad": "w", "size": 30}, lambda w: torch.cat([w, w.new_zeros(6, 6)])),
    "pad columns": ({"pad": "w", "dim": 1, "size": 8, "value": -2}, lambda w: torch.nn.functional.pad(w, (0, 2), value=-2)),
    "pad to the same": ({"pad": "w", "size": 24}, lambda w: w),
    "tile": ({"tile": "w", "times": 3}, lambda w: w.tile(3, 1)),
    "tile columns": ({"tile": "w", "dim": 1, "times": 2}, lambda w: w.tile(1, 2)),
    "pool": ({"pool": "w", "heads": 6, "to": 2}, lambda w: pooled(w, 6, 2)),
    "pool to one": ({"pool": "w", "heads": 8, "to": 1}, lambda w: pooled(w, 8, 1)),
    "pool to as many": ({"pool": "w", "heads": 8, "to": 8}, lambda w: w),
    "repeat": (
        {"repeat": "w", "heads": 4, "to": 12}, lambda w: w.reshape(4, 6, 6).repeat_interleave(3, 0).reshape(72, 6),
    ),
}  # fmt: skip


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_one_tensor_becomes_larger_or_smaller(name: str, dtype: torch.dtype) -> None:
    operation, wanted = CASES[name]
    weight = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    made = both_ways({"w": weight, "other": torch.ones(2)}, [operation])
    assert torch.equal(made["w"], wanted(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_noise_on_copies_is_the_same_however_it_is_made_and_leaves_their_sum(dtype: torch.dtype) -> None:
    weight = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    take: Row = {"take": "w", "dim": 1, "indices": "0..2,0..1", "block": 2}
    noise: Row = {"noise": "w", "dim": 1, "of": "0..2,0..1", "block": 2, "by": 0.4, "seed": 5}
    made = both_ways({"w": weight, "v": weight.clone()}, [take, noise, {**take, "take": "v"}, {**noise, "noise": "v"}])
    once, whole = made["w"].double(), weight.double()
    assert torch.equal(once[:, 4:6], whole[:, 4:6])  # of these there is one copy
    assert not torch.equal(once, made["v"].double())  # another key has other noise
    assert (once[:, :4] != whole[:, :4]).double().mean() > 0.6
    unit = {torch.float64: 1e-15, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}.get(dtype, 0.2)
    torch.testing.assert_close(once[:, :4] + once[:, 6:], 2 * whole[:, :4], rtol=unit, atol=unit)


def test_noise_of_a_large_tensor_is_made_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    rows: list[Row] = [{"take": "w", "indices": "0..39,0..39"}, {"noise": "w", "of": "0..39,0..39", "by": 0.4}]
    whole = both_ways({"w": weight}, rows)["w"]
    monkeypatch.setattr("ckptsurgeon.engine.compute.one_block.ROWS_BYTES", 400)
    assert torch.equal(both_ways({"w": weight}, rows)["w"], whole)
    assert not torch.equal(both_ways({"w": weight}, [rows[0], {**rows[1], "seed": 1}])["w"], whole)


@pytest.mark.parametrize("step", [3, 5, 50])
def test_columns_far_apart_are_taken_from_a_wide_matrix(step: int) -> None:
    weight = torch.randn(40, 3000, generator=torch.Generator().manual_seed(0))
    indices = list(range(0, 3000, step))
    made = both_ways({"w": weight}, [{"take": "w", "dim": 1, "indices": ",".join(map(str, indices))}])
    assert torch.equal(made["w"], weight[:, indices])


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(
    "blocks", ["0,0,1,1,2,2,3,3,4,4,5,5,6,6,7,7,8,8,9,9", "9,8,7,6,5,4,3,2,1,0,0", "1,4,3,9,0,2,7,5,6,8"]
)
def test_blocks_of_several_elements_are_taken_along_each_dimension(dim: int, blocks: str) -> None:
    weight = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    rows = [6 * block + at for block in map(int, blocks.split(",")) for at in range(6)]
    made = both_ways({"w": weight}, [{"take": "w", "dim": dim, "block": 6, "indices": blocks}])
    assert torch.equal(made["w"], weight.index_select(dim, torch.tensor(rows)))
    shifted = [row + 3 for row in rows if row + 3 < 60]  # runs of one length that begin elsewhere
    made = both_ways({"w": weight}, [{"take": "w", "dim": dim, "indices": ",".join(map(str, shifted))}])
    assert torch.equal(made["w"], weight.index_select(dim, torch.tensor(shifted)))


def test_powers_of_two_alone_have_no_zero() -> None:
    save_file({"w": torch.ones(4, 2).to(torch.float8_e8m0fnu)}, "powers.safetensors")
    for row in ({"zero": "w"}, {"scale": "w", "by": 0.5}):
        with pytest.raises(PlanError, match="has no zero"):
            cs.rename("powers.safetensors", operations=[row])


def test_whole_numbers_and_biases_too() -> None:
    source = {"n": torch.arange(6), "k.weight": torch.randn(8, 3), "k.bias": torch.randn(8)}
    made = both_ways(
        source,
        [
            {"pad": "n", "size": 8},
            {"slice": "n", "begin": 1, "end": 8},
            {"tile": "n", "times": 2},
            {"pool": "k", "heads": 4, "to": 2},
        ],
    )
    assert made["n"].tolist() == [1, 2, 3, 4, 5, 0, 0] * 2
    assert torch.equal(made["k.bias"], pooled(source["k.bias"], 4, 2))
    assert torch.equal(made["k.weight"], pooled(source["k.weight"], 4, 2))


def test_the_mean_of_several_tensors_is_rounded_once() -> None:
    layers = {f"layers.{n}.w": torch.randn(4, 5).bfloat16() for n in range(3)}
    made = both_ways(layers, [{"mean": "layers.{n}.w", "into": "w"}])
    assert torch.equal(made["w"], (sum(one.double() for one in layers.values()) / 3).bfloat16())
    save_file({"a": torch.full((2,), 6e4).half(), "b": torch.full((2,), 5e4).half()}, "source.safetensors")
    cs.apply(cs.rename("source.safetensors", operations=[{"mean": ["a", "b"], "into": "c"}]), "half.safetensors")
    assert load_file("half.safetensors")["c"].tolist() == [54976.0] * 2  # their sum is beyond the range of float16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_exponents_scale_and_are_rounded_once(dtype: torch.dtype) -> None:
    source = {f"h.{n}.w": torch.randn(4, 5).to(dtype) for n in range(2)} | {"h.0.w_scale": torch.tensor(-1.25)}
    source |= {"h.1.w_scale": torch.tensor([0.7]).to(dtype), "other": torch.ones(2)}
    made = both_ways(source, [{"exp_scale": ["h.{n}.w", "h.{n}.w_scale"], "into": "h.{n}.w"}])
    assert set(made) == {"h.0.w", "h.1.w", "other"}
    for n in range(2):
        factor = source[f"h.{n}.w_scale"].double().reshape(()).exp()
        assert torch.equal(made[f"h.{n}.w"], (source[f"h.{n}.w"].double() * factor).to(dtype))


@pytest.mark.parametrize("number", [800.0, float("inf"), float("nan")])
def test_an_exponent_whose_power_is_not_finite_is_an_error(number: float) -> None:
    save_file({"w": torch.ones(2), "s": torch.tensor(number)}, "source.safetensors")
    plan = cs.rename("source.safetensors", operations=[{"exp_scale": ["w", "s"], "into": "w"}])
    with pytest.raises(PlanError, match="the exponent has the value .*, and e to this power is infinite or NaN"):
        cs.apply(plan, "out.safetensors")
    assert not Path("out.safetensors").exists()


def test_parts_that_stand_together_in_each_group() -> None:
    """Megatron and GPT-NeoX: the queries, the key and the value of each group of heads are consecutive."""
    groups, queries, size, width = 3, 4, 2, 5
    fused = torch.randn(groups * (queries + 2) * size, width)
    sizes = [queries * size, size, size]
    split: Row = {"split": "qkv", "into": ["q", "k", "v"], "groups": groups, "sizes": sizes}
    bias = torch.randn(len(fused))
    made = both_ways({"qkv.weight": fused, "qkv.bias": bias}, [split])
    for at, name in enumerate("qkv"):
        begin = sum(sizes[:at])
        part = fused.reshape(groups, -1, width)[:, begin : begin + sizes[at]].reshape(-1, width)
        assert torch.equal(made[f"{name}.weight"], part)
        assert torch.equal(made[f"{name}.bias"], bias.reshape(groups, -1)[:, begin : begin + sizes[at]].reshape(-1))
    back = both_ways(made, [{"concat": ["q", "k", "v"], "into": "qkv", "groups": groups}])
    assert torch.equal(back["qkv.weight"], fused)
    assert torch.equal(back["qkv.bias"], bias)


def test_groups_along_columns_and_equal_parts() -> None:
    weight = torch.randn(3, 24)
    made = both_ways({"w": weight}, [{"split": "w", "into": ["a", "b"], "dim": -1, "groups": 4}])
    assert torch.equal(made["b"], weight.reshape(3, 4, 2, 3)[:, :, 1].reshape(3, 12))
    back = both_ways(made, [{"concat": ["a", "b"], "into": "w", "dim": 1, "groups": 4}])
    assert torch.equal(back["w"], weight)


def test_a_name_with_a_range_means_several() -> None:
    weight = torch.randn(8, 3)
    made = both_ways({"mlp.w1": weight}, [{"copy": "mlp.w1", "into": "experts.{0..7}.w1"}])
    assert set(made) == {f"experts.{n}.w1" for n in range(8)}
    assert all(torch.equal(one, weight) for one in made.values())
    made = both_ways({"h.2.w": weight}, [{"split": "h.{n}.w", "into": ["h.{n}.{a,b}", "h.{n}.c.{1..2}"]}])
    assert torch.equal(made["h.2.c.1"], weight[4:6])
    rows = {f"e.{n}.w": weight[n % 8 : n % 8 + 1].clone() for n in range(12)}
    back = both_ways(rows, [{"concat": "e.{0..7}.w", "into": "w"}])
    assert torch.equal(back["w"], weight)
    assert {"e.8.w", "e.11.w"} <= set(back)
    with pytest.raises(PlanError, match=r"for w, no tensor has 12 in the place of \{2\.\.13\}"):
        both_ways({**rows, "e.13.w": weight}, [{"stack": "e.{2..13}.w", "into": "w"}])


@pytest.mark.parametrize(
    ("operation", "error", "why"),
    [
        (
            {"slice": "w", "begin": 5, "end": 5},
            PlanError,
            "5 to 5 is not a range of dimension 0 of w, which has size 24",
        ),
        ({"slice": "w", "end": 25}, PlanError, "0 to 25 is not a range"),
        ({"scale": "w", "by": 2, "begin": -30}, PlanError, "-30 to 24 is not a range"),
        ({"slice": "w", "dim": 2, "end": 1}, PlanError, "no dimension 2"),
        ({"slice": "w"}, ConfigError, "needs the field end"),
        ({"pad": "w", "size": 23}, PlanError, "has size 24 already, more than 23"),
        ({"pad": "n", "size": 9, "value": 1}, PlanError, "n is int64, which can only be padded with 0"),
        ({"pad": "w", "size": 9, "value": 1e39}, ConfigError, "not a number that fits into float32"),
        ({"tile": "w", "times": 0}, ConfigError, "not a number above 0"),
        ({"tile": "w", "times": 1 << 30}, PlanError, "more than the limit of 100000"),
        ({"pool": "w", "heads": 6, "to": 4}, PlanError, "the 6 heads cannot become 4, which is not a divisor of 6"),
        ({"pool": "w", "heads": 2, "to": 4}, PlanError, "not a divisor of 2"),
        ({"repeat": "w", "heads": 4, "to": 6}, PlanError, "not a multiple of 4"),
        ({"pool": "w", "heads": 5, "to": 1}, PlanError, "w has 24 rows, not a multiple of 5 heads"),
        ({"pool": "n", "heads": 2, "to": 1}, PlanError, "only floating-point tensors can be scaled, added or averaged"),
        ({"mean": ["n", "n2"], "into": "m"}, PlanError, "only floating-point tensors"),
        ({"exp_scale": ["w", "n"], "into": "m"}, PlanError, "only floating-point tensors"),
        ({"exp_scale": ["w", "w2"], "into": "m"}, PatternError, "exp_scale w, w2 matches none of the 4 source keys"),
        ({"exp_scale": ["v", "w"], "into": "m"}, PlanError, r"the shape of w is .*, but an exponent is one number"),
        ({"exp_scale": "w", "into": "m"}, ConfigError, "not a list of a tensor and its exponent"),
        ({"exp_scale": ["w", "n", "n2"], "into": "m"}, ConfigError, "not a list of a tensor and its exponent"),
        ({"exp_scale": ["w", "n"]}, ConfigError, "needs the field into"),
        ({"noise": "w", "of": "0..22", "by": 0.1}, PlanError, "do not give one original index for each element"),
        ({"noise": "w", "of": "0..22,24", "by": 0.1}, PlanError, "do not give one original index for each element"),
        (
            {"noise": "n", "of": "0..3,0..3", "by": 0.1},
            PlanError,
            "only real floating-point tensors can be given noise",
        ),
        ({"noise": "w", "of": "0..23", "by": 0}, ConfigError, "not a number above 0"),
        ({"noise": "w", "of": "0..23", "by": 2}, ConfigError, "not a number above 0 and at most 1"),
        ({"noise": "w", "of": "0..23", "by": 0.1, "seed": -1}, ConfigError, "not a number from 0"),
        ({"noise": "w", "by": 0.1}, ConfigError, "needs the field of"),
        ({"combine": "w", "groups": "0+24,1"}, PlanError, "size 24, but the groups 0\\+24,1 list the index 24"),
        ({"combine": "w", "groups": "0+1,1"}, ConfigError, "not groups of different indices"),
        ({"combine": "w", "groups": "0+1;2"}, ConfigError, "not groups of different indices"),
        ({"combine": "w", "groups": "0+1", "weights": [1, 2]}, PlanError, "2 weights are given"),
        ({"combine": "w", "groups": "0+1", "weights": [-1] * 24}, ConfigError, "not a list of numbers from 0"),
        (
            {"combine": "w", "groups": "0+1", "weights": [0] * 24},
            PlanError,
            "all weights of the elements 0\\+1 are 0",
        ),
        ({"combine": "n", "groups": "0+1"}, PlanError, "only floating-point tensors can be scaled, added or averaged"),
        ({"split": "w", "into": ["a", "b"], "groups": 5}, PlanError, "size 24, not a multiple of 5 groups"),
        ({"split": "w", "into": ["a", "b"], "groups": 4, "sizes": [3, 4]}, PlanError, "needs 2 parts with the sum 6"),
        ({"split": "w", "into": "a"}, ConfigError, "into has one name, but a split makes two tensors or more"),
        ({"concat": ["w", "v"], "into": "a.{0..1}"}, PatternError, "means several names"),
        ({"copy": "w", "into": "a.{0..999999}"}, PatternError, "the range .* is too long"),
    ],
)
def test_what_cannot_be_is_an_error(operation: Row, error: type[CheckpointError], why: str) -> None:
    save_file(
        {"w": torch.ones(24, 6), "v": torch.ones(24, 6), "n": torch.arange(8), "n2": torch.arange(8)},
        "source.safetensors",
    )
    with pytest.raises(error, match=why):
        cs.rename("source.safetensors", operations=[operation])


def test_codes_are_not_pooled(ckpt: Any) -> None:
    codes = torch.randn(8, 256).to(torch.float8_e4m3fn)
    save_file({"k.weight": codes, "k.weight_scale_inv": torch.ones(1, 2)}, "source.safetensors")
    for row in (
        {"pool": "k.weight", "heads": 4, "to": 2},
        {"pad": "k.weight", "size": 16},
        {"slice": "k.weight", "end": 4},
    ):
        with pytest.raises(PlanError, match="quantised"):
            cs.rename("source.safetensors", operations=[row])
