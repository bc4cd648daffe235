"""Proofs of what was just written: ``--prove``, and ``assert: {proved: …}`` in a recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .test_prove import llama

pytest.importorskip("transformers")


@pytest.mark.long
def test_a_conversion_is_proved(ckpt: Any) -> None:
    llama("a")
    done = ckpt("convert", "a", "--dtype", "bf16", "-o", "b/", "--prove")
    assert done.code == 0, done
    assert "wrote b" in done.out
    assert "EQUIVALENT  the outputs are 0." in done.out
    done = ckpt("convert", "a", "-o", "c/", "--prove", "--json")
    assert json.loads(done.out)["proved"] == "SAME"


@pytest.mark.long
def test_a_transplant_from_other_names_cannot_be_proved(ckpt: Any) -> None:
    llama("a")
    state = load_file("a/model.safetensors")
    save_file({f"net.{key}": value for key, value in state.items()}, "renamed.safetensors")
    done = ckpt("transplant", "renamed.safetensors", "a/config.json", "--map", "net=", "-o", "b/", "--prove")
    assert done.code == 4  # the source's own names are not those of the network
    assert "b" not in os.listdir()
    done = ckpt("transplant", "a", "a/config.json", "-o", "c/", "--prove")
    assert done.code == 0, done
    assert "SAME  the outputs" in done.out


@pytest.mark.long
def test_a_transplant_that_exchanges_matrices_is_not(ckpt: Any) -> None:
    llama("a")
    layer = "model.layers.1.mlp"
    rules = [f"{layer}.up_proj={layer}.gate_proj", f"{layer}.gate_proj={layer}.up_proj"]
    done = ckpt("transplant", "a", "a/config.json", "--map", rules[0], "--map", rules[1], "-o", "b/", "--prove")
    assert done.code == 1, done
    assert "DIFFERENT  the networks drift from model.layers.1 on" in done.out
    assert Path("b/model.safetensors").is_file()


def recipe(**fields: Any) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump({"verb": "convert", "source": "a", "output": "b/", **fields}))
    return "recipe.yaml"


@pytest.mark.long
def test_a_recipe_asserts_a_proof() -> None:
    llama("a")
    receipt = cs.apply(recipe(dtype="float16", **{"assert": {"proved": "EQUIVALENT"}}))
    assert receipt.proved == "EQUIVALENT"
    receipt = cs.apply(recipe(**{"assert": {"proved": "EQUIVALENT"}}), force=True)
    assert receipt.proved == "SAME"
    with pytest.raises(
        cs.VerifyError, match="b/ is written, but computes the same as its source only up to rounding"
    ) as caught:
        cs.apply(recipe(dtype="float16", **{"assert": {"proved": "SAME"}}), force=True)
    assert caught.value.exit_code == 1


def test_what_cannot_be_proved_is_refused_before_anything_is_written(ckpt: Any) -> None:
    llama("a")
    with pytest.raises(cs.ConfigError, match="assert proved: 'MAYBE' is not a verdict"):
        cs.apply(recipe(**{"assert": {"proved": "MAYBE"}}))
    document = {"verb": "average", "sources": ["a", "a"], "output": "b/", "assert": {"proved": "SAME"}}
    Path("both.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(cs.ConfigError, match="both.yaml: .* but this plan has 2 sources") as caught:
        cs.apply("both.yaml")
    assert caught.value.hint == "Leave proved out of assert, and compare two models with ckpt prove."
    done = ckpt("average", "a", "a", "-o", "b/", "--prove")
    assert done.code == 2
    assert "this plan has 2 sources" in done.err
    done = ckpt("convert", "a", "-n", "--prove")
    assert done.code == 2
    done = ckpt("apply", recipe(), "--prove")
    assert done.code == 2
    assert "assert: {proved: EQUIVALENT}" in done.err
    assert not Path("b").exists()


def test_a_source_that_does_not_run_is_refused_before_anything_is_written(ckpt: Any) -> None:
    model = llama("a")
    os.mkdir("bare")
    save_file(load_file("a/model.safetensors"), "bare/model.safetensors")
    done = ckpt("convert", "bare", "-o", "b/", "--prove")
    assert done.code == 2
    assert "there is no config.json in the folder of bare, so the architecture of the model is not known" in done.err
    state = model.state_dict()
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, "a/model.safetensors")
    done = ckpt("convert", "a", "-o", "b/", "--prove")
    assert done.code == 4
    assert "a does not load into the network of" in done.err
    with pytest.raises(cs.PlanError, match="a does not load into the network of"):
        cs.apply(recipe(**{"assert": {"proved": "SAME"}}))
    assert not [name for name in os.listdir() if name.startswith("b.") or name == "b"]


@pytest.mark.long
def test_an_output_that_does_not_load_is_reported_as_written(ckpt: Any) -> None:
    llama("a")
    done = ckpt("filter", "a", "--exclude", "model.layers.1.mlp", "-o", "b/", "--prove")
    assert done.code == 4
    assert "wrote b" in done.out
    assert "b/ is written, but could not be proved: b/ does not load into the network of" in done.err
    assert Path("b/model.safetensors").is_file()


def test_the_root_is_that_of_the_source(ckpt: Any) -> None:
    model = llama("a")
    torch.save({"model": {}, "ema": model.state_dict(), "other": torch.ones(1)}, "a/both.pth")
    done = ckpt("convert", "a/both.pth", "--root", "ema", "-o", "a/ema.safetensors", "--prove")
    assert done.code == 0, done
    assert "SAME  the outputs" in done.out
