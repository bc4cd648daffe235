"""What a merge takes is known before, and kept to: bytes, passes, memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute import compute as needs
from ckptsurgeon.engine.compute import compute_steps as together
from ckptsurgeon.engine.compute import merging
from ckptsurgeon.methods.merge.arithmetic import threshold as _threshold
from fixtures import fusionbench_cases
from fixtures.fusionbench_cases import CASES as FUSIONBENCH
from fixtures.mergekit_cases import CASES, models

from ...helpers.merge_arrays import METHODS, Arrays, merge
from ...helpers.nursery import run_apart

Run = Callable[..., Any]

MODELS = models()
SQUARE = {name: one["square.weight"].astype("f4") for name, one in fusionbench_cases.models().items()}


def save(name: str, seed: int, shape: tuple[int, ...] = (40, 30)) -> int:
    values = np.random.default_rng(seed).standard_normal(shape, "f4")
    save_file({"w": values, "v": values[0].copy()}, name)
    return int(values.nbytes + values[0].nbytes)


@pytest.mark.costly
@pytest.mark.parametrize("method", METHODS)
def test_a_method_declares_as_many_passes_as_it_makes_at_most(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_threshold, "FEW", 0)
    made, takes = [], {one.name for one in METHODS[method].parameters}
    cases: list[Any] = [one for one in CASES.values() if one.method == method]
    cases += [replace(one, parameters={**one.parameters, "rescale": True}) for one in cases if "rescale" in takes]
    for case, key in product(cases, MODELS["a"]):
        for change in (np.asarray, np.rint):  # of rounded values many are equal
            base = None if case.base is None else change(MODELS[case.base][key])
            models = [change(MODELS[name][key]) for name in case.models]
            by_rows = METHODS[method].wants_rows(models[0].shape, case.parameters)
            tensors = Arrays(models, base, by_rows=by_rows)
            with suppress(cs.PlanError):
                METHODS[method].prepare(tensors, dict(case.parameters))
            made.append(tensors.passes + 1)
    others = [one.parameters for one in FUSIONBENCH.values() if one.method == method]
    for parameters in others or ([] if made else [{}]):
        tensors = Arrays([SQUARE["a"], SQUARE["b"]], SQUARE["base"] if METHODS[method].base == "required" else None)
        with suppress(cs.ConfigError):
            METHODS[method].prepare(tensors, dict(parameters))
        made.append(tensors.passes + 1)
    assert max(made, default=1) == METHODS[method].passes


MERGES: dict[str, dict[str, Any]] = {
    "linear": {"weights": [0.5, 0.5]},
    "ties": {"weights": [0.5, 0.5], "density": 0.5, "base": "c.safetensors"},
    "slerp": {"t": 0.5},
}
"""What each method is given beside two models."""


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of values merges have read since: one figure, which grows."""
    seen, read = [0], merging.read_as

    def counted(*given: Any) -> Any:
        values = read(*given)
        seen[0] += values.nbytes
        return values

    monkeypatch.setattr(merging, "read_as", counted)
    return seen


@pytest.mark.parametrize("method", MERGES)
def test_what_is_read_and_written_is_what_the_plan_says(
    method: str, monkeypatch: pytest.MonkeyPatch, bytes_read: list[int]
) -> None:
    size = min([save(f"{name}.safetensors", seed) for seed, name in enumerate("abc")])
    for module, name in ((_threshold, "FEW"), (merging, "SMALL"), (together, "FEW")):
        monkeypatch.setattr(module, name, 0)  # as if the tensors were large
    plan = cs.merge(["a.safetensors", "b.safetensors"], method=method, **MERGES[method])
    receipt = cs.apply(plan, "o.safetensors")
    assert plan.costs is not None
    assert plan.costs.nbytes_written == size < receipt.nbytes_written
    inputs = size * (3 if method == "ties" else 2)
    assert plan.costs.nbytes_read == inputs * METHODS[method].passes
    assert inputs < bytes_read[0] <= plan.costs.nbytes_read if METHODS[method].passes > 1 else bytes_read[0] == inputs


