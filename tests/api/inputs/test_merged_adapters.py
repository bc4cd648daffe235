"""Adapters that are added a second time are noted, whatever was done with the merged model in between."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.adapters import base_state, factors, peft_folder

SAID = "is added a second time: according to the recipe in"


def adapter(folder: str, seed: int = 1) -> None:
    a, b = factors(8, 8, 2, seed)
    peft_folder(folder, {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b})


def again(base: str, name: str = "one", weight: float = 1.0) -> list[str]:
    """The notes on an adapter that is already merged."""
    return [
        note for note in cs.lora_merge(base, name, weights=[weight]).notes if "second time" in note or "stale" in note
    ]


@pytest.fixture
def merged() -> str:
    """A model with the adapter ``one``; ``two`` is an adapter with the same header and other values."""
    adapter("one"), adapter("two", seed=2)
    save_file(base_state(), "b.safetensors")
    cs.apply(cs.lora_merge("b.safetensors", "one"), "m/")
    return "m"


MADE: dict[str, Callable[[], cs.Plan]] = {
    "convert": lambda: cs.convert("m", dtype="bf16"),
    "filter": lambda: cs.filter("m", exclude="conv"),
    "rename": lambda: cs.rename("m", map=["conv=c"]),
    "average": lambda: cs.average(["b.safetensors", "m"]),
    "merge": lambda: cs.merge(["b.safetensors", "m"], method="linear", weights=[1, 1]),
    "transplant": lambda: cs.transplant("m", "b.safetensors"),
    "kept": lambda: cs.transplant("b.safetensors", "m", include="conv"),
    "lora merge": lambda: cs.lora_merge("m", "two"),
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", MADE)
@pytest.mark.parametrize("output", ["out.safetensors", "made/out.pth"])
def test_further_verbs_keep_the_record(merged: str, verb: str, output: str) -> None:
    Path("made").mkdir()
    cs.apply(MADE[verb](), output)
    cs.apply(cs.convert(output), "last.safetensors")
    for made in (output, "last.safetensors"):
        assert again(made) == [f"one/adapter_model.safetensors {SAID} {made}, this adapter is already merged"]
        assert len(again(made, "two")) == (verb == "lora merge")
        assert cs.verify(made).ok


def test_shards_and_moved_adapters_are_found_and_retrained_ones_are_not(merged: str) -> None:
    cs.apply(cs.convert("m"), "shards/", max_shard_size="1KB")
    shutil.move("one", "elsewhere")
    assert again("shards", "elsewhere")
    assert again("m", "elsewhere")
    adapter("one", seed=7)
    assert not again("shards")
    assert not again("m")


def test_a_subtracted_adapter_may_be_added_again(merged: str) -> None:
    assert not again("m", weight=-1)
    cs.apply(cs.lora_merge("m", "one", weights=[-1]), "back/")
    cs.apply(cs.convert("back"), "back.safetensors")
    assert not again("back")
    assert not again("back.safetensors")
    cs.apply(cs.lora_merge("m", "one", weights=[-0.5]), "half/")
    assert again("half")


def test_an_adapter_that_is_subtracted_twice_is_not_said_to_be_added(merged: str) -> None:
    cs.apply(cs.lora_merge("b.safetensors", "one", weights=[-1]), "less.safetensors")
    (note,) = again("less.safetensors", weight=-1)
    assert note == (
        "one/adapter_model.safetensors is subtracted a second time: according to the recipe in less.safetensors, this "
        "adapter is already subtracted"
    )
    assert not again("less.safetensors")


def test_what_has_no_adapter_has_no_note_and_no_record(merged: str) -> None:
    cs.apply(cs.convert("b.safetensors"), "c.safetensors")
    cs.apply(cs.lora_extract("m", "b.safetensors", rank=2), "extracted/")
    cs.apply(cs.transplant("b.safetensors", "m"), "t.safetensors")
    for made in ("c.safetensors", "extracted/adapter_model.safetensors", "t.safetensors"):
        with cs.open_checkpoint(made) as found:
            assert '"adapters"' not in (found.recipe or "")
    assert not again("c.safetensors")
    assert not again("b.safetensors")


def test_recipes_of_earlier_versions_are_read_too(merged: str) -> None:
    path = Path("m/ckptsurgeon.json")
    recipe = json.loads(path.read_text())
    (row,) = recipe.pop("adapters")
    assert row["weight"] == 1
    assert row["path"] == "one/adapter_model.safetensors"
    path.write_text(json.dumps(recipe))
    assert again("m")
    assert not again("m", "two")
    cs.apply(cs.convert("m"), "c.safetensors")
    assert again("c.safetensors")
    assert not again("c.safetensors", "two")


@pytest.mark.parametrize("rows", [1, {}, [1], [{"path": "x"}], [{"path": "one", "weight": 1, "files": 3}]])
def test_a_damaged_record_is_left_to_verify(merged: str, rows: object) -> None:
    path = Path("m/ckptsurgeon.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "adapters": rows}))
    assert not again("m")
    cs.apply(cs.convert("m"), "c.safetensors")
    assert not cs.verify("m").ok


@pytest.mark.long
def test_a_record_that_costs_too_much_is_cut_and_numbers_are_finite(merged: str) -> None:
    path = Path("m/ckptsurgeon.json")
    recipe = json.loads(path.read_text())
    for rows in ([{"path": "x", "weight": 1, "files": []}] * 100_000, [{**recipe["adapters"][0], "weight": 1e999}]):
        path.write_text(json.dumps({**recipe, "adapters": rows}))
        began = time.perf_counter()
        cs.apply(cs.convert("m"), "c.safetensors", force=True)
        assert not again("m")
        assert time.perf_counter() - began < 30
        with cs.open_checkpoint("c.safetensors") as made:
            assert "Infinity" not in (made.recipe or "")


def test_the_same_inputs_give_the_same_bytes_from_a_plan_too(merged: str) -> None:
    Path("plan.json").write_text(json.dumps(cs.convert("m").to_json()))
    cs.apply("plan.json", "x.safetensors")
    cs.apply(cs.convert("m"), "y.safetensors")
    assert Path("x.safetensors").read_bytes() == Path("y.safetensors").read_bytes()


@pytest.mark.parametrize("output", ["m", "converted"])
def test_a_recipe_of_other_weights_is_not_believed(merged: str, output: str) -> None:
    cs.apply(cs.convert("m"), "converted/")
    save_file(base_state(), f"{output}/model.safetensors")
    note = f"the recipe of {output} is not used, because the weights have been replaced since it was written"
    assert again(output) == [] == again(output, "two")
    assert (
        f"{note}: layers.0.q.weight does not have the checksum that the recipe records"
        in cs.lora_merge(output, "one").notes
    )
    assert not any("recipe" in said for said in cs.lora_merge(output, "two").notes)
    cs.apply(cs.convert(output), "c.safetensors")
    assert not any("recipe" in said for said in cs.lora_merge("c.safetensors", "one").notes)


def test_a_quantised_or_wrapped_model_keeps_its_recipe(merged: str) -> None:
    cs.apply(cs.rename("m", map=["=module"]), "wrapped.safetensors")
    cs.apply(cs.convert("m", quantize="int8"), "int8/")
    cs.apply(cs.convert("m"), "m.pth")
    for made in ("wrapped.safetensors", "int8", "m.pth"):
        notes = cs.lora_merge(made, "one", unwrap=True).notes
        assert [note for note in notes if "recipe" in note and SAID not in note] == []
        assert any(SAID in note for note in notes)
