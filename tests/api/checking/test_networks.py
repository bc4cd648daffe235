"""Checks of single files of Stable Diffusion and Flux: what is missing is named."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.checking.networks import network_notes
from ckptsurgeon.checkpoint.opening import open_checkpoint

from ..layouts.test_diffusion import recorded
from ..layouts.test_flux import recorded as flux

U_NET, VAE = "model.diffusion_model", "first_stage_model"


def failures(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Return the failures of a file with the tensors, without those of values."""
    save_file(tensors, "x.safetensors")
    rows = [row for row in cs.check("x.safetensors").rows if row.id in ("configuration", "missing-tensors")]
    return [found.what for row in rows for found in row.found if found.status.value == "FAIL"]


def test_a_whole_file_passes() -> None:
    assert failures(recorded("", "ldm")) == []


@pytest.mark.costly
@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (f"{U_NET}.output_blocks.5.", f"{U_NET}.output_blocks.5 is missing, although {U_NET}.output_blocks.6 is there"),
        (f"{VAE}.decoder.conv_out.bias", f"{VAE}.decoder.conv_out.bias is missing, although other "),
    ],
)
def test_what_a_file_lacks_is_named(lost: str, said: str) -> None:
    (found,) = failures({key: value for key, value in recorded("", "ldm").items() if not key.startswith(lost)})
    assert found.startswith(said)


@pytest.mark.parametrize(
    ("network", "layout", "lost", "named"),
    [
        ("", "ldm", f"{U_NET}.middle_block.1", ""),
        ("", "diffusers", "unet.mid_block.attentions.0", ""),
        ("", "ldm", f"{U_NET}.middle_block.1.transformer_blocks.0", ""),
        ("", "ldm", f"{U_NET}.input_blocks.1.0", ".in_layers.2.bias"),
        (".unet", "ldm", f"{U_NET}.middle_block.1", ""),
        (".unet", "ldm", f"{U_NET}.input_blocks.1", ""),
        (".unet", "ldm", f"{U_NET}.output_blocks.0", ""),
        (".unet", "diffusers", "down_blocks.0", ""),
        (".unet", "diffusers", "up_blocks.0", ""),
        ("", "ldm", f"{VAE}.encoder.down.2", ".block.0"),
        ("", "ldm", f"{VAE}.decoder.up.2", ".block.0"),
        ("", "diffusers", "vae.decoder.up_blocks.2", ".resnets.0"),
        (".vae", "ldm", "decoder.up.0", ".block.0"),
        (".vae", "diffusers", "encoder.down_blocks.2", ".resnets.0"),
        (".vae", "ldm", "encoder.mid.attn_1", ".norm.bias"),
        (".vae", "diffusers", "encoder.mid_block.attentions.0", ".group_norm.bias"),
    ],
)
def test_a_block_at_the_end_or_in_the_middle_is_named(network: str, layout: str, lost: str, named: str) -> None:
    tensors = recorded(network, layout)
    assert not list(network_notes(open_checkpoint(tensors)))
    less = {key: value for key, value in tensors.items() if not key.startswith(f"{lost}.")}
    (note,) = network_notes(open_checkpoint(less))
    assert note.startswith(f"{lost}{named} is missing, ")


def test_a_distilled_u_net_without_attention_in_the_middle_is_not_judged() -> None:
    """SSD-1B has one residual block in the middle, and KOALA has none."""
    for first in (1, 0):
        lost = tuple(f"{U_NET}.middle_block.{number}." for number in range(first, 3))
        tensors = {key: value for key, value in recorded(".unet", "ldm").items() if not key.startswith(lost)}
        assert not list(network_notes(open_checkpoint(tensors)))


def test_a_vae_of_another_model_is_named() -> None:
    tensors, key = recorded("", "ldm"), f"{VAE}.decoder.conv_in.weight"
    tensors[key] = torch.randn(len(tensors[key]), 16, 3, 3)
    assert failures(tensors) == ["the U-Net makes 4 channels, but the VAE decodes 16"]


@pytest.mark.parametrize("lost", ["double_blocks.0", "single_blocks.1.linear2.weight", "vector_in.in_layer.weight"])
def test_what_flux_lacks_is_named(lost: str) -> None:
    tensors = flux("bfl")
    (found,) = failures({key: value for key, value in tensors.items() if not key.startswith(lost)})
    assert found.startswith(f"{lost} is missing, although ")


@pytest.mark.parametrize(
    ("layout", "prefix", "vae", "lost"),
    [
        ("bfl", f"{U_NET}.", f"{VAE}.", "single_blocks.0.linear1.weight"),
        ("diffusers", "transformer.", "vae.", "single_transformer_blocks.0.proj_out.weight"),
        ("diffusers", "transformer.", "vae.", "transformer_blocks.0"),
    ],
)
def test_the_transformer_in_a_whole_pipeline_of_flux_is_checked(layout: str, prefix: str, vae: str, lost: str) -> None:
    own = recorded(".vae", {"bfl": "ldm"}.get(layout, layout))
    tensors = {f"{prefix}{key}": value for key, value in flux(layout).items()}
    tensors |= {f"{vae}{key}": value for key, value in own.items()}
    assert not list(network_notes(open_checkpoint(tensors)))
    less = {key: value for key, value in tensors.items() if not f"{key}.".startswith(f"{prefix}{lost}.")}
    (note,) = network_notes(open_checkpoint(less))
    assert note.startswith(f"{prefix}{lost} is missing, although other ")
    level = f"{vae}decoder.up.2" if layout == "bfl" else f"{vae}decoder.up_blocks.2"
    less = {key: value for key, value in tensors.items() if not key.startswith(f"{level}.")}
    (note,) = network_notes(open_checkpoint(less))
    assert note.startswith(f"{level}.{'block' if layout == 'bfl' else 'resnets'}.0 is missing, ")


def test_another_network_with_the_blocks_of_flux_is_not_judged() -> None:
    for layout, embedding in (("bfl", "vector_in."), ("diffusers", "time_text_embed.text_embedder.")):
        tensors = {key: value for key, value in flux(layout).items() if not key.startswith(embedding)}
        assert not list(network_notes(open_checkpoint(tensors)))
