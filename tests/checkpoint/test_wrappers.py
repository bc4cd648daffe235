"""Wrappers come off to a fixed point, but for those that the destination has too."""

from __future__ import annotations

from functools import cached_property

import pytest
import torch
from torch import nn

import ckptsurgeon as cs
from ckptsurgeon.checkpoint import checkpoint
from ckptsurgeon.checkpoint.wrappers import unwrap, unwrap_as

PLAIN = ["enc.w", "dec.w"]


def behind(prefix: str, keys: list[str] = PLAIN) -> list[str]:
    return [f"{prefix}.{key}" for key in keys]


CASES = {
    "all come off": (behind("_orig_mod.module"), [], PLAIN, ("_orig_mod", "module")),
    "all come off for a plain destination": (behind("module._orig_mod"), PLAIN, PLAIN, ("module", "_orig_mod")),
    "the same on both sides": (behind("module"), behind("module"), behind("module"), ()),
    "the inner one is the destination's": (behind("module._orig_mod"), behind("_orig_mod"), behind("_orig_mod"), ("module",)),
    "the inner one is the destination's, otherwise": (behind("_orig_mod.module"), behind("module"), behind("module"), ("_orig_mod",)),
    "the outer one is the destination's": (behind("_orig_mod.module"), behind("_orig_mod"), behind("_orig_mod"), ("_orig_mod.module",)),
    "twice and once": (behind("module.module"), behind("module"), behind("module"), ("module",)),
    "a submodule of that name beside another": (["module.w"], ["module.w", "head.w"], ["module.w"], ()),
    "a submodule of that name in a wrapped source": (["module.module.w", "module.head.w"], ["module.w", "head.w"], ["module.w", "head.w"], ("module",)),
    "other keys behind the same wrapper": (behind("module"), ["module.x"], behind("module"), ()),
    "other keys": (behind("module"), ["x", "y"], PLAIN, ("module",)),
    "another wrapper": (behind("module"), behind("_orig_mod"), PLAIN, ("module",)),
    "only the destination's": (PLAIN, behind("module"), PLAIN, ()),
    "averaged models": (["n_averaged", *behind("module")], ["n_averaged", *behind("module")], ["n_averaged", *behind("module")], ()),
    "an averaged model, compiled": (["_orig_mod.n_averaged", *behind("_orig_mod.module")], ["n_averaged", *behind("module")], ["n_averaged", *behind("module")], ("_orig_mod",)),
    "an averaged model and a plain one": (["n_averaged", *behind("module")], PLAIN, PLAIN, ("module",)),
    "inside": (["enc._orig_mod.w", "dec.w"], PLAIN, PLAIN, ("**._orig_mod",)),
    "inside on both sides": (["enc._orig_mod.w", "dec.w"], ["enc._orig_mod.w", "dec.w"], ["enc._orig_mod.w", "dec.w"], ()),
    "inside and in front": (["module.enc._orig_mod.w", "module.dec.w"], [], PLAIN, ("module", "**._orig_mod")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_stripped(name: str) -> None:
    keys, destination, shown, stripped = CASES[name]
    done = unwrap(keys, destination)
    assert (list(done.stored), done.stripped) == (shown, stripped)
    assert set(done.stored.values()) | set(done.aside) == set(keys)
    again = unwrap_as(keys, done.stripped)
    assert (again.stored, again.stripped, again.aside) == (done.stored, done.stripped, done.aside)


def test_a_wrapper_that_only_the_destination_has_is_said_and_never_added() -> None:
    assert unwrap(PLAIN, behind("module")).lacking == "module"
    assert unwrap(behind("_orig_mod"), behind("module")).lacking == "module"
    assert unwrap(PLAIN, behind("module", ["x"])).lacking == ""
    assert unwrap(behind("module"), behind("module")).lacking == ""
    torch.save({"w": torch.ones(2)}, "x.pth")
    found = cs.open_checkpoint("x.pth", unwrap=False).unwrapped(destination=["module.w"])
    assert list(found) == ["w"]
    assert "--map =module adds this prefix" in found.notes[0]


def test_what_was_stripped_is_stripped_again() -> None:
    keys = ["_orig_mod.n_averaged", *behind("_orig_mod.module")]
    done = unwrap_as(keys, ("_orig_mod", "module"))
    assert list(done.stored) == PLAIN
    assert done.aside == ("_orig_mod.n_averaged",)


def test_an_averaged_model_goes_into_an_averaged_model() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    averaged.update_parameters(nn.Linear(2, 2))
    torch.save(averaged.state_dict(), "x.pth")
    other = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    cs.load_into(other, "x.pth")
    assert other.n_averaged == 1
    assert torch.equal(other.module.weight, averaged.module.weight)


def test_a_compiled_averaged_model_opens_with_its_counter_beside() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)).state_dict()
    torch.save({f"_orig_mod.{key}": value for key, value in averaged.items()}, "x.pth")
    found = cs.open_checkpoint("x.pth")
    assert list(found) == ["weight", "bias"]
    assert [extra.key for extra in found.extras] == ["_orig_mod.n_averaged"]


def test_a_view_with_other_tensors_computes_anew_all_that_depends_on_them() -> None:
    """A cached property is of the file and its folder, as those here, or in the list of what a view drops."""
    of_the_file = {"_index", "_other_shard_notes", "_rank_notes", "_shard_notes", "elsewhere", "quantisation"}
    cached = {name for name, value in vars(checkpoint.Checkpoint).items() if isinstance(value, cached_property)}
    assert cached == of_the_file | set(checkpoint._WORKED_OUT)
