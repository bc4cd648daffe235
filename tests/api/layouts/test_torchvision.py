"""ViT of torchvision: files of its first version, and what transformers' network lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "vit.torchvision"


def recorded() -> Tensors:
    """The tensors of the recording."""
    return load_file(RECORDED / "torchvision.safetensors")


@pytest.mark.long
def test_a_file_with_the_first_names_of_the_mlp_gets_the_present_ones() -> None:
    """Published files have the first names; torchvision renames them itself when it loads them."""
    names = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
    first = {re.sub(r"\.mlp\.[03]\.", lambda found: names[found[0]], key): one for key, one in recorded().items()}
    assert "encoder.layers.encoder_layer_1.mlp.linear_2.bias" in first
    hf = converted(first, "transformers")
    assert_same(hf, converted(recorded(), "transformers"))
    assert_same(converted(hf, "torchvision"), recorded())


def test_timm_and_torchvision_have_the_same_network() -> None:
    timm, notes = converted_and_noted(recorded(), "timm")
    assert "converted from the layout of torchvision to that of timm" in notes
    assert timm["blocks.1.attn.qkv.bias"].shape == (48,)
    assert_same(converted(timm, "torchvision"), recorded())


def test_the_note_says_which_eps_torchvision_has() -> None:
    assert "torchvision's layer norms have eps 1e-6" in converted_and_noted(recorded(), "transformers")[1]


@pytest.mark.parametrize(
    ("extra", "shape"),
    [
        ("heads.pre_logits.weight", (16, 16)),
        ("encoder.layers.encoder_layer_0.self_attention.bias_k", (1, 1, 16)),
        ("encoder.layers.encoder_layer_1.mlp.1.weight", (16, 16)),
    ],
)
def test_what_transformers_lacks_is_an_error(extra: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(PlanError, match=f"no name in the layout transformers of the family vit: {re.escape(extra)}"):
        converted({**recorded(), extra: torch.ones(shape)}, "transformers")


def test_a_stem_of_several_convolutions_is_another_network() -> None:
    others = {key: one for key, one in recorded().items() if not key.startswith("conv_proj.")}
    stem = {"conv_proj.conv_last.weight": torch.ones(16, 8, 1, 1)}
    with pytest.raises(PlanError, match=re.escape("the layout of before.safetensors is not known")):
        converted({**others, **stem}, "transformers")


def test_a_layer_without_a_joined_tensor_is_an_error() -> None:
    less = recorded()
    lost = "encoder.layers.encoder_layer_1.self_attention.in_proj_bias"
    del less[lost]
    with pytest.raises(PlanError, match=re.escape(f"{lost} is missing from before.safetensors")):
        converted(less, "transformers")


@pytest.mark.long
def test_a_network_without_biases_of_queries_keys_and_values_gets_zeros() -> None:
    """torchvision's attention always has them; transformers leaves them out with ``qkv_bias: false``."""
    plain = converted(recorded(), "transformers")
    cut = re.compile(r"attention\.(query|key|value)\.bias")
    without = {key: value for key, value in plain.items() if not cut.search(key)}
    zeros = {key: value * 0 if cut.search(key) else value for key, value in plain.items()}
    made, notes = converted_and_noted(without, "torchvision")
    assert "added: vit.encoder.layer.{n}.attention.attention.query.bias" in notes
    assert "zeros, since torchvision has these biases, and the source does not" in notes
    assert_same(made, converted(zeros, "torchvision"))
    timm = converted(without, "timm")
    assert "blocks.0.attn.qkv.bias" not in timm
    assert_same(converted(timm, "torchvision"), made)
    assert "added:" not in converted_and_noted(plain, "torchvision")[1]


def test_biases_that_some_layers_lack_are_an_error() -> None:
    plain = converted(recorded(), "transformers")
    del plain["vit.encoder.layer.1.attention.attention.key.bias"]
    with pytest.raises(PlanError, match=r"layer\.1\.attention\.attention\.key\.bias is missing"):
        converted(plain, "torchvision")
