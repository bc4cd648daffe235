"""Rulesets: rules by name, which apply where they match."""

from __future__ import annotations

from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.planning.keys.renaming import RULESETS, rules_of_sets
from ckptsurgeon.planning.keys.rules import parse_rule


def old_norm() -> dict[str, torch.Tensor]:
    import warnings

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.ModuleDict({"conv": nn.utils.weight_norm(nn.Conv1d(4, 6, 3)), "out": nn.Linear(2, 2)}).state_dict()


def test_every_rule_of_every_set_can_be_read() -> None:
    assert all(parse_rule(text).text == text for rules in RULESETS.values() for text in rules)


def test_weight_norm_s_names_go_both_ways() -> None:
    torch.save(old_norm(), "old.pth")
    new = nn.ModuleDict({"conv": nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 6, 3)), "out": nn.Linear(2, 2)})
    cs.apply(cs.rename("old.pth", ruleset=["weight-norm"]), "new.pth")
    new.load_state_dict(torch.load("new.pth", weights_only=True), strict=True)
    cs.apply(cs.rename("new.pth", ruleset=["weight-norm-old"]), "back.pth")
    assert not cs.diff("old.pth", "back.pth", values=True).differs


@pytest.mark.parametrize(
    ("name", "key", "wanted"),
    [
        ("ddp", "module.a.w", "a.w"),
        ("lightning", "model.a.w", "a.w"),
        ("lightning", "net.a.w", "a.w"),
        ("compile", "_orig_mod.a.w", "a.w"),
        ("compile", "a._orig_mod.w", "a.w"),
        ("compile", "_orig_mod.a._orig_mod.w", "a.w"),
        ("compile", "_orig_mod.a._orig_mod.b._orig_mod.w", "a.b.w"),
        ("compile", "a._orig_mod.b._orig_mod.c", "a.b.c"),
        ("compile", "_orig_mod._orig_mod.a._orig_mod._orig_mod.w", "a.w"),
        ("compile", "a._orig_mod", "a"),
        ("compile", "my_orig_mod._orig_mod._orig_mods.w", "my_orig_mod._orig_mods.w"),
        ("espnet-deepspeed", "module._orig_mod.a.w", "a.w"),
        ("speechbrain", "layers.0.mutihead_attn.w", "layers.0.multihead_attn.w"),
        ("speechbrain", "convs_intermedite.1.w", "convs_intermediate.1.w"),
        ("weight-norm", "weight_g", "parametrizations.weight.original0"),
    ],
)
def test_a_key_is_renamed(name: str, key: str, wanted: str) -> None:
    torch.save({key: torch.ones(1), "zz": torch.ones(2)}, "in.pth")
    keys = [step.key for step in cs.rename("in.pth", ruleset=name).steps]
    assert keys == [wanted, "zz"]


@pytest.mark.parametrize("number", range(1, 5))
def test_compile_leaves_no_wrapper_wherever_they_are(number: int) -> None:
    for places in combinations_with_replacement(range(4), number):
        parts = [[*["_orig_mod"] * places.count(i), name] for i, name in enumerate(["a", "b", "c", "w"])]
        key = ".".join(part for these in parts for part in these)
        [rule] = rules_of_sets(["compile"], [key])
        assert rule.apply(key) == "a.b.c.w", key


def test_a_key_of_nothing_but_wrappers_is_an_error() -> None:
    torch.save({"_orig_mod._orig_mod": torch.ones(1), "w": torch.ones(2)}, "in.pth")
    with pytest.raises(cs.PatternError, match="would make the name of the key _orig_mod empty"):
        cs.rename("in.pth", ruleset=["compile"])


def test_a_set_of_which_nothing_matches_and_an_unknown_one_are_errors(ckpt: Any) -> None:
    torch.save({"a": torch.ones(1)}, "in.pth")
    done = ckpt("rename", "in.pth", "--ruleset", "ddp", "-n")
    assert (done.code, "--ruleset ddp matches none of the 1 source key" in done.err) == (2, True)
    done = ckpt("rename", "in.pth", "--ruleset", "dpd", "-n")
    assert (done.code, "--ruleset 'dpd' is not the name of a ruleset" in done.err) == (2, True)
    shown = "".join(ckpt("rename", "-h").out.split())
    assert all(name in shown for name in RULESETS)


@pytest.mark.parametrize(
    ("ruleset", "prefix", "wrapper"),
    [
        ("ddp", "module.", "module"),
        ("compile", "module._orig_mod.", "_orig_mod"),
        ("espnet-deepspeed", "module._orig_mod.", "module"),
        ("compile", "enc._orig_mod.", "_orig_mod"),
        ("weight-norm", "module.", ""),
    ],
)
def test_an_error_says_that_the_wrapper_was_removed_before(ruleset: str, prefix: str, wrapper: str) -> None:
    torch.save({f"{prefix}a": torch.ones(1), f"{prefix}b": torch.ones(2)}, "in.pth")
    why = f": the wrapper {wrapper} was already removed from the keys" if wrapper else ""
    with pytest.raises(cs.PatternError) as error:
        cs.rename("in.pth", unwrap=True, ruleset=[ruleset])
    assert error.value.message == f"--ruleset {ruleset} matches none of the 2 source keys{why}."
    torch.save({"a": torch.ones(1), "b": torch.ones(2)}, "dst.pth")
    if prefix != "enc._orig_mod.":
        with pytest.raises(cs.PatternError, match=f"matches none of the 2 source keys{why}"):
            cs.transplant("in.pth", "dst.pth", ruleset=[ruleset])


def test_a_transplant_takes_them_too_and_explicit_rules_come_first() -> None:
    torch.save(old_norm(), "old.pth")
    with open("dst.yaml", "w") as file:
        file.write(
            "model: {tensors: {conv.parametrizations.weight.original0: {shape: [6, 1, 1]}, v: {shape: [6, 4, 3]}, "
            "conv.bias: {shape: [6]}}}"
        )
    plan = cs.transplant("old.pth", "dst.yaml", ruleset="weight-norm", map=["conv.weight_v=v"])
    assert plan.counts == {"copied": 3}
    assert plan.arguments["ruleset"] == ["weight-norm"]
    rules = {step.key: step.rule for step in plan.steps}
    assert rules["conv.parametrizations.weight.original0"] == "--map **.weight_g=**.parametrizations.weight.original0"
