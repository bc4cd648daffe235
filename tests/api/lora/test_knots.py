"""Adapters that KnOTS merges into one: the paper's formula in torch, FusionBench's recordings, and merged models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.engine.compute.random_numbers import random_numbers
from ckptsurgeon.planning.plan.compute import KNOTS, Factor
from fixtures.fusionbench_cases import CASES, models, recorded

from ...helpers.adapters import factors, peft_folder

KEY = "base_model.model.{}.lora_{}.weight"
SHAPES = {"q": (12, 10), "up": (20, 7)}
"""(out, in) of each module."""


def adapters(ranks: tuple[int, ...] = (2, 3, 2), dtype: torch.dtype = torch.float64) -> list[str]:
    """Adapters of these ranks, each with alpha 4, so that their scales differ; the names of their folders."""
    for number, rank in enumerate(ranks):
        made = {}
        for at, (name, (out, into)) in enumerate(SHAPES.items()):
            a, b = factors(out, into, rank, 10 * number + at)
            made |= {f"{name}.lora_A.weight": a.to(dtype), f"{name}.lora_B.weight": b.to(dtype)}
        peft_folder(f"one{number}", made, r=rank, target_modules=list(SHAPES))
    return [f"one{number}" for number in range(len(ranks))]


def change(folder: str, name: str) -> torch.Tensor:
    """The change of a weight, as PEFT computes it."""
    said = json.loads(Path(folder, "adapter_config.json").read_text())
    found = load_file(f"{folder}/adapter_model.safetensors")
    a, b = (found[KEY.format(name, part)].double() for part in "AB")
    ranks, alphas = said.get("rank_pattern") or {}, said.get("alpha_pattern") or {}
    return b @ a * alphas.get(f"^{name}", said["lora_alpha"]) / ranks.get(f"^{name}", said["r"])


def knots(changes: list[torch.Tensor], density: float) -> torch.Tensor:
    """KnOTS with TIES as the paper has it: the left singular vectors of all changes, and TIES of S V_i."""
    left, values, right = torch.linalg.svd(torch.cat(changes, 1), full_matrices=False)
    number = int((values > 1e-10 * values[0]).sum())
    parts = (values[:number, None] * right[:number]).chunk(len(changes), 1)
    kept = []
    for part in parts:
        least = part.abs().flatten().sort(descending=True).values[max(1, int(density * part.numel())) - 1]
        kept.append(torch.where(part.abs() >= least, part, 0.0))
    stack = torch.stack(kept)
    agree = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    return left[:, :number] @ ((stack * agree).sum(0) / agree.sum(0).clamp(min=1))


def dare(changes: list[torch.Tensor], density: float, key: str, seed: int) -> torch.Tensor:
    """KnOTS with DARE and TIES as the paper has it, with the random numbers of ckpt."""
    left, values, right = torch.linalg.svd(torch.cat(changes, 1), full_matrices=False)
    number = int((values > 1e-10 * values[0]).sum())
    parts = (values[:number, None] * right[:number]).chunk(len(changes), 1)
    draws = [torch.from_numpy(random_numbers(seed, key, at, 0, tuple(one.shape))) for at, one in enumerate(parts)]
    stack = torch.stack([one * (draw < density) / density for one, draw in zip(parts, draws, strict=True)])
    agree = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    return left[:, :number] @ ((stack * agree).sum(0) / agree.sum(0).clamp(min=1))


def far(made: Any, wanted: Any) -> float:
    return float(torch.linalg.norm(made - wanted) / torch.linalg.norm(wanted))


@pytest.mark.parametrize("density", [0.2, 0.7, 1.0])
@pytest.mark.parametrize("weights", [None, [1.0, -0.5, 0.3]])
def test_the_change_is_that_of_the_paper(density: float, weights: list[float] | None) -> None:
    given = adapters()
    plan = cs.lora_concat(given, method="knots", density=density, weights=weights)
    cs.apply(plan, "out/")
    for name in SHAPES:
        own = [weight * change(one, name) for one, weight in zip(given, weights or [1] * 3, strict=True)]
        assert far(change("out", name), knots(own, density)) < 1e-10
    assert cs.verify("out").compared == 4
    ranks = {step.factor.rank for step in plan.steps if step.factor}
    assert ranks == {7}


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_dare_keeps_values_at_random_and_makes_up_for_the_rest(density: float) -> None:
    given = adapters()
    plan = cs.lora_concat(given, method="knots", merge="dare_ties", density=density, weights=[1.0, -0.5, 2.0], seed=3)
    cs.apply(plan, "out/")
    for name in SHAPES:
        own = [weight * change(one, name) for one, weight in zip(given, [1.0, -0.5, 2.0], strict=True)]
        assert far(change("out", name), dare(own, density, KEY.format(name, "A"), 3)) < 1e-10
    assert cs.verify("out").ok
    cs.apply(
        cs.lora_concat(given, method="knots", merge="dare_ties", density=density, weights=[1.0, -0.5, 2.0]), "other/"
    )
    same = torch.equal(change("out", "up"), change("other", "up"))
    assert same == (density == 1.0)


def test_task_arithmetic_is_the_sum_and_the_nearest_of_a_rank() -> None:
    given = adapters()
    cs.apply(cs.lora_concat(given, weights=[1.0, -0.5, 2.0]), "sum/")
    for rank in (None, 3):
        plan = cs.lora_concat(given, method="knots", merge="task_arithmetic", weights=[1.0, -0.5, 2.0], rank=rank)
        cs.apply(plan, "out/", force=True)
        assert not any("are kept" in note for note in plan.notes)
        for name in SHAPES:
            left, values, right = torch.linalg.svd(change("sum", name))
            best = (left[:, : rank or 7] * values[: rank or 7]) @ right[: rank or 7]
            assert far(change("out", name), best) < 1e-10


@pytest.mark.parametrize("name", ["knots_ties", "knots_ties_dense"])
def test_the_change_is_that_of_fusionbench(name: str) -> None:
    case, state = CASES[name], models()
    keys = [key for key, value in state["base"].items() if value.ndim == 2]
    folders = []
    for model in case.models:
        made = {}
        for key in keys:
            changed = torch.from_numpy(state[model][key] - state["base"][key])
            module = key.removesuffix(".weight")
            made |= {
                f"{module}.lora_B.weight": changed,
                f"{module}.lora_A.weight": torch.eye(changed.shape[1]).double(),
            }
        ranks = {key.removesuffix(".weight"): state["base"][key].shape[1] for key in keys}
        scaled = {"r": 1, "lora_alpha": 1, "rank_pattern": ranks, "alpha_pattern": ranks}
        peft_folder(model, made, target_modules=list(ranks), **scaled)
        folders.append(model)
    cs.apply(cs.lora_concat(folders, method="knots", density=case.parameters["density"]), "out/")
    for key in keys:
        wanted = torch.from_numpy(recorded()[name][key])
        assert far(change("out", key.removesuffix(".weight")), wanted) < 1e-10, key


def test_it_is_the_merge_of_the_models_with_these_adapters() -> None:
    given = adapters(dtype=torch.float32)
    save_file({f"{name}.weight": torch.zeros(shape) for name, shape in SHAPES.items()}, "base.safetensors")
    for one in given:
        cs.apply(cs.lora_merge("base.safetensors", one), f"{one}.safetensors")
    models = [f"{one}.safetensors" for one in given]
    cs.apply(cs.merge(models, method="knots_ties", base="base.safetensors", density=0.4), "merged.safetensors")
    cs.apply(cs.lora_concat(given, method="knots", density=0.4), "out/")
    for key, value in load_file("merged.safetensors").items():
        assert far(change("out", key.removesuffix(".weight")), value.double()) < 1e-5, key


def test_a_smaller_rank_is_the_nearest_product() -> None:
    given = adapters()
    receipt = cs.apply(cs.lora_concat(given, method="knots", density=0.5, rank=3), "out/")
    fits = {fit.key.split(".")[2]: fit for fit in receipt.fits}
    for name in SHAPES:
        whole = knots([change(one, name) for one in given], 0.5)
        left, values, right = torch.linalg.svd(whole)
        best = (left[:, :3] * values[:3]) @ right[:3]
        assert far(change("out", name), best) < 1e-10
        assert fits[name].error == pytest.approx(far(best, whole), rel=1e-9)
    assert load_file("out/adapter_model.safetensors")[KEY.format("q", "A")].shape == (3, 10)
    assert cs.verify("out").ok


def test_peft_opens_the_result() -> None:
    peft = pytest.importorskip("peft")
    given = adapters(dtype=torch.float32)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(into, out) for name, (out, into) in SHAPES.items()})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cs.apply(cs.lora_concat(given, method="knots", rank=4), "out/")
    after = peft.PeftModel.from_pretrained(model, "out").merge_and_unload().state_dict()
    for name in SHAPES:
        key = f"{name}.weight"
        torch.testing.assert_close(after[key] - before[key], change("out", name).float(), rtol=0, atol=1e-5)


def test_one_direction_of_all_adapters_is_kept_and_the_rest_is_zeros() -> None:
    a, b = factors(12, 10, 2)
    for name in ("one", "two"):
        peft_folder(name, {"q.lora_A.weight": a, "q.lora_B.weight": b}, target_modules=["q"])
    cs.apply(cs.lora_concat(["one", "two"], method="knots", density=1.0), "out/")
    assert far(change("out", "q"), change("one", "q")) < 1e-6
    found = load_file("out/adapter_model.safetensors")
    assert [int(torch.count_nonzero(found[KEY.format("q", part)].sum(dim))) for part, dim in (("A", 1), ("B", 0))] == [
        2, 2
    ]  # fmt: skip


def test_adapters_that_change_nothing_stay_so() -> None:
    for name in ("one", "two"):
        made = {"q.lora_A.weight": torch.ones(2, 10), "q.lora_B.weight": torch.zeros(12, 2)}
        peft_folder(name, made, target_modules=["q"])
    cs.apply(cs.lora_concat(["one", "two"], method="knots"), "out/")
    assert not change("out", "q").any()
    assert cs.verify("out").ok


def test_a_module_of_one_adapter_is_trimmed_alone_and_said() -> None:
    one = {**dict(zip(("q.lora_A.weight", "q.lora_B.weight"), factors(12, 10), strict=True))}
    two = {**one, **dict(zip(("up.lora_A.weight", "up.lora_B.weight"), factors(20, 7), strict=True))}
    peft_folder("one", one, target_modules=["q"])
    peft_folder("two", two, target_modules=["q", "up"])
    plan = cs.lora_concat(["one", "two"], method="knots", density=0.5)
    assert "1 module is in only some of the 2 adapters: up" in plan.notes
    cs.apply(plan, "out/")
    assert far(change("out", "up"), knots([change("two", "up")], 0.5)) < 1e-6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"density": 0.5}, 'density has no effect without method="knots"'),
        ({"rank": 4}, 'rank has no effect without method="knots"'),
        ({"method": "ties"}, 'method="ties" is unknown. Use sum or knots'),
        ({"method": "knots", "density": 0}, "density=0 is not a number above 0"),
        ({"method": "knots", "density": 1.5}, "density=1.5 is not a number above 0"),
        ({"method": "knots", "density": float("nan")}, "density=nan is not a number above 0"),
        ({"method": "knots", "rank": 0}, "rank=0 is not a valid rank"),
        ({"merge": "ties"}, 'merge has no effect without method="knots"'),
        ({"method": "knots", "merge": "linear"}, 'merge="linear" is unknown. Use one of task_arithmetic, ties'),
        ({"method": "knots", "merge": "task_arithmetic", "density": 0.5}, "density has no effect with"),
        ({"method": "knots", "seed": 1}, "seed has no effect with"),
        ({"method": "knots", "merge": "dare_ties", "seed": -1}, "seed=-1 is negative"),
    ],
)
def test_invalid_parameters_are_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(cs.ConfigError, match=message):
        cs.lora_concat(adapters(), **given)


def test_values_that_are_not_finite_are_an_error_that_names_the_tensor() -> None:
    a, b = factors(12, 10)
    peft_folder("one", {"q.lora_A.weight": a, "q.lora_B.weight": b}, target_modules=["q"])
    b[1, 1] = torch.nan
    peft_folder("two", {"q.lora_A.weight": a, "q.lora_B.weight": b}, target_modules=["q"])
    with pytest.raises(cs.PlanError, match=r"q.lora_.*not finite"):
        cs.apply(cs.lora_concat(["one", "two"], method="knots"), "out/")
    assert not Path("out").exists()


def test_too_little_memory_is_an_error_before_anything_is_read() -> None:
    a, b = factors(2048, 2048, 64)
    peft_folder("one", {"q.lora_A.weight": a, "q.lora_B.weight": b}, r=64, target_modules=["q"])
    with pytest.raises(cs.PlanError, match="in the basis that they share"):
        cs.lora_concat(["one", "one"], method="knots", memory="17MB")


def test_without_a_rank_nothing_is_said_of_a_loss_but_that_there_is_none(ckpt: Callable[..., Any]) -> None:
    done = ckpt("lora", "concat", *adapters(), "--method", "knots", "-o", "out/")
    assert "nothing is lost by the rank" in done.out
    assert "0 %" not in done.out.replace("100 %", "")
    assert "20 % of the values" in done.err
    assert "the loss due" not in " ".join(done.err.split())


def test_the_command_and_a_recipe_give_the_same_bytes(ckpt: Callable[..., Any]) -> None:
    given = adapters(dtype=torch.float32)
    options = {"method": "knots", "merge": "dare_ties", "density": 0.3, "rank": 5, "seed": 4}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    done = ckpt("lora", "concat", *given, *words, "-o", "out/")
    assert done.code == 0, done
    assert "lost by the rank" in done.out
    assert "lora_A" not in done.out
    assert "30 % of the values of each adapter's change are kept, at random" in " ".join(done.err.split())
    Path("recipe.yaml").write_text(json.dumps({"verb": "lora concat", "adapters": given, **options}))
    cs.apply(cs.load_plan("recipe.yaml"), "again/")
    name = "adapter_model.safetensors"
    assert Path("out", name).read_bytes() == Path("again", name).read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": [1.0]}, {"weights": [1.0, float("inf")]}, {"weights": []}, {"density": -0.1}, {"density": 2},
        {"density": float("nan")}, {"rank": 6}, {"rank": 0}, {"part": "C"}, {"transposed": True}, {"of": "product"},
        {"merge": "linear"},
    ],
)  # fmt: skip
def test_an_edited_plan_with_other_numbers_does_not_fit(changed: dict[str, Any]) -> None:
    inputs = [(2, 10), (12, 2), (3, 10), (12, 3)]
    good = Factor("A", 4, of=KNOTS, weights=(1.0, 0.5), density=0.5)
    assert good.fits((4, 10), inputs)
    assert Factor.from_json(good.to_json()) == good
    made = Factor.from_json({**good.to_json(), **changed})
    assert made is not None
    assert not made.fits((made.rank, 10), inputs)
    assert not good.fits((4, 10), [*inputs[:2], (3, 11), (12, 3)])
    assert not good.fits((4, 10), [*inputs[:2], (3, 10), (13, 3)])


def test_it_does_not_depend_on_the_sign_or_order_of_singular_vectors() -> None:
    """The same adapters with channels in another order give the same change in that order."""
    given = adapters((2, 2))
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    for one in given:
        found = load_file(f"{one}/adapter_model.safetensors")
        own = {key.removeprefix("base_model.model."): value for key, value in found.items()}
        own["q.lora_B.weight"] = own["q.lora_B.weight"][order]
        peft_folder(f"{one}-turned", own, target_modules=list(SHAPES))
    cs.apply(cs.lora_concat(given, method="knots"), "out/")
    cs.apply(cs.lora_concat([f"{one}-turned" for one in given], method="knots"), "turned/")
    assert far(change("turned", "q"), change("out", "q")[order]) < 1e-10
