"""Another number of layers: one layer into several, every second one, and what of it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def layers() -> None:
    """Four layers of two tensors, whose values tell which they are."""
    torch.save({f"enc.layers.{n}.{w}": torch.full((2,), n + 0.5) for n in range(4) for w in "ab"}, "src.pth")


def wanting(number: int) -> str:
    rows = [f"    enc.layers.{n}.{w}: {{shape: [2], init: zeros}}" for n in range(number) for w in "ab"]
    Path(f"{number}.yaml").write_text("model:\n  tensors:\n" + "\n".join(rows) + "\n")
    return f"{number}.yaml"


def depths(path: str) -> list[float]:
    found = cs.open_checkpoint(path)
    return [found.tensor(key)[0].item() - 0.5 for key in found if key.endswith("a")]


@pytest.mark.parametrize(
    ("rule", "number", "wanted"),
    [
        ("enc.layers.{n}=enc.layers.{2n,2n+1}", 8, [0, 0, 1, 1, 2, 2, 3, 3]),
        ("enc.layers.{n}=enc.layers.{n,n+4}", 8, [0, 1, 2, 3, 0, 1, 2, 3]),
        ("enc.layers.{n}=enc.layers.{2n}", 8, [0, -0.5, 1, -0.5, 2, -0.5, 3, -0.5]),
        ("enc.layers.3=enc.layers.{3..5}", 6, [0, 1, 2, 3, 3, 3]),
    ],
)
def test_a_deeper_model_takes_layers_several_times(rule: str, number: int, wanted: list[float], ckpt: Run) -> None:
    done = ckpt("transplant", "src.pth", wanting(number), "--map", rule, "-o", "out.safetensors")
    assert done.code == 0
    assert depths("out.safetensors") == wanted
    report = cs.verify("out.safetensors")
    assert (report.compared + report.drawn, report.failed) == (2 * number, ())


def test_a_shallower_model_takes_every_second_layer(ckpt: Run) -> None:
    exclude = "enc.layers.{1,3}"
    rule = "enc.layers.{n}=enc.layers.{n//2}"
    assert ckpt("transplant", "src.pth", wanting(2), "--exclude", exclude, "--map", rule, "-o", "out.pth").code == 0
    assert depths("out.pth") == [0, 2]
    assert cs.verify("out.pth").failed == ()


def test_every_second_layer_without_leaving_the_others_out_is_a_collision() -> None:
    with pytest.raises(cs.PlanError, match=r"layers.0.a and enc.layers.1.a of src.pth both become enc.layers.0.a"):
        cs.transplant("src.pth", wanting(2), map="enc.layers.{n}=enc.layers.{n//2}")


def test_arithmetic_in_a_pattern_is_refused_with_the_way_to_do_it() -> None:
    with pytest.raises(cs.PatternError) as caught:
        cs.transplant("src.pth", wanting(2), map="enc.layers.{2n}=enc.layers.{n}")
    assert "compute with it in the target" in str(caught.value.hint)


def test_the_first_rule_that_matches_wins_whatever_it_lists() -> None:
    """LLaMA Pro's block expansion: a copy behind the last layer of each group."""
    rules = ["enc.layers.1=enc.layers.{1,2}", "enc.layers.3=enc.layers.{4,5}", "enc.layers.{n}=enc.layers.{n+n//2}"]
    plan = cs.transplant("src.pth", wanting(6), map=rules)
    assert [step.source_key[11] for step in plan.steps[::2]] == ["0", "1", "1", "2", "3", "3"]
    assert plan.counts == {"copied": 12}


def test_a_copy_that_lands_on_another_key_is_a_collision() -> None:
    with pytest.raises(cs.PlanError, match=r"both become enc.layers.2.a"):
        cs.transplant("src.pth", wanting(6), map=["enc.layers.1=enc.layers.{1,2}"])


def test_copies_without_a_place_are_said_and_their_layer_is_not_unused() -> None:
    plan = cs.transplant("src.pth", wanting(6), map="enc.layers.{n}=enc.layers.{2n,2n+1}")
    assert plan.unexpected == ((0, "enc.layers.3.a"), (0, "enc.layers.3.b"))
    plan = cs.transplant("src.pth", wanting(7), map="enc.layers.{n}=enc.layers.{2n,2n+1}")
    assert plan.unexpected == ()
    assert any(
        "2 copies that rules make of used tensors are not in the destination: enc.layers.7.a" in note
        for note in plan.notes
    )


def test_an_excluded_layer_is_the_reason_for_all_that_it_would_have_been() -> None:
    plan = cs.transplant("src.pth", wanting(8), exclude="enc.layers.3", map="enc.layers.{n}=enc.layers.{2n,2n+1}")
    assert [step.rule for step in plan.steps[-4:]] == ["--exclude enc.layers.3"] * 4


@pytest.mark.parametrize("output", ["out.pth", "out.safetensors"])
def test_renamed_copies_are_tensors_of_their_own(output: str) -> None:
    plan = cs.rename("src.pth", map="enc.layers.{n}=enc.layers.{n,n+4}")
    assert not any(step.tied_to for step in plan.steps)
    cs.apply(plan, output)
    assert depths(output) == [0, 0, 1, 1, 2, 2, 3, 3] or sorted(depths(output)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cs.open_checkpoint(output).ties == {}
    assert cs.verify(output).failed == ()


def test_what_was_tied_and_renamed_stays_tied() -> None:
    shared = torch.ones(3)
    torch.save({"a": shared, "b": shared}, "tied.pth")
    plan = cs.rename("tied.pth", map=["a={x,y}", "b=z"])
    assert {step.key: step.tied_to for step in plan.steps} == {"x": "", "y": "", "z": "x"}


def test_an_operation_names_its_tensors_one_by_one() -> None:
    with pytest.raises(cs.PatternError, match="means several names"):
        cs.rename("src.pth", operations=[{"concat": ["enc.layers.{n}.a", "enc.layers.{n}.b"], "into": "enc.{n,1}.a"}])


def test_recipes_and_map_files_list_names_too(ckpt: Run) -> None:
    Path("copies.map").write_text("# twice\nenc.layers.{n}=enc.layers.{2n,2n+1}\n")
    wanting(8)
    Path("recipe.yaml").write_text(
        "destination: 8.yaml\nsource: src.pth\nmap: {'enc.layers.{n}': 'enc.layers.{2n,2n+1}'}\noutput: a.safetensors\n"
    )
    assert ckpt("apply", "recipe.yaml").code == 0
    assert ckpt("transplant", "src.pth", "8.yaml", "--map-file", "copies.map", "-o", "b.safetensors").code == 0
    assert depths("a.safetensors") == depths("b.safetensors") == [0, 0, 1, 1, 2, 2, 3, 3]
