"""Flux: joined matrices of unequal parts, the order of shift and scale, ComfyUI's prefix, and what is an error."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.layouts.conversion import conversion
from ckptsurgeon.planning.layouts.recognise import recognised
from ckptsurgeon.planning.operations.perform import DerivedSource
from ckptsurgeon.tensors.info import TensorInfo

from ...helpers.converting import Tensors, assert_same, converted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
PREFIX = "model.diffusion_model."


def recorded(layout: str, network: str = "flux") -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def test_the_parts_of_a_single_block_and_the_last_modulation() -> None:
    bfl = recorded("bfl")
    made = converted(bfl, "diffusers")
    joined, width = bfl["single_blocks.2.linear1.bias"], 8
    block = "single_transformer_blocks.2"
    assert torch.equal(made[f"{block}.attn.to_k.bias"], joined[width : 2 * width])
    assert torch.equal(made[f"{block}.proj_mlp.bias"], joined[3 * width :])
    shift, scale = bfl["final_layer.adaLN_modulation.1.bias"].chunk(2)
    assert torch.equal(made["norm_out.linear.bias"], torch.cat([scale, shift]))


def test_the_prefix_of_comfyui() -> None:
    bfl, wanted = recorded("bfl"), recorded("diffusers")
    assert_same(converted({f"{PREFIX}{key}": value for key, value in bfl.items()}, "diffusers"), wanted)
    assert_same(converted(wanted, "bfl"), bfl)


@pytest.mark.costly
@pytest.mark.parametrize("network", ["flux", "flux.schnell"])
@pytest.mark.parametrize(("here", "there"), [("bfl", "diffusers"), ("diffusers", "bfl")])
def test_no_tensor_may_be_missing(network: str, here: str, there: str) -> None:
    tensors = {key: TensorInfo("bfloat16", tuple(one.shape)) for key, one in recorded(here, network).items()}
    ((family, layout),) = recognised(tensors)
    for lost in tensors.keys() - {*layout.marks}:
        less = {key: info for key, info in tensors.items() if key != lost}
        with pytest.raises(PlanError, match=re.escape(lost)):
            conversion(family, layout, family.named(there), DerivedSource(less), {}, "model")


def test_a_joined_matrix_whose_rows_do_not_fit_is_an_error() -> None:
    bfl = recorded("bfl")
    bfl["single_blocks.0.linear1.weight"] = torch.ones(55, 8)
    with pytest.raises(
        PlanError,
        match=r"single_blocks.0.linear1.weight has 55 rows, which cannot be divided into 8 rows of queries and 32",
    ):
        converted(bfl, "diffusers")


def test_what_has_no_name_is_an_error_and_other_networks_are_not_recognised() -> None:
    bfl, diffusers = recorded("bfl"), recorded("diffusers")
    for extra in ("scaled_fp8", "double_blocks.0.img_attn.qkv.scale_weight", "single_blocks.0.linear1.lora_A.weight"):
        with pytest.raises(PlanError, match=f"no name in the layout diffusers of the family flux: {extra}"):
            converted({**bfl, extra: torch.ones(1)}, "diffusers")
    hunyuan = {key.replace("x_embedder.", "x_embedder.proj."): value for key, value in diffusers.items()}
    assert not recognised(hunyuan)
    shared = {key: value for key, value in bfl.items() if "_mod." not in key}  # Flux.2 has one modulation for all
    assert not recognised(shared)


def test_the_models_in_a_file_of_comfyui_are_converted_one_at_a_time() -> None:
    vae = recorded("ldm", "stable-diffusion.vae")
    tensors = {f"{PREFIX}{key}": value for key, value in recorded("bfl").items()}
    tensors |= {f"vae.{key}": value for key, value in vae.items() if key.startswith("decoder.")}
    with pytest.raises(PlanError, match="110 tensors of .* have no name in the layout diffusers") as error:
        converted(tensors, "diffusers")
    taken = "ckpt filter --include model.diffusion_model takes this one out."
    assert error.value.hint == f"Convert one model at a time: {taken}"
