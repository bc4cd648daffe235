"""The page before a merge: its figures against numpy's formulas, its order, its bounds, and what it refuses."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.merge_survey import MergeSurvey, MethodSurvey
from ckptsurgeon.api.merge import method_samples
from ckptsurgeon.api.merge.sampled_tensors import sample_boxes

from ...conftest import Result
from ...helpers.zoo import BY_NAME, LAYERS

MODELS = ["a.safetensors", "b.safetensors", "c.safetensors"]
ROLES = ("attn.weight", "mlp.weight")
FIGHT = "model.layers.2.mlp.weight"
"""The tensor that b changes in the opposite direction."""

Array = npt.NDArray[np.float64]


def write(fights: float = -1.0) -> None:
    """Write a base, and three models whose changes agree in part; those of b are turned round in one tensor."""
    draw = torch.Generator().manual_seed(0)
    base = {f"model.layers.{n}.{role}": torch.randn(24, 16, generator=draw) for n in range(4) for role in ROLES}
    base |= {"model.norm.weight": torch.ones(16), "steps": torch.tensor(3)}
    save_file(base, "base.safetensors")
    weights = [key for key in base if key != "steps"]
    common = {key: torch.randn(base[key].shape, generator=draw) for key in weights}
    for name in MODELS:
        sign = {key: fights if (name, key) == (MODELS[1], FIGHT) else 1.0 for key in weights}
        own = {key: torch.randn(base[key].shape, generator=draw) for key in weights}
        moved = {key: base[key] + 0.01 * (sign[key] * common[key] + 0.5 * own[key]) for key in weights}
        save_file({**base, **moved}, name)


def changes_of(name: str) -> dict[str, Array]:
    """The changes of a model, in double precision."""
    base = load_file("base.safetensors")
    weights = (key for key in base if key != "steps")
    return {key: load_file(name)[key].double().numpy() - base[key].double().numpy() for key in weights}


def planned(method: str = "ties", **parameters: object) -> cs.Plan:
    return cs.merge(MODELS, method=method, base="base.safetensors", parameters=parameters)


def surveyed(plan: cs.Plan) -> MergeSurvey:
    survey = cs.view(plan).merge
    assert survey is not None
    return survey


def of(survey: MergeSurvey, method: str) -> MethodSurvey:
    return next(one for one in survey.methods if one.method == method)


def flat(some: dict[str, Array]) -> Array:
    return np.concatenate([one.ravel() for one in some.values()])


def test_agreement_is_that_of_numpy_and_of_diff() -> None:
    write()
    survey = surveyed(planned())
    apart = cs.compare_changes("base.safetensors", MODELS)
    assert {one.key: one.sums for one in survey.changes.tensors} == {
        one.key: one.sums for one in apart.tensors if one.is_weight
    }
    a, b = flat(changes_of(MODELS[0])), flat(changes_of(MODELS[1]))
    found = survey.changes.total.pairs[0, 1]
    assert found.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)
    assert found.share_of_same_sign == pytest.approx(np.mean(a * b > 0), rel=1e-9)


def test_a_planted_fight_comes_first_with_its_tensor() -> None:
    write()
    survey = surveyed(planned())
    first, second, *others = survey.conflicts
    assert {(one.name, one.pair) for one in (first, second)} == {
        ("model.layers.2", (0, 1)), ("model.layers.2", (1, 2)),
    }  # fmt: skip
    assert [one.name for one in first.tensors] == [FIGHT]
    assert first.weight >= second.weight >= max((one.weight for one in others), default=0)
    a, b = changes_of(MODELS[first.pair[0]]), changes_of(MODELS[first.pair[1]])
    norms = [float(np.linalg.norm(one)) for one in (a[FIGHT], b[FIGHT], flat(a), flat(b))]
    cosine = float((a[FIGHT] * b[FIGHT]).sum()) / norms[0] / norms[1]
    assert first.agreement.cosine == pytest.approx(cosine, rel=1e-9)
    signs = 1 - 2 * float(np.mean(a[FIGHT] * b[FIGHT] > 0))
    share = norms[0] * norms[1] / norms[2] / norms[3]
    assert first.weight == pytest.approx(max(-cosine, signs) * share, rel=1e-9)


def test_a_fight_of_large_changes_counts_more_than_one_of_small_changes() -> None:
    write()
    small, base = "model.layers.1.attn.weight", load_file("base.safetensors")
    model = load_file(MODELS[1])
    model[small] = base[small] - 0.05 * (load_file(MODELS[0])[small] - base[small])
    save_file(model, MODELS[1])
    found = [one for one in surveyed(planned()).conflicts if one.pair == (0, 1)]
    assert [one.name for one in found[:2]] == ["model.layers.2", "model.layers.1"]
    assert (found[1].agreement.cosine or 0) < (found[0].agreement.cosine or 0)


@pytest.mark.long
def test_layers_after_the_fiftieth_are_counted() -> None:
    base = {f"layers.{n}.weight": torch.zeros(8, 8) for n in range(60)}
    save_file(base, "base.safetensors")
    for name, by in (("a.safetensors", 1), ("b.safetensors", -1)):
        save_file({key: one + by for key, one in base.items()}, name)
    page = cs.view(cs.merge(MODELS[:2], method="ties", base="base.safetensors"))
    assert page.merge is not None
    listed = page.merge.to_json()
    assert (len(listed["conflicts"]), listed["more_conflicts"], len(page.merge.conflicts)) == (50, 10, 60)
    assert listed["opposition"] == pytest.approx(1)
    assert sum(one["weight"] for one in listed["conflicts"]) == pytest.approx(50 / 60)


@pytest.mark.parametrize(("size", "cosine", "is_listed"), [(256, -0.04, False), (256, -0.06, True), (8, -0.3, False)])
def test_weak_opposition_and_chance_are_not_listed(size: int, cosine: float, is_listed: bool) -> None:
    """Changes must oppose each other by more than 5 %, and by more than random changes of as many values."""
    along = torch.linalg.qr(torch.randn(size * size, 2, generator=torch.Generator().manual_seed(0))).Q
    changes = (along[:, 0], cosine * along[:, 0] + (1 - cosine**2) ** 0.5 * along[:, 1])
    for name, change in zip(("base", "a", "b"), (torch.zeros(size * size), *changes), strict=True):
        save_file({"layers.0.weight": change.reshape(size, size).clone()}, f"{name}.safetensors")
    survey = surveyed(cs.merge(MODELS[:2], method="ties", base="base.safetensors"))
    assert survey.changes.total.pairs[0, 1].cosine == pytest.approx(cosine, abs=1e-3)
    assert bool(survey.conflicts) == is_listed


def test_models_that_agree_do_not_fight() -> None:
    write(fights=1.0)
    assert not [one for one in surveyed(planned()).conflicts if "layers" in one.name]


@pytest.mark.long
def test_what_task_arithmetic_and_linear_keep_is_that_of_numpy() -> None:
    write()
    weights = [0.2, 0.5, 1.0]
    survey = surveyed(planned("task_arithmetic", weight=weights))
    deltas = [flat(changes_of(name)) for name in MODELS]
    mean = float(np.mean([np.linalg.norm(one) for one in deltas]))
    for method, factors in (("task_arithmetic", weights), ("linear", [one / 1.7 for one in weights])):
        merged = sum(factor * delta for factor, delta in zip(factors, deltas, strict=True))
        found = of(survey, method)
        assert found.norm == pytest.approx(float(np.linalg.norm(merged)) / mean, rel=1e-4)
        kept = [float(delta @ merged / (delta @ delta)) for delta in deltas]
        assert [one.kept for one in found.models] == pytest.approx(kept, rel=1e-4)
    assert [one.trimmed for one in of(survey, "task_arithmetic").models] == [1, 1, 1]
    assert (survey.sampled, survey.values) == (len(deltas[0]), len(deltas[0]))


def test_what_ties_trims_and_elects_is_that_of_numpy() -> None:
    write()
    survey = surveyed(planned("ties", density=0.25))
    left, elected, changed = np.zeros(3), np.zeros(3), 0
    every = [changes_of(name) for name in MODELS]
    for key in every[0]:
        deltas = np.stack([one[key].ravel() for one in every])
        kept = np.zeros_like(deltas)
        for row, delta in enumerate(deltas):
            largest = np.argsort(-abs(delta), kind="stable")[: int(0.25 * delta.size)]
            kept[row, largest] = delta[largest]
        sign = np.copysign(1, kept.sum(0))
        left += np.count_nonzero(kept, axis=1)
        elected += np.count_nonzero(kept * sign > 0, axis=1)
        changed += deltas.shape[1]
    found = of(survey, "ties")
    assert found.is_planned
    assert found.parameters == {"density": 0.25}
    assert [one.trimmed for one in found.models] == pytest.approx(list(left / changed), abs=1e-3)
    assert [one.elected for one in found.models] == pytest.approx(list(elected / changed), abs=1e-3)


@pytest.mark.long
def test_other_methods_get_the_weights_and_the_density_of_the_plan() -> None:
    write()
    survey = surveyed(planned("dare_ties", density=0.3, weight=[1, 2, 3]))
    assert survey.methods[0].method == "dare_ties"
    assert of(survey, "ties").parameters == {"weight": (1.0, 2.0, 3.0), "density": 0.3}
    assert of(survey, "breadcrumbs").models[0].trimmed == pytest.approx(0.3, abs=0.01)
    assert of(surveyed(planned("task_arithmetic")), "ties").parameters == {"density": 0.5}
    assert of(survey, "della").models[0].trimmed == pytest.approx(0.3, abs=0.03)


def test_methods_that_samples_do_not_show_say_why() -> None:
    write()
    survey = surveyed(planned())
    assert "factorises whole matrices" in of(survey, "iso_c").why
    assert of(survey, "slerp").why == "merges 2 models"
    assert of(survey, "tall_mask").why == "needs task"
    assert not {"regmean", "fisher", "passthrough"} & {one.method for one in survey.methods}


def test_what_the_planned_method_keeps_is_what_the_merge_keeps() -> None:
    write()
    plan = planned("sce", select_topk=0.4)
    found = of(surveyed(plan), "sce")
    cs.apply(plan, "out.safetensors")
    merged, deltas = flat(changes_of("out.safetensors")), [flat(changes_of(name)) for name in MODELS]
    assert [one.kept for one in found.models] == pytest.approx([d @ merged / (d @ d) for d in deltas], rel=1e-3)
    assert 0.35 < (found.models[0].trimmed or 0) <= 0.4
    assert (found.models[0].elected or 0) < (found.models[0].trimmed or 0)


@pytest.mark.long
def test_samples_are_bounded_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    whole = of(surveyed(planned("task_arithmetic")), "task_arithmetic")
    assert whole.norm is not None
    monkeypatch.setattr(method_samples, "LARGEST", 64)
    survey = surveyed(planned("task_arithmetic"))
    assert survey.sampled == 8 * 64 + 16
    assert survey.values == 8 * 24 * 16 + 16
    assert of(survey, "task_arithmetic").norm == pytest.approx(whole.norm, rel=0.05)


@pytest.mark.long
def test_memory_does_not_grow_with_the_models() -> None:
    for seed, name in enumerate(("base.safetensors", *MODELS[:2])):
        draw = torch.Generator().manual_seed(seed)
        save_file({"layers.0.weight": torch.randn(2048, 2048, generator=draw)}, name)
    plan = cs.merge(MODELS[:2], method="ties", base="base.safetensors")
    tracemalloc.start()
    try:
        survey = surveyed(plan)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert survey.sampled == method_samples.LARGEST
    assert peak < 12 << 20  # one of the three tensors has 16 MiB


def test_of_many_tensors_some_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    monkeypatch.setattr(method_samples, "TENSORS", 3)
    survey = surveyed(planned("task_arithmetic"))
    assert survey.sampled == 3 * 24 * 16
    assert len(survey.changes.tensors) == 9


@pytest.mark.parametrize("shape", [(), (7,), (1000,), (30, 40), (5, 6, 7), (2, 3, 400), (3, 1, 1, 500), (0, 4)])
def test_a_sample_has_whole_rows_and_no_element_twice(shape: tuple[int, ...]) -> None:
    most = 64
    boxes, sampled = sample_boxes(shape, most)
    seen = np.zeros(shape, int)
    for box in boxes:
        seen[tuple(slice(*one) for one in box)] += 1
    assert seen.max(initial=0) <= 1
    assert seen.sum() == prod(sampled) <= most
    assert prod(sampled) == prod(shape) or prod(sampled) > most // 2
    if len(shape) > 1 and shape[-1] <= most:
        assert sampled[-1] == shape[-1]


def test_values_that_are_not_finite_are_left_out() -> None:
    write()
    model = load_file(MODELS[0])
    model[FIGHT][0, 0] = float("nan")
    save_file(model, MODELS[0])
    survey = surveyed(planned())
    assert survey.changes.total.not_finite == 1
    assert all(one.kept is not None for one in of(survey, "ties").models)


@pytest.mark.long
def test_quantised_models_are_decoded() -> None:
    for seed, name in enumerate(["base.safetensors", *MODELS[:2]]):
        save_file(BY_NAME["fp8-block"].tensors(seed), name)
    key = f"{LAYERS[0]}.weight"
    for encoding in ("keep", "dequantize"):
        plan = cs.merge(MODELS[:2], method="ties", base="base.safetensors", encoding=encoding)
        survey = surveyed(plan)
        assert survey.changes.models == tuple(MODELS[:2])
        assert not survey.changes.not_compared
        (found,) = [one.sums.pairs[0, 1] for one in survey.changes.tensors if one.key == key]
        apart = cs.compare_changes("base.safetensors", MODELS[:2], include=key)
        assert found == apart.tensors[0].sums.pairs[0, 1]


def test_tensors_of_other_shapes_are_listed_with_the_reason() -> None:
    write()
    model = load_file(MODELS[0])
    model["model.norm.weight"] = torch.ones(20)
    save_file(model, MODELS[0])
    plan = cs.merge(MODELS, method="ties", base="base.safetensors", on_mismatch="slice")
    survey = surveyed(plan)
    assert "shapes or vocabularies of the models differ" in survey.changes.not_compared["model.norm.weight"]
    assert len(survey.changes.tensors) == 8


def test_a_model_that_lacks_a_tensor_keeps_its_place() -> None:
    write(fights=1.0)
    lacking = {key: one for key, one in load_file(MODELS[0]).items() if key != "model.layers.0.attn.weight"}
    save_file(lacking, MODELS[0])
    plan = cs.merge(MODELS, method="task_arithmetic", base="base.safetensors", on_missing="any", weight=[0.1, 0.2, 0.3])
    survey = surveyed(plan)
    assert survey.changes.models == tuple(MODELS)
    sums = {one.key: one.sums for one in survey.changes.tensors}
    assert list(sums["model.layers.0.attn.weight"].models) == [1, 2]
    kept = [one.kept or 0 for one in of(survey, "task_arithmetic").models]
    assert kept[0] < kept[1] < kept[2]


@pytest.mark.long
def test_models_in_memory_and_models_given_twice_have_a_page() -> None:
    write()
    tensors = [load_file(name) for name in ("base.safetensors", *MODELS[:2])]
    survey = surveyed(cs.merge(tensors[1:], method="ties", base=tensors[0]))
    assert survey.conflicts[0].tensors[0].name == FIGHT
    twice = surveyed(cs.merge([MODELS[0], MODELS[0]], method="ties", base="base.safetensors"))
    assert twice.changes.models == (MODELS[0], MODELS[0])
    assert twice.changes.total.pairs[0, 1].cosine == pytest.approx(1)


def test_a_recipe_of_mergekit_has_a_page() -> None:
    write()
    Path("recipe.yaml").write_text(
        "merge_method: dare_ties\nbase_model: base.safetensors\nmodels:\n"
        "  - {model: a.safetensors, parameters: {weight: 0.5, density: 0.4}}\n"
        "  - {model: b.safetensors, parameters: {weight: 0.5, density: 0.4}}\n"
    )
    survey = surveyed(cs.merge("recipe.yaml"))
    assert survey.methods[0].parameters == {"weight": 0.5, "density": 0.4}
    assert survey.conflicts[0].tensors[0].name == FIGHT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"models": MODELS[:1], "method": "ties", "base": "base.safetensors"}, "this merge has one model"),
        (
            {"models": MODELS, "method": "linear", "weights": [1, 1, 1]},
            "the method linear has no base.*task_arithmetic",
        ),
    ],
)
def test_a_merge_without_changes_to_compare_is_refused(arguments: dict[str, object], said: str) -> None:
    write()
    with pytest.raises(cs.ConfigError, match=said):
        cs.view(cs.merge(**arguments))  # type: ignore[arg-type]


def test_other_plans_and_arguments_are_refused() -> None:
    write()
    with pytest.raises(cs.ConfigError, match="a plan of convert"):
        cs.view(cs.convert("a.safetensors"))
    for given, said in (
        ({"stats": True}, "has no statistics"),
        ({"check": True}, "has no checks"),
        ({"values": False}, "compares all values"),
        ({"root": "x"}, "takes the dotted path of the state dict from the plan"),
    ):
        with pytest.raises(cs.ConfigError, match=f"a page about a plan {said}"):
            cs.view(planned(), **given)  # type: ignore[arg-type]
    for others, said in ((["a.safetensors"], "no second checkpoint"), ([None, "absent"], "no further checkpoints")):
        with pytest.raises(cs.ConfigError, match=said):
            cs.view(planned(), *others)  # type: ignore[arg-type]


def test_the_plan_can_still_be_applied_and_no_input_is_overwritten() -> None:
    write()
    plan = planned()
    cs.view(plan, output="page.html")
    with pytest.raises(cs.OutputError):
        cs.view(plan, output="base.safetensors", force=True)
    assert cs.apply(plan, "out.safetensors").counts["merged"] == 9


def test_the_command(ckpt: Callable[..., Result]) -> None:
    write()
    given = ("merge", *MODELS, "-m", "ties", "--base", "base.safetensors", "--param", "density=0.25")
    done = ckpt(*given, "--page", "page.html")
    assert done.code == 0, done.err
    assert "wrote page.html" in done.out
    found = json.loads(ckpt(*given, "--page", "page.html", "--force", "--json").out)
    assert found["merge"]["conflicts"][0]["tensors"][0]["name"] == FIGHT
    assert found["merge"]["methods"][0]["planned"]
    assert found["merge"]["changes"]["models"] == MODELS
    for more, said in (
        (("-o", "out.safetensors"), "--page writes only the page"),
        (("--explain", FIGHT), "--page and --explain contradict each other"),
    ):
        done = ckpt(*given, "--page", "other.html", *more)
        assert (done.code, said in done.err) == (2, True)
    assert "is not a valid name for a page" in ckpt(*given, "--page", "page.txt").err
    assert not Path("out.safetensors").exists()
    assert not Path("other.html").exists()
