"""icefall's scaled layers, whose products with their scales are plain layers: conformers, LSTMs and Emformers."""

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

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "icefall-transducer"


def plain() -> Tensors:
    """The tensors of a network with plain layers."""
    return load_file(RECORDED / "icefall-plain.safetensors")


def scale_of(key: str) -> str:
    """The key of the scale of a parameter in icefall's scaled layers."""
    return "decoder.embedding.scale" if key == "decoder.embedding.weight" else f"{key}_scale"


def scaled() -> Tensors:
    """The network as it is trained: other numbers, each with a scale of its own."""
    torch.manual_seed(1)
    tensors = plain()
    scales = {scale_of(key): torch.randn(()) for key in tensors if not key.endswith(".eps")}
    return tensors | scales


def products(tensors: Tensors, dtype: torch.dtype = torch.float64) -> Tensors:
    """The values that icefall's scaled layers compute with: ``weight * weight_scale.exp()``."""
    return {
        key: (value.to(dtype) * tensors[scale_of(key)].to(dtype).exp()).to(value.dtype)
        if scale_of(key) in tensors
        else value
        for key, value in tensors.items()
        if not key.endswith(("_scale", ".scale"))
    }


@pytest.mark.long
def test_scaled_layers_become_plain_ones() -> None:
    made, notes = converted_and_noted(scaled(), "icefall-plain")
    assert "from the layout of icefall with scaled layers to that of icefall with plain layers" in notes
    assert_same(made, products(scaled()))
    theirs = products(scaled(), torch.float32)
    assert all(torch.allclose(made[key], theirs[key], rtol=3e-7, atol=0) for key in theirs)


@pytest.mark.long
def test_plain_layers_get_scales_of_zero_and_come_back() -> None:
    made = converted(plain(), "icefall-scaled")
    assert made.keys() == scaled().keys()
    assert all(not made[key].any() and made[key].shape == () for key in made.keys() - plain().keys())
    assert_same(converted(made, "icefall-plain"), plain())


def test_a_checkpoint_of_icefall_is_read_by_its_entry() -> None:
    torch.save({"model": scaled(), "model_avg": plain() | scaled(), "epoch": 30}, "epoch-30.pt")
    cs.apply(cs.convert("epoch-30.pt", layout="icefall-plain", root="model"), "plain.safetensors")
    assert_same(load_file("plain.safetensors"), products(scaled()))


@pytest.mark.long
def test_layers_of_lstms_and_emformers_are_scaled_too() -> None:
    first = "encoder.encoder.layers.0."
    lstm = {"lstm.weight_ih_l0": (8, 2), "lstm.bias_hh_l0": (8,), "lstm.weight_hr_l0": (2, 2)}
    more = {
        f"{first.replace('.0.', f'.{n}.')}{key}": torch.randn(shape) for n in range(2) for key, shape in lstm.items()
    }
    network = {**plain(), **more}
    made = converted(network, "icefall-scaled")
    assert f"{first}lstm.weight_hr_l0_scale" in made
    made = {key: value - 1 if key.endswith("scale") else value for key, value in made.items()}
    assert_same(converted(made, "icefall-plain"), products(made))
    emformer = {key.replace("encoder.layers", "encoder.emformer_layers"): value for key, value in scaled().items()}
    assert_same(converted(emformer, "icefall-plain"), products(emformer))


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("names", [("a*b", "axb"), ("a{b",), (".".join("0" * 27), ".".join("1" * 27)), ("007",)])
def test_parameters_whose_names_have_special_characters_or_many_numbers_are_scaled(names: tuple[str, ...]) -> None:
    more = {f"encoder.{name}.weight": torch.randn(2, 3 + n) for n, name in enumerate(names)}
    network = {**plain(), **more}
    made = converted(network, "icefall-scaled")
    assert {f"{key}_scale" for key in more} < made.keys()
    assert_same(converted(made, "icefall-plain"), network)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("encoder.encoder.layers.1.feed_forward.0.weight_scale", "is missing from before.safetensors"),
        ("encoder.encoder.layers.1.self_attn.pos_bias_u", "is missing from before.safetensors"),
        ("encoder.encoder_embed.conv.3.bias_scale", "must match one tensor"),
    ],
)
def test_a_parameter_without_its_scale_is_an_error(lost: str, said: str) -> None:
    less = scaled()
    del less[lost]
    with pytest.raises(PlanError, match=f"{re.escape(lost.removesuffix('_scale'))}.*{said}"):
        converted(less, "icefall-plain")


def test_a_scale_of_several_numbers_is_an_error() -> None:
    tensors = {**scaled(), "joiner.output_linear.weight_scale": torch.ones(7)}
    with pytest.raises(PlanError, match=r"the shape of joiner\.output_linear\.weight_scale is .*one number"):
        converted(tensors, "icefall-plain")


def test_what_has_no_name_is_an_error() -> None:
    with pytest.raises(PlanError, match=r"no name in the layout icefall-plain .*ctc_output\.1\.weight"):
        converted({**scaled(), "ctc_output.1.weight": torch.ones(2)}, "icefall-plain")


def test_a_transplant_into_a_network_with_scales_adds_zeros() -> None:
    save_file(plain(), "plain.safetensors")
    save_file(scaled(), "scaled.safetensors")
    cs.apply(cs.transplant("plain.safetensors", "scaled.safetensors"), "out.safetensors")
    made = load_file("out.safetensors")
    assert made.keys() == scaled().keys()
    assert_same(products(made), plain())


@pytest.mark.long
def test_both_are_recognised_and_zipformer_is_not(ckpt: Any) -> None:
    zipformer = {
        key.replace("encoder.encoder.layers", "encoder.encoders.0.layers"): value for key, value in plain().items()
    }
    for tensors, layouts in ((plain(), ["icefall-plain"]), (scaled(), ["icefall-scaled"]), (zipformer, [])):
        save_file(tensors, "model.safetensors")
        found = json.loads(ckpt("layouts", "model.safetensors", "--json").out)["found"]
        assert [one["layout"] for one in found] == layouts


def test_a_zipformer_is_named(ckpt: Any) -> None:
    save_file({"encoder.encoders.0.layers.0.self_attn_weights.in_proj.weight": torch.ones(2, 2)}, "z.safetensors")
    said = " ".join(ckpt("layouts", "z.safetensors").out.split())
    assert "it is icefall's Zipformer, which no other library stores" in said
    with pytest.raises(PlanError, match="to the layout icefall-scaled: it is icefall's Zipformer"):
        cs.convert("z.safetensors", layout="icefall-scaled")
