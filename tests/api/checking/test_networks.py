"""Checks of single files of Stable Diffusion and Flux: what is missing is named."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

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


def test_a_vae_of_another_model_is_named() -> None:
    tensors, key = recorded("", "ldm"), f"{VAE}.decoder.conv_in.weight"
    tensors[key] = torch.randn(len(tensors[key]), 16, 3, 3)
    assert failures(tensors) == ["the U-Net makes 4 channels, but the VAE decodes 16"]


@pytest.mark.parametrize("lost", ["double_blocks.0", "single_blocks.1.linear2.weight"])
def test_what_flux_lacks_is_named(lost: str) -> None:
    tensors = flux("bfl")
    (found,) = failures({key: value for key, value in tensors.items() if not key.startswith(lost)})
    assert found.startswith(f"{lost} is missing, although ")
