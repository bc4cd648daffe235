"""Plans of adapters that were edited: a configuration that is not that of the tensors is never written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state

Plan = dict[str, Any]


@pytest.fixture
def plan() -> Plan:
    """A plan with factors of rank 4 for two layers and an embedding, a bias, and a norm that is saved."""
    base = base_state()
    torch.manual_seed(3)
    keys = ("layers.0.q.weight", "layers.0.q.bias", "layers.1.up.weight", "embed.weight", "norm.weight")
    save_file(base, "base.safetensors")
    save_file({**base, **{key: base[key] + torch.randn(base[key].shape) for key in keys}}, "tuned.safetensors")
    made = cs.lora_extract("tuned.safetensors", "base.safetensors", rank=4, embeddings=True, save_modules=True)
    return made.to_json()


def factors(plan: Plan, module: str) -> list[Plan]:
    return [step for step in plan["steps"] if module in step["key"] and step["op"] == "factor"]


def set_rank(plan: Plan, module: str, rank: int) -> None:
    for step in factors(plan, module):
        step["factor"]["rank"] = rank
        step["shape"][0 if step["factor"]["part"] == "A" else 1] = rank


def set_factor(name: str, value: Any, module: str = "layers.0.q") -> Callable[[Plan], Any]:
    return lambda plan: [step["factor"].update({name: value}) for step in factors(plan, module)]


def rename(plan: Plan, old: str, new: str, number: int = 9) -> None:
    for step in [step for step in plan["steps"] if old in step["key"]][:number]:
        step["key"] = step["key"].replace(old, new)


def drop(plan: Plan, what: str) -> None:
    plan["steps"] = [step for step in plan["steps"] if what not in step["key"]]
    plan["counts"] = {
        kind: sum(step["class"] == kind for step in plan["steps"])
        for kind in dict.fromkeys(step["class"] for step in plan["steps"])
    }


def set_config(plan: Plan, **change: Any) -> None:
    (companion,) = plan["target"]["companions"]
    text = json.dumps({**json.loads(companion["text"]), **change})
    companion.update(text=text, size=len(text), sha256=hashlib.sha256(text.encode()).hexdigest())


EDITS: dict[str, tuple[Callable[[Plan], Any], str]] = {
    "another rank": (lambda p: set_rank(p, "layers.0.q", 2), "alpha_pattern"),
    "another rank for all": (lambda p: set_rank(p, "", 2), "lora_alpha"),
    "another rank for one factor": (lambda p: factors(p, "up")[0]["factor"].update(rank=2), "different inputs or settings"),
    "another scale": (set_factor("scale", 2.0), "alpha_pattern"),
    "another start": (lambda p: factors(p, "up")[0]["factor"].update(seed=7), "different inputs or settings"),
    "another tensor for one factor": (
        lambda p: factors(p, "up")[0].update({"from": {**factors(p, "up")[0]["from"], "key": "layers.0.up.weight"}}),
        "different inputs or settings",
    ),
    "another module": (lambda p: rename(p, "layers.1.up.lora", "layers.0.up.lora"), "target_modules"),
    "another module for one factor": (lambda p: rename(p, "q.lora_A", "x.lora_A", 1), "does not have exactly one factor A and one factor B"),
    "a factor that is an embedding's": (lambda p: rename(p, "q.lora_A.weight", "q.lora_embedding_A"), "one factor A"),
    "a name that is no factor's": (lambda p: rename(p, "q.lora_A.weight", "q.A"), "is not a PEFT name"),
    "a tensor that is called a factor": (lambda p: rename(p, "norm.weight", "norm.lora_A.weight"), "not a PEFT name"),
    "a layer less": (lambda p: drop(p, "layers.1.up"), "target_modules"),
    "a factor less": (lambda p: drop(p, "layers.1.up.lora_A"), "does not have exactly one factor A and one factor B"),
    "no factor": (lambda p: drop(p, "lora_"), "it has no factors"),
    "a bias less": (lambda p: drop(p, "bias"), "bias"),
    "a saved tensor less": (lambda p: drop(p, "norm"), "modules_to_save"),
    "a factor that lies the other way": (set_factor("transposed", True), "some of its factors are transposed"),
    "another rank in the configuration": (lambda p: set_config(p, r=8), "has 8 for r, but the factors that it writes need 4"),
    "another alpha in the configuration": (lambda p: set_config(p, lora_alpha=8), "lora_alpha"),
    "a true rank": (lambda p: set_config(p, r=4.0), "has 4.0 for r"),
    "other targets": (lambda p: set_config(p, target_modules="all-linear"), "target_modules"),
    "rslora": (lambda p: set_config(p, use_rslora=True), "use_rslora"),
    "dora": (lambda p: set_config(p, use_dora=True), "use_dora"),
    "a setting that changes the base": (lambda p: set_config(p, layer_replication=[[0, 1]]), "layer_replication"),
    "another kind": (lambda p: set_config(p, peft_type="LOHA"), "peft_type"),
    "no configuration": (lambda p: p["target"].pop("companions"), "not as the files adapter_model.safetensors and"),
    "no configuration, another verb": (
        lambda p: (p["target"].pop("companions"), p.update(verb="rename")), "not as the files adapter_model.safetensors",
    ),
    "another file": (lambda p: p["target"].update(weights="model.safetensors"), "not as the files adapter_model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_adapter_whose_configuration_is_of_another_is_refused(name: str, plan: Plan, ckpt: Any) -> None:
    edit, why = EDITS[name]
    edit(plan)
    Path("plan.json").write_text(json.dumps(plan))
    done = ckpt("apply", "plan.json", "-o", "a/")
    assert done.code == 4, done
    assert why in " ".join(done.err.split())
    assert not Path("a").exists()


def test_an_edit_that_is_said_in_both_places_is_made(plan: Plan) -> None:
    set_rank(plan, "layers.0.q", 2)
    set_config(plan, rank_pattern={r"^layers\.0\.q": 2}, alpha_pattern={r"^layers\.0\.q": 2}, task_type="CAUSAL_LM")
    Path("plan.json").write_text(json.dumps(plan))
    receipt = cs.apply("plan.json", "a/")
    assert {fit.key: fit.rank for fit in receipt.fits}["layers.0.q.weight"] == 2
    assert cs.verify("a").ok
    cs.apply(cs.lora_merge("base.safetensors", "a"), "out.safetensors")
    base, found, tuned = (load_file(f"{name}.safetensors") for name in ("base", "out", "tuned"))
    (error,) = (fit.error for fit in receipt.fits if fit.key == "layers.0.q.weight")
    lost = (found["layers.0.q.weight"] - tuned["layers.0.q.weight"]).norm()
    assert float(lost / (tuned["layers.0.q.weight"] - base["layers.0.q.weight"]).norm()) == pytest.approx(
        error, rel=1e-3
    )
    assert torch.equal(found["norm.weight"], tuned["norm.weight"])
