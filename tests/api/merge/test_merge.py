"""``merge``: what a method gives, tensor by tensor; values by model, by pattern, by layer; nothing that is not said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.engine import apply_settings

Run = Callable[..., Any]
MODELS = ["a.pth", "b.pth"]


def write(number: int = 2, layers: int = 4, **change: Any) -> list[dict[str, torch.Tensor]]:
    states = []
    for i in range(number):
        torch.manual_seed(i)
        state = {"embed.weight": torch.randn(6, 4)}
        for layer in range(layers):
            state[f"layers.{layer}.mlp.weight"] = torch.randn(5, 4)
            state[f"layers.{layer}.norm.weight"] = torch.randn(4)
        states.append({**state, "head.weight": torch.randn(6, 4), **change})
        torch.save(states[-1], f"{'abcde'[i]}.pth")
    return states


def merged(**how: Any) -> dict[str, torch.Tensor]:
    cs.apply(cs.merge(MODELS, **how), "out.pth", force=True)
    assert cs.verify("out.pth").ok
    found: dict[str, torch.Tensor] = torch.load("out.pth", weights_only=True)
    return found


def share(found: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> float:
    """How much of the first there is in what was merged linearly."""
    return float(((found - second) / (first - second)).median())


def test_the_weighted_mean_is_torch_s() -> None:
    first, second = write()
    found = merged(method="linear", weights=[1, 3])
    for key, value in found.items():
        assert torch.allclose(value, 0.25 * first[key] + 0.75 * second[key], rtol=1e-6, atol=1e-7), key
    assert list(found) == list(first)


@pytest.mark.costly
@pytest.mark.parametrize("elements", [1, 3, 7, 1 << 17])
def test_slices_of_any_size_give_the_same(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write()
    whole = merged(method="linear", weights=[0.3, 0.7])
    monkeypatch.setattr(apply_settings, "ELEMENTS", elements)
    cut = merged(method="linear", weights=[0.3, 0.7])
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_the_last_pattern_that_matches_wins() -> None:
    first, second = write()
    found = merged(method="linear", weight={"**": [1, 1], "layers": [1, 3], "layers.*.norm": [1, 0]})
    wanted = {"embed.weight": 0.5, "layers.1.mlp.weight": 0.25, "layers.2.norm.weight": 1.0, "head.weight": 0.5}
    for key, part in wanted.items():
        assert share(found[key], first[key], second[key]) == pytest.approx(part, abs=1e-4), key


def test_a_gradient_runs_from_the_first_layer_to_the_last() -> None:
    write(layers=5)
    plan = cs.merge(MODELS, method="linear", parameters=["weight=1,1", "weight:layers=[1, 3, 5]"])
    weights = {step.key: step.merge.parameters["weight"] for step in plan.steps if step.merge is not None}
    assert [weights[f"layers.{n}.mlp.weight"] for n in range(5)] == [(n, n) for n in (1, 2, 3, 4, 5)]
    assert weights["embed.weight"] == (1, 1)


def test_embeddings_count_as_the_first_layer_and_the_rest_as_the_last() -> None:
    write()
    plan = cs.merge(MODELS, method="linear", weight={"gradient": [1, 5]})
    weights = {step.key: step.merge.parameters["weight"][0] for step in plan.steps if step.merge is not None}
    assert (weights["embed.weight"], weights["head.weight"], weights["layers.3.norm.weight"]) == (1, 5, 5)


def test_the_command_line_and_python_plan_the_same(ckpt: Run) -> None:
    write()
    said = ckpt(
        "merge", *MODELS, "-m", "linear", "--weights", "1,2", "--param", "weight:layers.*.mlp=0,1", "-n", "--json"
    )
    plan = cs.merge(MODELS, method="linear", weight={"**": [1, 2], "layers.*.mlp": [0, 1]})
    assert json.loads(said.out) == plan.to_json()


def test_a_plan_that_was_kept_is_carried_out(ckpt: Run) -> None:
    write()
    Path("p.json").write_text(ckpt("merge", *MODELS, "-m", "linear", "--weights", "1,2", "-n", "--json").out)
    assert ckpt("apply", "p.json", "-o", "from_plan.pth").code == 0
    kept, now = torch.load("from_plan.pth"), merged(method="linear", weights=[1, 2])
    assert all(torch.equal(kept[key], now[key]) for key in now)


def test_an_edited_plan_is_refused(ckpt: Run) -> None:
    write()
    data = cs.merge(MODELS, method="linear", weights=[1, 2]).to_json()
    for change in (
        {"method": "nothing"}, {"parameters": {"wait": [1, 2]}}, {"compute": "float8"}, {"parameters": 3},
        {"base": True}, {"base": "false"}, {"method": "arcee_fusion", "parameters": {}},
        {"method": "ties", "parameters": {"weight": [1, 1]}}, {"method": "slerp", "parameters": {"t": 0.5}, "base": True},
        {"parameters": {"weight": [10**400, 1]}},
    ):  # fmt: skip
        step = {**data["steps"][0], "merge": {**data["steps"][0]["merge"], **change}}
        Path("p.json").write_text(json.dumps({**data, "steps": [step, *data["steps"][1:]]}))
        done = ckpt("apply", "p.json", "-o", "out.pth")
        assert done.code in (2, 4), done
        assert not Path("out.pth").exists()


def test_a_plan_that_lacks_a_parameter_is_refused(ckpt: Run) -> None:
    write()
    data = cs.merge(MODELS[1:], base=MODELS[0], method="dare_ties", weights=[2], density=0.5).to_json()
    del data["steps"][0]["merge"]["parameters"]["weight"]
    Path("p.json").write_text(json.dumps(data))
    done = ckpt("apply", "p.json", "-o", "out.pth")
    assert done.code == 4
    assert "the plan lacks the parameter weight of the merge method dare_ties for" in " ".join(done.err.split())
    assert "Make a new plan" in done.err
    assert not Path("out.pth").exists()


def test_verify_finds_one_value_that_is_not_merged_so() -> None:
    write()
    plan = cs.merge(MODELS, method="linear", weights=[1, 2])
    state = merged(method="linear", weights=[1, 2])
    state["layers.2.mlp.weight"][3, 1] += 1e-5
    torch.save(state, "other.pth")
    (fault,) = cs.verify("other.pth", plan=plan).failed
    assert fault.key == "layers.2.mlp.weight"


def test_a_sample_is_computed_again_and_the_rest_is_said_not_to_be(ckpt: Run) -> None:
    write(layers=10)
    merged(method="linear", weights=[1, 2])
    found = cs.verify("out.pth", sample=4)
    assert found.ok
    assert (found.compared, len(found.not_compared or {})) == (4, 18)
    assert "--sample 4" in " ".join(ckpt("verify", "out.pth", "--sample", "4").out.split())
    assert cs.verify("out.pth", sample=0).compared == 0
    assert cs.verify("out.pth", sample=99).compared == 22
    assert ckpt("verify", "out.pth", "--sample", "-1").code == 2


def test_double_precision_stays() -> None:
    write(wide=torch.full((3,), 1 + 2**-40, dtype=torch.float64))
    assert merged(method="linear", weights=[1, 1])["wide"].tolist() == [1 + 2**-40] * 3


def test_computing_in_double_precision_rounds_once() -> None:
    torch.save({"w": torch.tensor([1.0, 2.0**24])}, "a.pth")
    torch.save({"w": torch.tensor([3.0, 3.0])}, "b.pth")
    found = merged(method="linear", weights=[1, 1], normalize=False, compute="float64")["w"]
    assert found.tolist() == [4.0, 2.0**24 + 4]


def test_what_becomes_infinite_is_said(ckpt: Run) -> None:
    torch.save({"w": torch.tensor([1.0, 2.0, float("inf")])}, "a.pth")
    torch.save({"w": torch.tensor([0.0, 0.0, 1.0])}, "b.pth")
    done = ckpt("merge", *MODELS, "-m", "linear", "--weights", "3e38,1", "--param", "normalize=false", "-o", "o.pth")
    assert "1 value of w became infinite or NaN" in " ".join((done.out + done.err).split()), done


def test_what_a_merge_makes_nan_of_finite_values_is_said(ckpt: Run) -> None:
    """The angle to a model with one NaN is none, and so is each point on the way there."""
    torch.save({"w": torch.tensor([1.0, 2.0, 3.0, float("nan")])}, "a.pth")
    torch.save({"w": torch.tensor([3.0, -2.0, 1.0, 0.0])}, "b.pth")
    done = ckpt("merge", *MODELS, "-m", "slerp", "--param", "t=0.5", "-o", "o.pth", "--json")
    assert json.loads(done.out)["notes"] == [
        "a.pth: 1 small tensor has NaN or infinite values: w",
        "3 values of w became infinite or NaN",
        "NaN and infinite values come from the inputs: w (1 value)",
    ], done
    assert json.loads(ckpt("verify", "o.pth", "--json").out)["nan"] == 4


@pytest.mark.parametrize("how", [{"seed": "q"}, {"seed": -1}, {"parameters": ["weight=1,1", "weight=1,2"]}])
def test_what_is_no_argument_is_said(how: dict[str, Any]) -> None:
    write()
    with pytest.raises(cs.ConfigError):
        cs.merge(MODELS, method="linear", **how)


BAD = {
    "no models": ([], ["-m", "linear"], 2, "models"),
    "one model": (MODELS[:1], ["-m", "linear", "--weights", "1"], 2, "only one model is given, so there is nothing to merge it with. Give another model."),
    "one model to karcher": (MODELS[:1], ["-m", "karcher"], 2, "nothing to merge it with"),
    "one model to median": (MODELS[:1], ["-m", "median"], 2, "nothing to merge it with"),
    "one model without its base": (MODELS[:1], ["-m", "multislerp", "--weights", "1"], 2, "or a base with --base"),
    "no method": (MODELS, [], 2, "method"),
    "an unknown method": (MODELS, ["-m", "linaer"], 2, "Did you mean linear?"),
    "no weights": (MODELS, ["-m", "linear"], 2, "--weights"),
    "weights that sum to zero": (MODELS, ["-m", "linear", "--weights", "1,-1"], 4, "sum to zero"),
    "too many weights": (MODELS, ["-m", "linear", "--weights", "1,1,1"], 2, "3 values for 2 models"),
    "one weight": (MODELS, ["-m", "linear", "--weights", "nan,1"], 2, "weight"),
    "an unknown parameter": (MODELS, ["-m", "linear", "--weights", "1,1", "--param", "normalise=true"], 2, "normalize?"),
    "another kind": (MODELS, ["-m", "linear", "--weights", "1,1", "--param", "normalize=3"], 2, "true or false"),
    "given twice": (MODELS, ["-m", "linear", "--weights", "1,1", "--param", "weight"], 2, "NAME=VALUE"),
    "a pattern that matches nothing": (MODELS, ["-m", "linear", "--weights", "1,1", "--param", "weight:layer=1"], 2, "layers"),
    "a base": (MODELS, ["-m", "linear", "--weights", "1,1", "--base", "a.pth"], 2, "does not use a base"),
    "an unknown policy": (MODELS, ["-m", "linear", "--weights", "1,1", "--on-missing", "zero"], 2, "error, base, skip, any"),
    "an integer dtype": (MODELS, ["-m", "linear", "--weights", "1,1", "--dtype", "int8"], 2, "int8"),
    "a missing model": (["a.pth", "z.pth"], ["-m", "linear", "--weights", "1,1"], 3, "z.pth"),
    "no size": (MODELS, ["-m", "linear", "--weights", "1,1", "--memory", "lots"], 2, "--memory lots"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "how"),
    [("passthrough", {"scale": 0.5}), ("multislerp", {"base": MODELS[1], "weight": 1}), ("ties", {"base": MODELS[1]})],
)
def test_one_model_is_merged_with_its_base_or_passed_through(method: str, how: dict[str, Any]) -> None:
    first = write()[0]
    cs.apply(cs.merge(MODELS[:1], method=method, **how), "out.pth")
    factor = how.get("scale", 1.0)
    for key, value in torch.load("out.pth", weights_only=True).items():
        assert torch.allclose(value, factor * first[key], atol=1e-6), key


@pytest.mark.parametrize("case", BAD)
def test_bad_input_says_what_to_do(case: str, ckpt: Run) -> None:
    write()
    models, options, code, said = BAD[case]
    done = ckpt("merge", *models, *options, "-o", "out.pth")
    assert done.code == code, done
    assert said in " ".join(done.err.split()), done
    assert not Path("out.pth").exists()


def test_the_methods_are_listed_with_papers_and_parameters(ckpt: Run) -> None:
    data = json.loads(ckpt("merge", "--list", "--json").out)
    linear = next(one for one in data["methods"] if one["name"] == "linear")
    assert linear["paper"].startswith("https://")
    assert {one["name"] for one in linear["parameters"]} == {"weight", "normalize"}
    assert all(one["summary"] and one["paper"] for one in data["methods"])
