"""ESPnet's own earlier names: its first transformers, the recurrent networks of ESPnet 1, front ends of s3prl."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"


def recorded(family: str, layout: str) -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / family / f"{layout}.safetensors")


def between(tensors: Tensors) -> Tensors:
    """The first names with the present one of the input layer, as a few months of 2019 had them."""
    return {key.replace("encoder.input_layer.", "encoder.embed."): value for key, value in tensors.items()}


def test_the_position_encodings_of_early_versions_are_left_out_with_a_note() -> None:
    first = recorded("espnet-transformer", "espnet-first")
    assert "encoder.input_layer.out.1.pe" in first
    made, notes = converted_and_noted(first, "espnet")
    assert_same(made, recorded("espnet-transformer", "espnet"))
    assert "left out: encoder.input_layer.out.1.pe, decoder.embed.1.pe, which ESPnet computes" in notes


def test_files_between_the_two_renamings_are_read() -> None:
    middle = between(recorded("espnet-transformer", "espnet-first"))
    assert {"encoder.embed.conv.0.weight", "encoder.norm.weight", "decoder.output_norm.bias"} <= middle.keys()
    assert_same(converted(middle, "espnet"), recorded("espnet-transformer", "espnet"))


def test_an_encoder_for_ctc_alone_is_converted_there_and_back() -> None:
    present = recorded("espnet-transformer", "espnet")
    encoder = {key: value for key, value in present.items() if not key.startswith("decoder.")}
    first = converted(encoder, "espnet-first")
    assert {"encoder.norm.bias", "encoder.input_layer.out.0.weight", "ctc.ctc_lo.weight"} <= first.keys()
    assert_same(converted(first, "espnet"), encoder)


def test_the_attention_that_espnet_1_stores_twice_is_stored_once() -> None:
    first = recorded("espnet-rnn", "espnet1")
    assert torch.equal(first["att.0.mlp_enc.weight"], first["dec.att.0.mlp_enc.weight"])
    made, notes = converted_and_noted(first, "espnet")
    assert_same(made, recorded("espnet-rnn", "espnet"))
    assert "left out: att, since ESPnet 2 uses dec.att in its place" in notes
    back, notes = converted_and_noted(made, "espnet1")
    assert_same(back, first)
    assert "added: att, a copy of decoder.att_list, since ESPnet 1 stores both" in notes


def test_the_convolutions_of_vgg_keep_their_names() -> None:
    first = recorded("espnet-rnn", "espnet1")
    vgg = {key.replace("enc.enc.0.", "enc.enc.1."): value for key, value in first.items()}
    vgg["enc.enc.0.conv1_1.weight"] = torch.ones(64, 1, 3, 3)
    made = converted(vgg, "espnet")
    assert "encoder.enc.0.conv1_1.weight" in made
    assert_same(converted(made, "espnet1"), vgg)


@pytest.mark.long
def test_a_front_end_of_s3prl_in_a_transformer_is_moved_with_the_rest_as_it_is() -> None:
    """The encoder alone would be a network of espnet-transformer."""
    transformer = recorded("espnet-transformer", "espnet")
    before = {**transformer, **recorded("espnet-s3prl", "espnet-202207"), "preencoder.linear_out.bias": torch.ones(8)}
    made = converted(before, "espnet")
    deeper = ("frontend.upstream.", "frontend.upstream.upstream.")
    assert_same(made, {key.replace(*deeper): value for key, value in before.items()})
    assert_same(converted(made, "espnet-202207"), before)


@pytest.mark.parametrize(
    ("family", "layout", "more", "target"),
    [
        ("espnet-transformer", "espnet-first", "decoder.after_norm.weight", "espnet"),
        ("espnet-transformer", "espnet", "normalize.mean", "espnet-first"),
        ("espnet-rnn", "espnet1", "rnnlm.predictor.embed.weight", "espnet"),
        ("espnet-rnn", "espnet", "frontend.weight", "espnet1"),
        ("espnet-s3prl", "espnet-202207", "frontend.logmel.melmat", "espnet"),
        ("espnet-s3prl", "espnet", "model.frontend.weight", "espnet-202207"),
    ],
)
def test_what_has_no_name_is_an_error(family: str, layout: str, more: str, target: str) -> None:
    with pytest.raises(PlanError, match=f"no name in the layout {target} .*{re.escape(more)}"):
        converted({**recorded(family, layout), more: torch.ones(2)}, target)


def test_a_layer_without_a_tensor_is_an_error() -> None:
    less = recorded("espnet-transformer", "espnet-first")
    del less["decoder.decoders.1.norm3.bias"]
    with pytest.raises(PlanError, match=r"decoder\.decoders\.1\.norm3\.bias is missing from before.safetensors"):
        converted(less, "espnet")


@pytest.mark.long
def test_a_transplant_into_espnet_2_converts_the_names() -> None:
    for family, first in (
        ("espnet-transformer", "espnet-first"),
        ("espnet-rnn", "espnet1"),
        ("espnet-s3prl", "espnet-202207"),
    ):
        wanted = recorded(family, "espnet")
        save_file(recorded(family, first), "old.safetensors")
        save_file({key: torch.zeros_like(value) for key, value in wanted.items()}, "new.safetensors")
        cs.apply(cs.transplant("old.safetensors", "new.safetensors"), "out.safetensors", force=True)
        assert_same(load_file("out.safetensors"), wanted)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("espnet-transformer", "espnet"),
        ("espnet-transformer", "espnet-first"),
        ("espnet-rnn", "espnet"),
        ("espnet-rnn", "espnet1"),
        ("espnet-s3prl", "espnet"),
        ("espnet-s3prl", "espnet-202207"),
    ],
)
def test_both_names_are_recognised(ckpt: Any, family: str, layout: str) -> None:
    found = json.loads(ckpt("layouts", str(RECORDED / family / f"{layout}.safetensors"), "--json").out)["found"]
    assert [(one["family"], one["layout"]) for one in found] == [(family, layout)]
