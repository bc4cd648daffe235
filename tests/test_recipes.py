"""Recipes compile to the plan that flags give, say what must come of it, and name what they do not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ckptsurgeon as cs


@pytest.fixture(autouse=True)
def files() -> None:
    torch.manual_seed(0)
    for name in ("a", "b"):
        state = {
            "encoder.w": torch.randn(4, 3),
            "encoder.b": torch.randn(4),
            "decoder.w": torch.randn(2, 4),
            "n": torch.tensor(3),
        }
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 7}, f"{name}.pth")
    Path("dst.yaml").write_text(
        "model:\n  tensors:\n    encoder.w: {shape: [4, 3]}\n    encoder.b: {shape: [4]}\n    head.w: {shape: [2, 4], init: normal}\n"
    )


def recipe(name: str = "recipe.yaml", **fields: Any) -> str:
    Path(name).write_text(yaml.safe_dump(fields, sort_keys=False))
    return name


CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "transplant": (
        ["transplant", "a.pth", "dst.yaml", "--exclude", "decoder", "--exclude", "n", "--require", "encoder.b", "--seed", "3"],
        {"source": "a.pth", "destination": "dst.yaml", "exclude": ["decoder", "n"], "require": ["encoder.b"], "seed": 3},
    ),
    "rename": (["rename", "a.pth", "--map", "module="], {"source": "a.pth", "map": ["module="]}),
    "filter": (
        ["filter", "a.pth", "--include", "encoder", "--unwrap"], {"source": "a.pth", "include": ["encoder"], "unwrap": True},
    ),
    "convert": (["convert", "a.pth", "--dtype", "bf16"], {"source": "a.pth", "dtype": "bf16"}),
    "average": (["average", "a.pth", "b.pth", "--ema", "0.9"], {"sources": ["a.pth", "b.pth"], "ema": 0.9}),
}  # fmt: skip


@pytest.mark.parametrize("verb", CASES)
def test_flags_and_recipe_compile_to_the_same_plan(verb: str, ckpt: Any) -> None:
    flags, fields = CASES[verb]
    from_flags = json.loads(ckpt(*flags, "-n", "--json").out)
    from_recipe = json.loads(ckpt("apply", recipe(verb=verb, **fields), "-n", "--json").out)
    assert from_recipe == from_flags
    assert ckpt("apply", recipe(verb=verb, output="r.safetensors", **fields)).code == 0
    assert ckpt(*flags, "-o", "f.safetensors").code == 0
    assert Path("r.safetensors").read_bytes() == Path("f.safetensors").read_bytes()
    assert cs.verify("r.safetensors").ok


def test_every_verb_that_plans_has_a_case() -> None:
    from ckptsurgeon.api import recipes

    assert set(CASES) == set(recipes._VERBS)


def test_paths_are_relative_to_the_recipe(ckpt: Any) -> None:
    Path("sub").mkdir()
    name = recipe(
        "sub/r.yaml", source="../a.pth", destination="../dst.yaml", output="out/", map={"decoder.w": "head.w"}
    )
    done = ckpt("apply", name)
    assert done.code == 0, done
    assert "next: ckpt verify sub/out/" in done.out
    assert Path("sub/out/model.safetensors").exists()


def test_what_is_given_beside_a_recipe_wins() -> None:
    receipt = cs.apply(
        recipe(verb="filter", source="a.pth", output="x.safetensors", to="safetensors"), "y.pth", to="pth"
    )
    assert receipt.output == "y.pth"
    assert not Path("x.safetensors").exists()


def test_expected_facts_are_held() -> None:
    fields = {"source": "a.pth", "destination": "dst.yaml", "output": "out.pth"}
    met = {"count": 3, "encoder": "copied", "head.**": "initialised", "**.w": 2}
    cs.apply(recipe(**fields, **{"assert": met}))
    for wrong, why in (
        ({"count": 4}, "count is 3, not 4"),
        ({"**": "copied"}, "head.w is initialised, not copied"),
        ({"encoder": 3}, "encoder is 2 tensors, not 3"),
    ):
        with pytest.raises(cs.PlanError, match=why) as caught:
            cs.apply(recipe(**{**fields, "output": "no.pth"}, **{"assert": wrong}))
        assert caught.value.exit_code == 4
    assert not Path("no.pth").exists()
    cs.apply(recipe(**{**fields, "output": "none.pth"}, **{"assert": {"nothing": 0}}))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"verb": "filter", "source": "a.pth", "exlude": ["x"]}, "filter has no 'exlude'. Did you mean exclude"),
        ({"verb": "filter", "source": "a.pth", "seed": 3}, "filter has no 'seed'. It takes"),
        ({"verb": "fliter", "source": "a.pth"}, "verb is 'fliter'. A recipe is for one of"),
        ({"source": "a.pth"}, "it names no verb"),
        ({"verb": "filter"}, "filter needs source"),
        ({"verb": "filter", "source": "a.pth", "output": 3}, "output is 3, not a text"),
        ({"verb": "filter", "source": "a.pth"}, "does not say where to write"),
        ({"verb": "filter", "source": "a.pth", "output": "o.pth", "assert": 3}, "assert is 3, not a map"),
        (
            {"verb": "filter", "source": "a.pth", "output": "o.pth", "assert": {"**": "coppied"}},
            "'coppied' is no class",
        ),
        (
            {"verb": "filter", "source": "a.pth", "output": "o.pth", "assert": {"nosuch": 1}},
            "assert nosuch matches none",
        ),
        ({"verb": "filter", "source": "a.pth", "output": "o.pth", "exclude": 5}, "--exclude takes texts"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(cs.CheckpointError, match=why) as caught:
        cs.apply(recipe(**fields))
    assert caught.value.exit_code == 2
    assert not Path("o.pth").exists()


def test_what_is_no_recipe_is_said(ckpt: Any) -> None:
    Path("list.yaml").write_text("- 1\n")
    assert "is no recipe" in ckpt("apply", "list.yaml", "-o", "o.pth").err
    done = ckpt("apply", "missing.yaml", "-o", "o.pth")
    assert (done.code, "cannot be read" in done.err) == (3, True)


def test_a_recipe_is_an_input_and_never_written(ckpt: Any) -> None:
    name = recipe(verb="filter", source="a.pth", output="recipe.yaml", to="pth")
    done = ckpt("apply", name, "--force")
    assert (done.code, "is an input" in done.err) == (5, True)
