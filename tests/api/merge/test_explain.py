"""``explain`` of a merge: how far models agree on a tensor, and how much of each change every method would keep."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...conftest import Result
from ...helpers.zoo import BY_NAME, LAYERS

KEY = "layers.1.weight"
MODELS = ["a.safetensors", "b.safetensors"]


def write(layers: int = 3) -> dict[str, torch.Tensor]:
    """A base, and two models that have changed other rows of each matrix: their changes are orthogonal."""
    draw = torch.Generator().manual_seed(0)
    base = {f"layers.{n}.weight": torch.randn(8, 16, generator=draw) for n in range(layers)}
    base |= {"norm": torch.ones(4), "steps": torch.tensor(3)}
    save_file(base, "base.safetensors")
    for place, name in enumerate(MODELS):
        model = {key: one.clone() for key, one in base.items()}
        for key in model:
            if key.endswith("weight"):
                model[key][4 * place : 4 * place + 4] += 0.01 * torch.randn(4, 16, generator=draw)
        save_file(model, name)
    return base


def explained(plan: cs.Plan, keys: str | list[str]) -> cs.ExplainedMerge:
    found = cs.explain(plan, keys)
    assert isinstance(found, cs.ExplainedMerge)
    return found


@pytest.mark.long
def test_the_share_of_each_change_that_methods_keep() -> None:
    write()
    plan = cs.merge(MODELS, method="task_arithmetic", base="base.safetensors", parameters={"weight": [0.5, 2.0]})
    (one,) = explained(plan, KEY).tensors
    assert (one.models, one.base) == (tuple(MODELS), "base.safetensors")
    assert one.changes is not None
    assert one.changes.sums.pairs[0, 1].cosine == pytest.approx(0, abs=1e-6)
    outcomes = {outcome.method: outcome for outcome in one.outcomes}
    assert [outcome.method for outcome in one.outcomes if outcome.is_planned] == ["task_arithmetic"]
    assert one.outcomes[0].kept == pytest.approx((0.5, 2.0), rel=1e-4)
    assert one.outcomes[0].changed == 1
    assert outcomes["linear"].kept == pytest.approx((0.5, 0.5), rel=1e-4)
    assert outcomes["dare_linear"].kept == pytest.approx((1, 1), rel=1e-4)
    assert (outcomes["pcb"].changed or 1) < 0.5
    assert outcomes["tall_mask"].why == "needs task"
    assert (outcomes["fisher"].why, outcomes["aim"].why) == (
        "needs statistics (fisher)",
        "needs statistics (magnitudes)",
    )
    assert {*outcomes} >= {"ties", "iso_c", "tsv_m", "slerp", "median"}


@pytest.mark.long
def test_the_plans_own_tensor_is_the_one_that_it_writes() -> None:
    base = write()
    how = {"weight": 1.0, "density": [0.2, 0.9]}
    plan = cs.merge(MODELS, method="ties", base="base.safetensors", parameters={**how, "lambda": 0.7})
    (one,) = explained(plan, KEY).tensors
    cs.apply(plan, "out.safetensors")
    change = load_file("out.safetensors")[KEY].double() - base[KEY].double()
    assert one.outcomes[0].change is not None
    assert one.outcomes[0].change.relative == pytest.approx(float(change.norm() / base[KEY].double().norm()), rel=1e-9)
    for share, name in zip(one.outcomes[0].kept, MODELS, strict=True):
        own = load_file(name)[KEY].double() - base[KEY].double()
        assert share == pytest.approx(float((change * own).sum() / (own * own).sum()), rel=1e-9)


@pytest.mark.long
def test_nothing_is_left_and_the_plan_can_still_be_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    os.mkdir("temp")
    monkeypatch.setattr(tempfile, "tempdir", os.path.abspath("temp"))
    before = {path.name: path.stat().st_mtime_ns for path in Path().iterdir() if path.is_file()}
    plan = cs.merge(MODELS, method="ties", base="base.safetensors")
    assert len(explained(plan, ["layers.*", "norm"]).tensors) == 4
    assert before == {path.name: path.stat().st_mtime_ns for path in Path().iterdir() if path.is_file()}
    assert not os.listdir("temp")
    assert cs.apply(plan, "out.safetensors").counts["merged"] == 4


def test_a_tensor_without_changes_to_compare_says_why() -> None:
    write()
    plan = cs.merge(MODELS, method="slerp", parameters={"t": 0.3})
    assert "the method slerp has no base" in explained(plan, KEY).tensors[0].why
    plan = cs.merge(MODELS, method="ties", base="base.safetensors")
    assert explained(plan, "steps").tensors[0].why == "the tensor is not merged"


@pytest.mark.long
def test_quantised_weights_are_decoded_or_the_reason_is_said() -> None:
    for seed, name in enumerate(["base.safetensors", *MODELS]):
        save_file(BY_NAME["fp8-block"].tensors(seed), name)
    key = f"{LAYERS[0]}.weight"
    plan = cs.merge(MODELS, method="task_arithmetic", base="base.safetensors", encoding="dequantize")
    (one,) = explained(plan, key).tensors
    assert not one.why
    assert all(share is not None and share > 1 for share in one.outcomes[0].kept)  # both lack the base's own values
    kept = cs.merge(MODELS, method="task_arithmetic", base="base.safetensors")
    assert "is a part of a quantised weight" in explained(kept, key).tensors[0].why


def test_what_cannot_be_explained_is_an_error() -> None:
    write(layers=20)
    plan = cs.merge(MODELS, method="ties", base="base.safetensors")
    with pytest.raises(cs.PatternError, match="matches none of the 22 output keys"):
        cs.explain(plan, "layer.1")
    with pytest.raises(cs.ConfigError, match="22 tensors.*at most 16"):
        cs.explain(plan, "**")
    with pytest.raises(cs.ConfigError, match="a plan of transplant or merge, but this is a plan of convert"):
        cs.explain(cs.convert("a.safetensors"), "**")


def test_the_command(ckpt: Callable[..., Result]) -> None:
    write()
    given = ("merge", *MODELS, "-m", "task_arithmetic", "--base", "base.safetensors", "--explain", KEY)
    done = ckpt(*given)
    assert done.code == 0, done.err
    for said in (KEY, "by task_arithmetic", "A and B", "how much of each change would a method keep?", "needs task"):
        assert said in done.out
    assert [line.split()[-4:] for line in done.out.splitlines() if line.lstrip().startswith("linear ")] == [
        ["50", "%", "50", "%"]
    ]
    found = json.loads(ckpt(*given, "--json").out)
    assert (found["kind"], found["tensors"][0]["outcomes"][0]["planned"]) == ("ckpt.explain_merge", True)
    assert ckpt(*given, "-o", "out.safetensors").code == 2
    assert not Path("out.safetensors").exists()