@pytest.mark.parametrize("method", MERGES)
def test_small_tensors_are_read_once(method: str, bytes_read: list[int]) -> None:
    size = min([save(f"{name}.safetensors", seed) for seed, name in enumerate("abc")])
    cs.apply(cs.merge(["a.safetensors", "b.safetensors"], method=method, **MERGES[method]), "o.safetensors")
    assert bytes_read[0] == size * (3 if method == "ties" else 2)


def test_a_dry_run_says_what_it_takes(ckpt: Run) -> None:
    for seed, name in enumerate("abc"):
        save(f"{name}.safetensors", seed)
    asked = ["merge", "a.safetensors", "b.safetensors", "--base", "c.safetensors", "--method", "ties",
             "--weights", "1,1", "--param", "density=0.5", "-n"]  # fmt: skip
    shown = " ".join(ckpt(*asked).out.split())
    assert "ties of 2 models onto the base" in shown
    assert "costs reads up to 73.8 kB in 5 passes, writes 4.9 kB, about 16.8 MB of memory" in shown
    costs = json.loads(ckpt(*asked, "--json").out)["costs"]
    assert costs == {"passes": 5, "nbytes_read": 73800, "nbytes_written": 4920, "memory_nbytes": 16 << 20}
    assert not list(Path().glob("o.*"))


def test_as_many_slices_are_counted_as_are_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of two models of float32, and three times as much that is made of each: 4 MiB."""
    for name in ("a.safetensors", "b.safetensors"):
        save(name, 0, (512, 1024))
    for threads in (5, 7):
        monkeypatch.setattr(needs, "THREADS", threads)
        for memory, at_once in (("1GiB", threads), ("25MiB", min(threads, 6))):
            plan = cs.merge(["a.safetensors", "b.safetensors"], method="linear", weights=[1, 1], memory=memory)
            assert plan.costs is not None
            assert plan.costs.memory_nbytes == at_once * (4 << 20)


def test_costs_are_no_part_of_a_plans_digest_and_survive_json() -> None:
    save("a.safetensors", 0)
    plan = cs.merge(["a.safetensors"] * 2, method="linear", weights=[1.0, 1.0])
    again = cs.Plan.from_json(plan.to_json())
    assert again.costs == plan.costs is not None
    del (data := plan.to_json())["costs"]
    assert cs.Plan.from_json(data).sha256() == plan.sha256()


PEAK = """
import sys
import ckptsurgeon as cs
*models, memory, output = sys.argv[1:]
cs.apply(cs.merge(models, method="METHOD", MORE memory=memory), output)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def peak(models: list[str], memory: str, method: str, more: str) -> int:
    """The most memory, in bytes, of a small process of its own."""
    code = PEAK.replace("METHOD", method).replace("MORE", more)
    done = run_apart(code, *models, memory, "o.safetensors")
    assert not done.returncode, done.stderr
    Path("o.safetensors").unlink()
    return int(done.stdout) << 10


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "more", "memory"),
    [("linear", "weights=[1.0] * 4,", 24 << 20), ("ties", "base='m0', weights=[1.0] * 4, density=0.5,", 32 << 20)],
)
def test_the_memory_is_kept_to_whatever_the_tensors_sizes(method: str, more: str, memory: int) -> None:
    names = [f"m{number}.safetensors" for number in range(4)]
    more = more.replace("m0", names[0])
    for number, name in enumerate(names):
        save(name, number, (4, 4))
    interpreter = peak(names, str(memory), method, more)
    for number, name in enumerate(names):
        save(name, number, (9000, 1000))  # 36 MB each
    assert peak(names, str(memory), method, more) - interpreter < memory


@pytest.mark.long
def test_what_a_method_keeps_of_each_row_is_bounded() -> None:
    """arcee_fusion: a divergence of each of 4.5 million rows would be 36 MB, and as much again to put them together."""
    more, memory = "base='base.safetensors',", 32 << 20
    for seed, name in enumerate(("base.safetensors", "m.safetensors")):
        save(name, seed, (4, 4))
    interpreter = peak(["m.safetensors"], str(memory), "arcee_fusion", more)
    for seed, name in enumerate(("base.safetensors", "m.safetensors")):
        save(name, seed, (4_500_000, 2))  # 36 MB each
    assert peak(["m.safetensors"], str(memory), "arcee_fusion", more) - interpreter < memory


