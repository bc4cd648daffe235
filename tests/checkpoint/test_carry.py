"""Entries beside the tensors: named at every level, carried to the same place, never over a tensor."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs

T = torch.ones(2)


def carried(value: Any, root: str | None = None) -> Any:
    """Write a file with all that can be carried; return what torch loads."""
    torch.save(value, "x.pth")
    cs.apply(cs.filter("x.pth", root=root, keep_extras=True), "out.pth", force=True)
    assert cs.verify("out.pth").ok
    return torch.load("out.pth", weights_only=True)


def notes(value: Any, root: str, *, keep: bool) -> str:
    torch.save(value, "x.pth")
    return " ".join(cs.filter("x.pth", root=root, keep_extras=keep).notes)


NESTED = {"a": {"model": {"w": T, "n": 1}, "epoch": 3, "b": {"c": [4]}}, "x": 1}


def test_entries_at_every_level_stay_at_their_level() -> None:
    found = carried(NESTED, "a.model")
    assert found.pop("x") == 1
    assert list(found["a"]) == ["model", "epoch", "b"]
    assert torch.equal(found["a"]["model"].pop("w"), T)
    assert found == {"a": {"model": {"n": 1}, "epoch": 3, "b": {"c": [4]}}}


def test_entries_at_every_level_are_named() -> None:
    assert "left out: x, a.epoch, a.b, a.model.n" in notes(NESTED, "a.model", keep=False)
    objects = {"a": {"model": {"w": T}, "opt": {"t": T}}, "x": 1}
    assert "not copied to the output: a.opt (it contains tensors)" in notes(objects, "a.model", keep=True)


def test_objects_that_are_left_out_are_named_with_their_class() -> None:
    state = {"model": {"w": T}, "args": Namespace(lr=1), "kind": torch.optim.SGD, "epoch": 3}
    said = "left out: args (argparse.Namespace), kind (torch.optim.sgd.SGD), epoch; only tensors of the state dict are "
    assert notes(state, "model", keep=False) == f"{said}written"


def test_lists_of_tensors_in_the_state_dict_are_named_apart() -> None:
    state = {"w": T, "epoch": 3, "layers": [T, T], "pair": (T, None), "rest": [1, 2]}
    why = "only tensors of the state dict are written"
    said = "tensors in lists are not entries of a state dict, and are left out: "
    found = "layers (list of 2, 2 tensors in it), pair (tuple of 2, 1 tensor in it)"
    assert notes(state, ".", keep=False) == f"left out: epoch, layers, pair, rest; {why} {said}{found}"
    assert said + found in cs.average(["x.pth", "x.pth"]).notes
    inner = {"model": {"w": T, "layers": [T]}, "rng": [T], "optimizer": {"state": [T]}}
    assert notes(inner, "model", keep=False).endswith(f"{said}model.layers (list of 1, 1 tensor in it)")


@pytest.mark.parametrize("value", [{"a.model": {"w": T}, "x": 1}, {"a.b": {"c.d": {"w": T}, "y": 2}, "x": 1}])
def test_a_name_with_a_dot_stays_one_name(value: dict[str, Any]) -> None:
    found = carried(value)
    assert found.keys() == value.keys()
    assert all(found[key].keys() == inner.keys() for key, inner in value.items() if isinstance(inner, dict))


def test_a_sibling_of_a_name_with_a_dot_is_named() -> None:
    assert carried({"a.model": {"w": T}, "a": 1})["a"] == 1


@pytest.mark.parametrize("value", [[{"w": T}, 3], {7: {"w": T}, "x": 1}, {"m": [{"w": T}], "x": 1}])
def test_what_lies_beside_no_name_is_not_carried(value: Any) -> None:
    torch.save(value, "x.pth")
    plan = cs.filter("x.pth", keep_extras=True)
    assert plan.carried.entries == ()
    (note,) = [note for note in plan.notes if note.startswith("not copied to the output")]
    assert ("its name is not a string" if isinstance(value, list) else "x (the state dict is inside a list") in note
    cs.apply(plan, "out.pth")
    assert list(torch.load("out.pth", weights_only=True)) == ["w"]


def test_a_model_that_was_pickled_whole_keeps_its_siblings() -> None:
    torch.save({"model": nn.Linear(2, 2), "epoch": 3}, "x.pth")
    cs.apply(cs.filter("x.pth", keep_extras=True), "out.pth")
    found = torch.load("out.pth", weights_only=True)
    assert (list(found["model"]), found["epoch"]) == (["weight", "bias"], 3)


@pytest.mark.parametrize("value", [{"a": T, "epoch": 3}, {"model": {"a": T, "epoch": 3}, "x": 1}])
def test_an_entry_never_takes_the_name_of_a_tensor(value: dict[str, Any], ckpt: Any) -> None:
    torch.save(value, "x.pth")
    done = ckpt("rename", "x.pth", "--map", "a=epoch", "--keep-extras", "-o", "out.pth")
    assert (done.code, "epoch" in done.err) == (4, True)
    assert not Path("out.pth").exists()
    assert ckpt("rename", "x.pth", "--map", "a=b", "--keep-extras", "-o", "out.pth").code == 0


def edited(value: Any, **fields: Any) -> str:
    torch.save(value, "x.pth")
    plan = cs.rename("x.pth", map="a=b", keep_extras=True).to_json()
    plan["carried"] = {**plan["carried"], **fields}
    Path("plan.json").write_text(json.dumps(plan))
    return "plan.json"


@pytest.mark.parametrize("root", ["epoch", "b", "model.x", ""])
def test_a_plan_carries_from_where_its_source_has_it(root: str) -> None:
    name = edited({"model": {"a": T}, "epoch": 3}, root=root)
    with pytest.raises(cs.PlanError, match="copies entries that are not tensors from"):
        cs.apply(name, "out.pth")
    name = edited({"a": T, "epoch": 3}, root=root or "epoch")
    with pytest.raises(cs.PlanError, match="copies entries that are not tensors from"):
        cs.apply(name, "out.pth")
    assert not Path("out.pth").exists()


def test_an_edited_plan_carries_nothing_over_a_tensor() -> None:
    torch.save({"a": T, "b": 3, "epoch": 1}, "x.pth")
    plan = cs.rename("x.pth", map="a=c", keep_extras=True).to_json()
    plan["steps"][0]["key"] = "b"
    Path("plan.json").write_text(json.dumps(plan))
    with pytest.raises(cs.PlanError, match="b"):
        cs.apply("plan.json", "out.pth")
    assert not Path("out.pth").exists()
