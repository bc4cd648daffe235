"""Faults of diffusers pipelines that only a comparison of a component with its configuration, or with another, shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...formats.exported.test_diffusers_pipeline import pipeline, recorded

UNET = {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4, "cross_attention_dim": 4}
VAE = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "latent_channels": 4}
CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
}
TEXT = "text_encoder/model.safetensors"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LATENTS = "vae/diffusion_pytorch_model.safetensors"


def made(network: str = "") -> Path:
    """Write a pipeline with configurations, as diffusers does, of networks that diffusers has recorded."""
    tensors = recorded(network, "diffusers")
    pipeline(tensors)
    index = json.loads(Path("sd/model_index.json").read_text())
    index |= {name: entry for name, entry in CLASSES.items() if name in index}
    set_json("sd/model_index.json", {**index, "_class_name": "StableDiffusionPipeline"})
    set_json("sd/unet/config.json", UNET)
    set_json("sd/vae/config.json", VAE)
    return Path("sd")


def set_json(path: str, value: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(value))


def rewrite(path: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(f"sd/{path}")
    change(tensors)
    save_file(tensors, f"sd/{path}")


def failures(path: Path | str) -> list[str]:
    """Return the failures, without those of values, which are random."""
    rows = [row for row in cs.check(path).rows if row.id in ("configuration", "missing-tensors")]
    return [found.what for row in rows for found in row.found if found.status.value == "FAIL"]


@pytest.mark.costly
@pytest.mark.parametrize("network", ["", ".2"])
def test_a_healthy_pipeline_and_its_networks_do_not_fail(network: str) -> None:
    made(network)
    assert [failures(one) for one in ("sd", "sd/unet", "sd/vae")] == [[], [], []]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("network", [".xl", ".refiner"])
def test_pipelines_of_xl_are_healthy_if_the_widths_of_both_text_encoders_add_up(network: str) -> None:
    made(network)
    assert all("text_encoder" in one for one in failures("sd"))  # in this recording each is as wide as both together
    if network == ".xl":
        halve = slice(0, 2)
        for name in ("text_encoder", "text_encoder_2"):
            rewrite(
                f"{name}/model.safetensors",
                lambda t: t.update({k: v[halve].clone() for k, v in t.items() if "final_layer_norm" in k}),
            )
    assert failures("sd") == []


@pytest.mark.long
def test_a_text_encoder_of_another_width_is_named() -> None:
    made()
    norm = "text_model.final_layer_norm.weight"
    rewrite(TEXT, lambda tensors: tensors.update({norm: torch.ones(6)}))
    (said,) = failures("sd")
    assert "text_encoder (6 wide)" in said
    assert "takes 4 for each token" in said


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("width", [8, [4, 4, 8]])
def test_a_wrong_cross_attention_dim_is_named(width: object) -> None:
    made()
    set_json("sd/unet/config.json", {**UNET, "cross_attention_dim": width})
    if width == 8:
        (said,) = failures("sd")
        assert "unet/config.json has cross_attention_dim 8, but down_blocks.0" in said
        assert failures("sd/unet")
    else:  # the third level has no attention on the way down, but the middle takes its width
        assert "mid_block.attentions.0" in failures("sd")[0]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(
    "key",
    [
        "mid_block.resnets.0.norm1.weight", "down_blocks.1.resnets.1.conv2.weight", "conv_out.bias",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k.weight", "time_embedding.linear_2.weight",
    ],
)  # fmt: skip
def test_a_missing_tensor_of_the_unet_is_named(key: str) -> None:
    made()
    rewrite(WEIGHTS, lambda tensors: tensors.pop(key))
    assert [f"unet.{key}" in said for said in failures("sd")] == [True]
    assert [key in said for said in failures("sd/unet")] == [True]


def test_a_missing_block_of_the_unet_is_named() -> None:
    made()
    lost = "up_blocks.1.resnets.2."
    rewrite(WEIGHTS, lambda tensors: [tensors.pop(key) for key in [*tensors] if key.startswith(lost)])
    assert failures("sd") == ["unet.up_blocks.1.resnets.2 is missing, judging by the other blocks of the network"]


@pytest.mark.long
def test_a_missing_tensor_of_the_autoencoder_is_named() -> None:
    made()
    rewrite(LATENTS, lambda tensors: tensors.pop("decoder.up_blocks.1.resnets.0.conv1.weight"))
    assert ["vae.decoder.up_blocks.1.resnets.0.conv1.weight" in said for said in failures("sd")] == [True]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("file", "config", "field", "value"),
    [
        ("unet", UNET, "in_channels", 9),
        ("unet", UNET, "out_channels", 8),
        ("vae", VAE, "latent_channels", 16),
        ("vae", VAE, "out_channels", 1),
    ],
)
def test_other_fields_are_compared_with_the_weights(file: str, config: dict[str, Any], field: str, value: int) -> None:
    made()
    set_json(f"sd/{file}/config.json", {**config, field: value})
    (said,) = failures("sd")
    assert f"{file}/config.json has {field} {value}, but " in said


@pytest.mark.long
def test_an_upscaler_that_makes_a_variance_passes() -> None:
    made()
    index = json.loads(Path("sd/model_index.json").read_text())
    set_json("sd/model_index.json", {**index, "_class_name": "StableDiffusionLatentUpscalePipeline"})
    set_json("sd/unet/config.json", {**UNET, "out_channels": 5})
    ends = ("conv_out.weight", "conv_out.bias")
    rewrite(WEIGHTS, lambda unet: unet.update({end: torch.cat([unet[end], unet[end][:1]]) for end in ends}))
    assert failures("sd") == []


@pytest.mark.long
def test_an_autoencoder_with_other_latents_is_named() -> None:
    made()
    key = "decoder.conv_in.weight"
    rewrite(LATENTS, lambda tensors: tensors.update({key: torch.randn(*tensors[key].shape[:1], 16, 3, 3)}))
    set_json("sd/vae/config.json", {**VAE, "latent_channels": 16})
    assert failures("sd") == ["unet makes 4 channels, but vae decodes 16"]


@pytest.mark.costly
@pytest.mark.parametrize(
    "text", ["[]", "{", '{"_class_name": 3}', '{"_class_name": "UNet2DConditionModel", "in_channels": "x"}']
)
def test_odd_configurations_end_no_check(text: str) -> None:
    made()
    Path("sd/unet/config.json").write_text(text)
    assert failures("sd") == []