def test_a_slice_that_does_not_fit_the_memory_is_an_error() -> None:
    """nuslerp of rows has whole rows in a slice: twice two models of 1.2 million values, and what it makes of them."""
    for name in ("a.safetensors", "b.safetensors"):
        save(name, 0, (2, 1_200_000))
    how = {"method": "nuslerp", "weights": [1, 1], "nuslerp_flatten": False}
    with pytest.raises(
        cs.PlanError, match=r"w: computing this tensor takes 38\.4 MB of memory, because .*; the limit is 32\.0 MB"
    ) as error:
        cs.merge(["a.safetensors", "b.safetensors"], **how, memory="32MB")
    assert error.value.hint == "Allow more memory: --memory 38400000B, or use another merge method for this tensor."
    plan = cs.merge(["a.safetensors", "b.safetensors"], **how, memory="38400000B")
    assert plan.costs is not None
    assert plan.costs.memory_nbytes == 38400000


@pytest.mark.parametrize("memory", ["1KB", 16_777_215])
def test_less_memory_than_a_dry_run_says_at_least_is_refused(memory: str | int) -> None:
    for seed, name in enumerate(("a.safetensors", "b.safetensors")):
        save(name, seed)
    asked = {"method": "linear", "weights": [1, 1]}
    plan = cs.merge(["a.safetensors", "b.safetensors"], **asked)
    for act in (
        lambda: cs.merge(["a.safetensors", "b.safetensors"], **asked, memory=memory),
        lambda: cs.apply(plan, "o.safetensors", memory=memory),
    ):
        with pytest.raises(cs.PlanError, match=r"copying takes 16\.8 MB of memory") as error:
            act()
        assert error.value.hint == "Allow more memory: --memory 16777216B."
    assert not Path("o.safetensors").exists()
    cs.apply(cs.merge(["a.safetensors", "b.safetensors"], **asked, memory="16777216B"), "o.safetensors")


@pytest.mark.costly
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("nuslerp", {}),
        ("nuslerp", {"nuslerp_flatten": False}),
        ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
        ("model_stock", {}),
        ("model_stock", {"filter_wise": True}),
    ],
)
def test_one_vector_is_no_row_that_has_to_be_held(method: str, parameters: dict[str, bool]) -> None:
    """A slice of a vector of 4.8 MB, with what is made of it, would be 40 MB."""
    values = [np.random.default_rng(seed).standard_normal(1_200_000, "f4") for seed in range(3)]
    for name, one in zip("abc", values, strict=True):
        save_file({"v": one}, f"{name}.safetensors")
    base, weight = (values[2], {}) if method == "model_stock" else (None, {"weight": [1, 1]})
    plan = cs.merge(
        ["a.safetensors", "b.safetensors"], method=method, base="c.safetensors" if base is not None else None,
        parameters={**parameters, **weight}, memory="17MB",
    )  # fmt: skip
    cs.apply(plan, "o.safetensors")
    assert plan.costs is not None
    assert plan.costs.memory_nbytes == 16 << 20  # what copying takes
    wanted = merge(method, values[:2], base, **parameters, **weight)
    np.testing.assert_allclose(load_file("o.safetensors")["v"], wanted, atol=1e-6)


@pytest.mark.long
def test_sums_of_all_columns_are_counted_where_they_are_large() -> None:
    """nuslerp of columns: a sum of each for every slice would be 170 MB, which nobody had counted."""
    names = ["a.safetensors", "b.safetensors"]
    for seed, name in enumerate(names):
        save(name, seed, (256, 60_000))
    columns = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
    with pytest.raises(cs.PlanError, match="the method needs whole tensors at once") as error:
        cs.merge(names, method="nuslerp", weights=[1, 1], memory="64MB", parameters=columns)
    assert error.value.hint.startswith("Allow more memory: --memory 372480000B")
    plan = cs.merge(names, method="nuslerp", weights=[1, 1], memory=372_480_000, parameters=columns)
    assert plan.costs is not None
    assert plan.costs.memory_nbytes == 372_480_000
