"""Conversions of a family made up for it: names for the same keys, what only training uses, forms without a head."""

from __future__ import annotations

import pytest

from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.layouts.conversion import LayoutConversion, conversion
from ckptsurgeon.planning.layouts.layout import Family, Layout
from ckptsurgeon.planning.operations.perform import DerivedSource
from ckptsurgeon.tensors.info import TensorInfo

BODY = {"body.{n}.fc": "body.{n}.fc"}
OWN = Layout("own", "Own", "1", {**BODY, "mask": "mask", "head": "head"}, ("body.0.fc",), training=("mask", "teacher"))
BARE = Layout("own", "Own", "1", {"body.{n}.fc": "{n}.fc", "mask": "mask"}, ("0.fc",), is_bare=True)
OTHER = Layout(
    "other", "Other", "1", {"body.0.fc": "first.fc", "body.{n}.fc": "rest.{n}.fc", "head": "out"}, ("first",)
)
LARGE = Layout("other", "Other", "1", {"mask": "m", "body.{n}.fc": "layers.{n}", "head": "out"}, ("layers.0",))
SOURCE = Layout("source", "Source", "1", {"body.{n}.fc": "b.{n}", "mask": "mask", "head": "head"}, ("b.0",))


def to(source: Layout, *targets: Layout, keys: str) -> LayoutConversion:
    """The conversion of a state dict with the given keys."""
    family = Family("made-up", (OWN, BARE, OTHER, LARGE, SOURCE))
    network = DerivedSource(dict.fromkeys(keys.split(), TensorInfo("float32", (2,))))
    return conversion(family, source, targets, network, {}, "model")


def test_a_name_for_one_layer_goes_before_that_for_all() -> None:
    assert to(OWN, OTHER, keys="body.0.fc body.1.fc").change.rules == ("body.0.fc=first.fc", "body.{n}.fc=rest.{n}.fc")


def test_a_name_whose_keys_all_have_another_gives_no_rule() -> None:
    """Such a rule would never apply, which is an error elsewhere."""
    assert to(OWN, OTHER, keys="body.0.fc").change.rules == ("body.0.fc=first.fc",)


def test_what_only_training_uses_is_left_out_if_it_has_no_name() -> None:
    found = to(OWN, OTHER, keys="body.0.fc mask teacher.0.fc")
    assert found.change.exclude == ("mask", "teacher")
    assert found.notes == ("left out: mask, teacher, which only training uses: Other has no name for them",)
    found = to(OWN, LARGE, keys="body.0.fc mask teacher")
    assert found.change.exclude == ("teacher",)
    assert found.notes == ("left out: teacher, which only training uses: Other has no name for it",)
    assert not to(OWN, LARGE, keys="body.0.fc mask").notes


def test_the_form_with_names_for_the_most_tensors_is_used_though_it_lacks_one() -> None:
    with pytest.raises(
        PlanError, match="1 tensor of model has no name in the layout other of the family made-up: extra"
    ):
        to(OWN, OTHER, keys="body.0.fc mask extra")
    assert to(OWN, OTHER, LARGE, keys="body.0.fc mask").target is LARGE
    assert to(OWN, OTHER, LARGE, keys="body.0.fc").target is OTHER


def test_the_form_without_a_head_is_used_if_there_is_none() -> None:
    assert to(SOURCE, OWN, BARE, keys="b.0 b.1 mask").target is BARE
    assert to(SOURCE, OWN, BARE, keys="b.0 b.1 mask head").target is OWN
