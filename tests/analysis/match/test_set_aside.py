"""Tensors of the source that are not used and whose name a result gets: the recipe is applied, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.match.proposal import Proposal

Tensors = dict[str, torch.Tensor]
LAYERS = {f"layers.{n}.w": torch.randn(4, 4) for n in range(4)}


def applied(here: Tensors, there: Tensors, left: Tensors, *, values: bool) -> Proposal:
    """Assert that the written file makes the names of ``there``, and gives ``left`` other names; return the proposal.

    With ``values``, all tensors of ``there`` must be made, bit for bit.
    """
    for name, tensors in (("here", here), ("there", there)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, f"{name}.safetensors")
    found = cs.match("here.safetensors", "there.safetensors", values=values, output="moved.yaml", force=True)
    assert found.complete
    cs.apply("moved.yaml", "out.safetensors", force=True)
    made = load_file("out.safetensors")
    assert made.keys() == {*there, *(f"unused.{key}" for key in left)}
    assert all(torch.equal(made[f"unused.{key}"], tensor) for key, tensor in left.items())
    assert all(made[key].shape == tensor.shape for key, tensor in there.items())
    assert not values or all(torch.equal(made[key], tensor) for key, tensor in there.items())
    return found


@pytest.mark.parametrize("turned", [False, True])
def test_the_first_layer_is_not_used_and_the_second_gets_its_name(turned: bool) -> None:
    there = {f"layers.{n - 1}.w": LAYERS[f"layers.{n}.w"] for n in (1, 2, 3)}
    there = {key: one.T for key, one in there.items()} if turned else there
    found = applied(LAYERS, there, {"layers.0.w": LAYERS["layers.0.w"]}, values=True)
    assert [*found.unmatched] == ["layers.0.w"]
    said = [note for note in found.notes if "unused.KEY" in note]
    assert said == [
        "1 tensor of the source (layers.0.w): it is not used, and other tensors get its name; it becomes unused.KEY"
    ]


def test_names_and_shapes_alone_give_the_name_of_a_tensor_that_is_not_used() -> None:
    here = {"enc.a.weight": torch.randn(4, 8), "enc.b.weight": torch.randn(16, 32)}
    applied(here, {"enc.a.weight": here["enc.b.weight"]}, {"enc.a.weight": here["enc.a.weight"]}, values=False)


def test_a_fused_projection_next_to_a_part_that_is_not_used() -> None:
    here = {"layers.0.qkv_proj.weight": torch.randn(24, 8), "layers.0.q_proj.weight": torch.randn(3, 3)}
    there = {f"layers.0.{one}_proj.weight": torch.randn(8, 8) for one in "qkv"}
    applied(here, there, {"layers.0.q_proj.weight": here["layers.0.q_proj.weight"]}, values=False)


def test_the_name_for_what_is_not_used_is_free(ckpt: Any) -> None:
    a, b, c = torch.randn(4, 8), torch.randn(16, 32), torch.randn(5, 6)
    save_file({"a": a, "b": b, "unused.a": c}, "here.safetensors")
    save_file({"a": b, "unused.a": c}, "there.safetensors")
    assert ckpt("match", "here.safetensors", "there.safetensors", "--values", "-o", "moved.yaml").code == 0
    cs.apply("moved.yaml", "out.safetensors")
    made = load_file("out.safetensors")
    assert {key: one.shape for key, one in made.items()} == {
        "a": b.shape, "unused.a": c.shape, "unused.unused.a": a.shape,
    }  # fmt: skip
