"""A quantised source that is computed with is also read decoded: it is still one source, wherever sources are counted."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.prove.output import check_provable

from ...helpers.adapters import peft_folder
from ...helpers.quantised import Quantised, fp8
from ...helpers.zoo import BY_NAME, IN, KEPT, OUT

QUERY = "model.layers.0.self_attn.q_proj"
ENCODED = [one for name, one in BY_NAME.items() if name in KEPT and QUERY in one.layers]
NOT_FINITE = ("mxfp8", "mxfp4-quark")
"""Random exponents of these may be NaN, and then they cannot be decoded."""


def adapter(path: str, seed: int = 1) -> str:
    """An adapter of the query projection."""
    torch.manual_seed(seed)
    factors = {f"{QUERY}.lora_A.weight": torch.randn(2, IN), f"{QUERY}.lora_B.weight": torch.randn(OUT, 2) / 99}
    peft_folder(path, factors)
    return path


def recorded(path: str) -> dict[str, float]:
    """The adapters in a recipe, with their weights."""
    recipe = cs.open_checkpoint(path).recipe
    assert recipe is not None
    return {os.path.dirname(one["path"]): one["weight"] for one in json.loads(recipe)["adapters"]}


@pytest.mark.costly
@pytest.mark.parametrize("weights", [None, [0.5]])
@pytest.mark.parametrize("quantised", ENCODED, ids=lambda one: one.name)
def test_the_base_is_not_recorded_as_an_adapter(
    quantised: Quantised, weights: list[float] | None, tmp_path: Path
) -> None:
    if quantised.name in NOT_FINITE:
        pytest.skip("its random exponents are not finite")
    quantised.folder(tmp_path / "base")
    plan = cs.lora_merge("base", adapter("one"), weights=weights)
    assert [one.name for one in plan.sources] == ["base", "one", "base (decoded)"]
    cs.apply(plan, "out")
    assert recorded("out") == {"one": 0.5 if weights else 1.0}
    assert cs.verify("out").ok


def test_two_adapters_keep_their_weights(tmp_path: Path) -> None:
    BY_NAME["fp8-block"].folder(tmp_path / "base")
    plan = cs.lora_merge("base", [adapter("one"), adapter("two", 2)], weights=[0.25, -2])
    cs.apply(plan, "out")
    assert recorded("out") == {"one": 0.25, "two": -2}
    cs.apply(cs.lora_merge("out", adapter("three", 3)), "more")
    assert recorded("more") == {"one": 0.25, "two": -2, "three": 1}


def test_a_plain_base_is_recorded_as_before(tmp_path: Path) -> None:
    BY_NAME["fp8-block"].folder(tmp_path / "base")
    cs.apply(cs.convert("base", dequantize=True), "plain")
    cs.apply(cs.lora_merge("plain", adapter("one"), weights=[0.5]), "out")
    assert recorded("out") == {"one": 0.5}
    cs.apply(cs.lora_merge("base", "one", weights=[0.5], encoding="dequantize"), "decoded")
    assert recorded("decoded") == {"one": 0.5}


def test_merging_with_weights_by_the_command_line(ckpt: Any, tmp_path: Path) -> None:
    BY_NAME["gptq"].folder(tmp_path / "base")
    adapter("one")
    assert ckpt("lora", "merge", "base", "one", "--weights", "0.5", "-o", "out").code == 0
    assert recorded("out") == {"one": 0.5}


def test_an_older_recipe_names_only_the_adapters(tmp_path: Path) -> None:
    """A recipe that has no list of merged adapters."""
    BY_NAME["fp8-block"].folder(tmp_path / "base")
    cs.apply(cs.lora_merge("base", adapter("one")), "out.safetensors")
    with cs.open_checkpoint("out.safetensors") as out:
        recipe = json.loads(out.recipe or "")
        tensors = {key: out.tensor(key) for key in out}
    del recipe["adapters"]
    save_file(tensors, "old.safetensors", {"ckptsurgeon": json.dumps(recipe)})
    cs.apply(cs.convert("old.safetensors"), "new.safetensors")
    assert recorded("new.safetensors") == {"one": 1.0}


def test_the_quantised_base_of_a_merge_does_not_count_twice(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "ft1", "ft2")):
        BY_NAME["fp8-block"].folder(tmp_path / name, seed)
    cs.apply(cs.merge(["ft1", "ft2"], base="base", method="ties", density=0.5), "merged")
    assert not [note for note in cs.average(["merged", "base"]).notes if "recipe" in note]
    (note,) = [note for note in cs.average(["merged", "ft1"]).notes if "recipe" in note]
    assert note.startswith("ft1 is also a source of merged")


def test_a_plan_of_one_quantised_source_can_be_proved(tmp_path: Path) -> None:
    kind = BY_NAME["fp8-tensor"]
    kind.folder(tmp_path / "one")
    replace(kind, store=lambda g: {**kind.store(g), ".weight": fp8(g, OUT // 2, IN)}).folder(tmp_path / "half")
    plan = cs.transplant("one", "half", on_mismatch="slice")
    assert [one.name for one in plan.sources] == ["one", "half", "one (decoded)"]
    assert repr(plan).startswith("<Plan transplant of one:")
    check_provable(plan)
    with pytest.raises(cs.ConfigError, match="this plan has 2 sources"):
        check_provable(cs.lora_merge("one", adapter("adapter")))
