"""A weight norm has two names in torch for each of its tensors: a transplant takes either for the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import ckptsurgeon as cs
from ckptsurgeon.planning.keys.weight_norm import weight_norm_names

OLDER = {"0.weight_g": (3, 1), "0.weight_v": (3, 2), "0.bias": (3,)}
NEWER = {"0.parametrizations.weight.original0": (3, 1), "0.parametrizations.weight.original1": (3, 2), "0.bias": (3,)}


def zeros(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {key: torch.ones(shape) for key, shape in shapes.items()}


@pytest.mark.parametrize(("here", "there"), [(OLDER, NEWER), (NEWER, OLDER)], ids=["newer", "older"])
def test_tensors_get_the_names_of_the_destination(
    here: dict[str, tuple[int, ...]], there: dict[str, tuple[int, ...]]
) -> None:
    plan = cs.transplant(zeros(here), zeros(there))
    assert plan.counts == {"copied": 3}
    assert [step.rule for step in plan.steps] == ["names of weight norm", "names of weight norm", ""]
    old, new = next(iter(here)), next(iter(there))
    said = f"2 tensors of weight norms are renamed, as torch has two names for each: {old} becomes {new}"
    assert plan.notes == (said,)


def test_rules_come_first() -> None:
    moved = {f"net.{key}": values for key, values in zeros(OLDER).items()}
    assert cs.transplant(moved, zeros(NEWER), map=["net="]).counts == {"copied": 3}
    plan = cs.transplant(zeros(OLDER), zeros(NEWER), exclude=["0.weight_*"])
    assert plan.counts == {"copied": 1, "kept": 2}
    assert {step.reason for step in plan.steps} == {"", "excluded"}


def test_half_of_a_weight_norm_is_not_renamed() -> None:
    assert not [*weight_norm_names(["0.weight_g"], NEWER)]
    assert not [*weight_norm_names(OLDER, ["0.parametrizations.weight.original0"])]
    newer = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    assert [*weight_norm_names(["weight_g", "weight_v"], newer)] == [(("weight_g", "weight_v"), newer)]


def test_a_weight_norm_of_which_one_tensor_has_both_names_is_not_renamed() -> None:
    newer = "0.parametrizations.weight.original1"
    plan = cs.transplant({**zeros(OLDER), newer: torch.ones(3, 2)}, zeros(NEWER))
    assert plan.counts == {"copied": 2, "kept": 1}
    assert {step.rule for step in plan.steps} == {""}


def test_a_live_module_computes_the_same_with_older_names() -> None:
    theirs, ours = zeros(OLDER), nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
    cs.load_into(ours, theirs, strict=True)
    assert cs.fits(theirs, ours).strict
    assert torch.allclose(ours[0].weight, torch.ones(3, 2) / 2**0.5)
