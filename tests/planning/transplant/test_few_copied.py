"""The note on a transplant that fills little of the destination, and leaves most of the source, without being asked to."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.plan.plan import Plan

Shapes = dict[str, tuple[int, ...]]
LAYERS = 6


def blocks(at: str, *names: str) -> Shapes:
    return {f"{at}.{n}.{name}.weight": (4, 4) for n in range(LAYERS) for name in names}


META = blocks("layers", "attention.wq", "attention.wo", "feed_forward.w1") | {"norm.weight": (4,)}
OURS = blocks("net.layers", "self_attn.q", "self_attn.o", "mlp.up") | {"norm.weight": (4,)}
ENCODER = blocks("encoder.layers", "q", "k", "v") | {"encoder.norm.weight": (4,)}
DECODER = blocks("decoder.layers", "q", "k", "v", "cross") | {"decoder.norm.weight": (4,)}


def said(source: Shapes, destination: Shapes, **options: Any) -> list[str]:
    for name, shapes in (("meta.pth", source), ("ours.pth", destination)):
        torch.save({key: torch.ones(shape) for key, shape in shapes.items()}, name)
    plan: Plan = cs.transplant("meta.pth", "ours.pth", **options)
    return [note for note in plan.notes if "of the destination come" in note]


def test_one_tensor_of_many_is_said() -> None:
    assert said(META, OURS) == [
        "only 1 of 19 tensors of the destination come from meta.pth, of which 18 tensors are not used; ckpt match proposes "
        "names"
    ]


def test_names_are_not_promised_if_no_shape_fits() -> None:
    smaller = {key: tuple(3 for _ in shape) if len(shape) > 1 else shape for key, shape in META.items()}
    (note,) = said(smaller, OURS)
    assert note.endswith("of which 18 tensors are not used")


def test_what_was_asked_for_is_not_said() -> None:
    assert not said(META, OURS, include=["norm"])
    assert not said(META, OURS, exclude=["layers.0"])
    assert not said(META, OURS, reinit=["net.layers.0"])


def test_if_nothing_is_copied_a_prefix_for_one_tensor_is_not_the_only_hint() -> None:
    ours = {("net." if "norm" in key else "") + key: shape for key, shape in OURS.items()}
    with pytest.raises(PlanError, match="nothing would be loaded") as caught:
        said(META, ours)
    assert caught.value.hint == ("--map '=net' would match 1 of 19 tensors. ckpt match proposes names for the others.")


def test_rules_that_rename_too_little_are_said() -> None:
    rules = ["layers.{n}.attention.wq=net.layers.{n}.self_attn.q", "layers=net.layers"]
    assert said(META, OURS, map=rules)[0].startswith("only 7 of 19 tensors of the destination come from meta.pth")


def test_an_encoder_in_a_model_with_a_decoder_is_not_said() -> None:
    assert not said(ENCODER, ENCODER | DECODER)
    assert not said(ENCODER | DECODER, ENCODER)


def test_a_head_that_is_left_out_is_not_said() -> None:
    assert not said(ENCODER | {"head.weight": (9, 4)}, ENCODER | {"classifier.weight": (3, 4)})


def test_the_command_says_it(ckpt: Any) -> None:
    said(META, OURS)
    done = ckpt("transplant", "meta.pth", "ours.pth", "-o", "out.pth")
    assert done.code == 0
    assert "only 1 of 19 tensors of the destination come from meta.pth" in done.err + done.out


def layers(kinds: str) -> Shapes:
    """Return the shapes of layers with an MLP ("d") or with two experts ("s")."""
    found = blocks("layers", "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "norm")
    for n, kind in enumerate(kinds):
        names = (
            ("up", "down")
            if kind == "d"
            else ("gate", *(f"experts.{e}.{one}" for e in (0, 1) for one in ("up", "down")))
        )
        found |= {f"layers.{n}.mlp.{name}.weight": (4, 4) for name in names}
    return found


def mixed(source: Shapes, destination: Shapes, **options: Any) -> list[str]:
    said(source, destination)
    plan: Plan = cs.transplant("meta.pth", "ours.pth", **options)
    return [note for note in plan.notes if "in the same modules" in note]


def test_modules_of_another_kind_in_a_few_layers_are_said() -> None:
    assert mixed(layers("dsdsds"), layers("sdsdds")) == [
        "14 tensors of the destination keep their values, although the source has other tensors in the same modules, which "
        "are not used: layers.0.mlp, layers.1.mlp, layers.2.mlp, and 1 more"
    ]
    assert not mixed(layers("dsdsds"), layers("dsdsds"))
    assert not mixed(layers("dsdsds"), layers("sdsdds"), exclude=["layers.5"])


def test_modules_that_only_one_of_the_two_has_are_not() -> None:
    encoder = {key.replace("decoder", "encoder"): shape for key, shape in DECODER.items()}
    assert not mixed(encoder, ENCODER)
    assert not mixed(ENCODER, encoder)
    assert not mixed(ENCODER | blocks("encoder.layers", "adapter"), encoder | blocks("encoder.layers", "gate"))


def test_a_part_with_another_name_is_said() -> None:
    vision = blocks("vision.layers", "q", "k", "v", "o")
    one, other = (vision | blocks(f"{name}.layers", "q", "up") for name in ("language_model", "model.language"))
    assert said(one, other) == [
        "only 24 of 36 tensors of the destination come from meta.pth, of which 12 tensors are not used; ckpt match "
        "proposes names"
    ]
    assert not said(vision, other)  # nothing in the source is left
    assert not said(one, other, include=["vision"])
    few = {"old_head.weight": (4, 4)}, {"head.weight": (4, 4)}
    assert not said(vision | few[0], vision | few[1])
