"""Stable Diffusion: block numbers as in the released files, forms of each model, and what is left out with a note."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.layouts.conversion import conversion
from ckptsurgeon.planning.layouts.families.stable_diffusion import FAMILY, family_of
from ckptsurgeon.planning.layouts.parts.autoencoder import Autoencoder
from ckptsurgeon.planning.layouts.parts.pipeline import Pipeline
from ckptsurgeon.planning.layouts.parts.text_encoder import SD_1
from ckptsurgeon.planning.layouts.parts.unet import UNet
from ckptsurgeon.planning.layouts.recognise import recognised
from ckptsurgeon.planning.operations.perform import DerivedSource
from ckptsurgeon.tensors.info import TensorInfo

from ...conftest import Result
from ...helpers.converting import Tensors, assert_same, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
Run = Callable[..., Result]

RELEASED = {
    "unet.down_blocks.1.resnets.0.conv_shortcut": "model.diffusion_model.input_blocks.4.0.skip_connection",
    "unet.down_blocks.1.attentions.1": "model.diffusion_model.input_blocks.5.1",
    "unet.down_blocks.2.downsamplers.0.conv": "model.diffusion_model.input_blocks.9.0.op",
    "unet.down_blocks.3.resnets.1.conv2": "model.diffusion_model.input_blocks.11.0.out_layers.3",
    "unet.mid_block.resnets.1.time_emb_proj": "model.diffusion_model.middle_block.2.emb_layers.1",
    "unet.up_blocks.0.upsamplers.0.conv": "model.diffusion_model.output_blocks.2.1.conv",
    "unet.up_blocks.1.resnets.0.norm1": "model.diffusion_model.output_blocks.3.0.in_layers.0",
    "unet.up_blocks.2.upsamplers.0.conv": "model.diffusion_model.output_blocks.8.2.conv",
    "unet.up_blocks.3.attentions.2": "model.diffusion_model.output_blocks.11.1",
    "vae.decoder.up_blocks.0.resnets.2.conv1": "first_stage_model.decoder.up.3.block.2.conv1",
    "vae.decoder.up_blocks.3.resnets.0.conv_shortcut": "first_stage_model.decoder.up.0.block.0.nin_shortcut",
    "vae.decoder.up_blocks.2.upsamplers.0.conv": "first_stage_model.decoder.up.1.upsample.conv",
    "vae.encoder.mid_block.attentions.0.to_out.0": "first_stage_model.encoder.mid.attn_1.proj_out",
}
"""Names in the released files of Stable Diffusion 1.5, whose U-Net has four levels of two residual blocks."""

RELEASED_XL = {
    "unet.down_blocks.1.resnets.0.conv_shortcut": "model.diffusion_model.input_blocks.4.0.skip_connection",
    "unet.down_blocks.2.attentions.0": "model.diffusion_model.input_blocks.7.1",
    "unet.up_blocks.0.upsamplers.0.conv": "model.diffusion_model.output_blocks.2.2.conv",
    "unet.up_blocks.1.upsamplers.0.conv": "model.diffusion_model.output_blocks.5.2.conv",
    "unet.up_blocks.2.resnets.2.norm2": "model.diffusion_model.output_blocks.8.0.out_layers.0",
    "unet.add_embedding.linear_2": "model.diffusion_model.label_emb.0.2",
    "text_encoder.text_model.final_layer_norm": "conditioner.embedders.0.transformer.text_model.final_layer_norm",
    "text_encoder_2.text_projection.weight": "conditioner.embedders.1.model.text_projection",
}
"""Names in the released file of Stable Diffusion XL, whose first level has no attention."""


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / f"stable-diffusion{network}" / f"{layout}.safetensors")


def test_the_names_of_the_released_files() -> None:
    unet = UNet(((1, 1), (1, 1), (1, 1), (0, 0)), 1, ((0, 0, 0), (1, 1, 1), (1, 1, 1), (1, 1, 1)), "")
    first = family_of(Pipeline(unet, Autoencoder((2, 2, 2, 2), (3, 3, 3, 3), is_quantised=True), SD_1))
    for family, released in ((first, RELEASED), (FAMILY, RELEASED_XL)):
        own, ldm = family.layouts[0], family.named("ldm")[0]
        assert {ours: own.names[ours] for ours in released} == {ours: ours for ours in released}
        assert {ours: ldm.names[ours] for ours in released} == released


@pytest.mark.parametrize("network", ["", ".2", ".xl", ".refiner", ".unet", ".upscaler", ".vae"])
def test_both_spellings_are_of_one_network(network: str) -> None:
    ((ours, one),), ((theirs, other),) = (recognised(recorded(network, name)) for name in ("diffusers", "ldm"))
    assert (one.name, other.name) == ("diffusers", "ldm")
    assert ours is theirs


@pytest.mark.parametrize("network", ["", ".vae"])
def test_the_prefix_of_the_vae_that_comfyui_writes(network: str) -> None:
    ldm, prefix = recorded(network, "ldm"), "" if network else "first_stage_model."
    tensors = {f"vae.{key.removeprefix(prefix)}" if key.startswith(prefix) else key: ldm[key] for key in ldm}
    ((family, layout),) = recognised({key: TensorInfo("float32", tuple(one.shape)) for key, one in tensors.items()})
    assert (family.name, layout.name) == ("stable-diffusion", "ldm")
    assert_same(converted_and_noted(tensors, "diffusers")[0], recorded(network, "diffusers"))


@pytest.mark.long
def test_what_is_no_weight_is_left_out_with_a_note() -> None:
    ldm, wanted = recorded("", "ldm"), recorded("", "diffusers")
    ids = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    schedule = {name: torch.ones(3) for name in ("betas", "alphas_cumprod", "sqrt_alphas_cumprod")}
    flags = {name: torch.zeros(1) for name in ("v_pred", "ztsnr", "model_ema.decay")}
    training = {"first_stage_model.loss.logvar": torch.zeros(1), "cond_stage_model.logit_scale": torch.zeros(1)}
    made, notes = converted_and_noted({**ldm, ids: torch.arange(3)[None], **schedule, **flags, **training}, "diffusers")
    assert_same(made, wanted)
    assert "left out: alphas_cumprod, betas, sqrt_alphas_cumprod, " in notes
    assert ", which diffusers computes" in notes
    assert "left out: v_pred, a flag for sampling: set prediction_type: v_prediction" in notes
    assert "left out: ztsnr, a flag for sampling: set rescale_betas_zero_snr: true" in notes
    assert "left out: model_ema (1 tensor), averages of the weights" in notes
    assert "left out: first_stage_model.loss, which only training uses" in notes
    assert "left out: cond_stage_model.logit_scale, which only a comparison of texts and images uses" in notes
    assert "no tensor shows them" in notes


@pytest.mark.long
def test_what_the_original_files_do_not_have_is_left_out_with_a_note() -> None:
    ids = {"text_encoder.text_model.embeddings.position_ids": torch.arange(3)[None]}
    checker = {f"safety_checker.{name}": torch.ones(2) for name in ("concept_embeds", "special_care_embeds")}
    made, notes = converted_and_noted({**recorded("", "diffusers"), **ids, **checker}, "ldm")
    assert_same(made, recorded("", "ldm"))
    assert "left out: safety_checker (2 tensors), which the original files do not have" in notes
    assert f"left out: {next(iter(ids))}, which the original code, ComfyUI computes" in notes


@pytest.mark.long
def test_the_last_layer_of_the_second_version_is_left_out_with_a_note() -> None:
    ldm = recorded(".2", "ldm")
    _, notes = converted_and_noted(ldm, "diffusers")
    layer = "cond_stage_model.model.transformer.resblocks.23"
    assert f"left out: {layer} (12 tensors), which diffusers does not have" in notes
    shorter = {key: value for key, value in ldm.items() if not key.startswith(layer)}
    made, notes = converted_and_noted(shorter, "diffusers")
    assert_same(made, recorded(".2", "diffusers"))
    assert "resblocks" not in notes


@pytest.mark.long
def test_the_names_of_attention_in_older_autoencoders() -> None:
    now = recorded("", "diffusers")
    older = {
        re.sub(r"(^vae.*attentions\.0\.)(to_q|to_k|to_v|to_out\.0)", lambda m: m[1] + OLDER[m[2]], key): value
        for key, value in now.items()
    }
    assert len(older.keys() - now.keys()) == 16
    assert_same(converted_and_noted(older, "ldm")[0], recorded("", "ldm"))
    alone = {key.removeprefix("vae."): value for key, value in older.items() if key.startswith("vae.")}
    wanted = {key.removeprefix("first_stage_model."): value for key, value in recorded("", "ldm").items()}
    assert_same(
        converted_and_noted(alone, "ldm")[0],
        {key: wanted[key] for key in wanted if key.startswith(("enc", "dec", "q", "po"))},
    )


OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("network", ["", ".2", ".xl"])
def test_text_encoders_as_transformers_writes_them_since_5_6(network: str) -> None:
    """Of the two classes, only CLIPTextModel lost its wrapper: text_encoder_2 keeps it."""
    now = recorded(network, "diffusers")
    flat = {key.replace("text_encoder.text_model.", "text_encoder."): value for key, value in now.items()}
    assert flat.keys() != now.keys()
    assert_same(converted_and_noted(flat, "ldm")[0], converted_and_noted(now, "ldm")[0])


@pytest.mark.long
def test_a_model_alone_is_written_without_prefix_for_diffusers_and_with_it_for_the_original() -> None:
    ldm, diffusers = recorded("", "ldm"), recorded("", "diffusers")
    theirs = {key: value for key, value in ldm.items() if key.startswith("model.diffusion_model.")}
    ours = {key.removeprefix("unet."): value for key, value in diffusers.items() if key.startswith("unet.")}
    bare = {key.removeprefix("model.diffusion_model."): value for key, value in theirs.items()}
    assert_same(converted_and_noted(theirs, "diffusers")[0], ours)
    assert_same(converted_and_noted(bare, "diffusers")[0], ours)
    assert_same(converted_and_noted(ours, "ldm")[0], theirs)
    assert_same(converted_and_noted({f"unet.{key}": value for key, value in ours.items()}, "ldm")[0], theirs)


@pytest.mark.parametrize(
    "lost",
    [
        "model.diffusion_model.input_blocks.2.0.in_layers.2.weight",
        "model.diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.middle_block.1.proj_in.bias",
        "model.diffusion_model.out.2.bias",
        "first_stage_model.decoder.up.1.block.1.norm2.bias",
        "first_stage_model.encoder.down.0.downsample.conv.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.bias",
    ],
)
def test_a_missing_tensor_is_an_error_that_names_it(lost: str) -> None:
    ldm = recorded("", "ldm")
    del ldm[lost]
    with pytest.raises(PlanError, match=re.escape(f"{lost} is missing from")):
        converted_and_noted(ldm, "diffusers")


def shapes(network: str, layout: str) -> dict[str, TensorInfo]:
    """The shapes of a recording."""
    return {key: TensorInfo("float32", tuple(one.shape)) for key, one in recorded(network, layout).items()}


@pytest.mark.long
@pytest.mark.parametrize("network", ["", ".2", ".xl", ".refiner", ".unet", ".upscaler", ".vae"])
@pytest.mark.parametrize(("here", "there"), [("ldm", "diffusers"), ("diffusers", "ldm")])
def test_no_tensor_may_be_missing(network: str, here: str, there: str) -> None:
    """Of the tensors of each network, one after another is left out; each twenty-ninth, to be quick."""
    tensors = shapes(network, here)
    ((_, layout),) = recognised(tensors)
    kept = {key for key in tensors if not any(key.startswith(one) for one in layout.aside)}
    kept -= {"class_embedding.weight", "model.diffusion_model.label_emb.weight"}  # without it, it is another network
    kept -= {*layout.marks}  # without it, the layout is not recognised, which is an error, too
    for lost in sorted(kept)[3::29]:
        less = {key: info for key, info in tensors.items() if key != lost}
        found = recognised(less)
        assert found
        with pytest.raises(PlanError, match="is missing from|has no name|have no name"):
            _ = [
                conversion(family, source, family.named(there), DerivedSource(less), {}, "model")
                for family, source in found
            ]


U_NET, VAE = "model.diffusion_model", "first_stage_model"


@pytest.mark.parametrize(
    ("layout", "lost", "said"),
    [
        ("ldm", f"{U_NET}.output_blocks.1.", f"{U_NET}.output_blocks.1 is missing from model, although "
         f"{U_NET}.output_blocks.2 is there"),
        ("ldm", f"{U_NET}.output_blocks.3.", f"{U_NET}.output_blocks.3 is missing from model, although"),
        ("ldm", f"{U_NET}.output_blocks.8.", f"{U_NET}.output_blocks.8.0 is missing from model, judging by"),
        ("ldm", f"{VAE}.decoder.up.1.block.0.", f"{VAE}.decoder.up.1.block.0 is missing from model, although"),
        ("diffusers", "unet.up_blocks.1.resnets.2.", "unet.up_blocks.1.resnets.2 is missing from model, judging by"),
        ("diffusers", "unet.up_blocks.0.resnets.0.", "unet.up_blocks.0.resnets.0 is missing from model"),
        ("diffusers", "unet.down_blocks.1.", "unet.down_blocks.1 is missing from model, although"),
        ("diffusers", "vae.encoder.down_blocks.1.resnets.1.", "vae.encoder.down_blocks.1.resnets.1 is missing from "),
    ],
)  # fmt: skip
def test_a_missing_block_is_an_error_that_names_it_and_not_the_blocks_after_it(
    layout: str, lost: str, said: str
) -> None:
    less = {key: info for key, info in shapes("", layout).items() if not key.startswith(lost)}
    ((family, source),) = recognised(less)
    other = {"ldm": "diffusers", "diffusers": "ldm"}[layout]
    with pytest.raises(PlanError, match=re.escape(said)):
        conversion(family, source, family.named(other), DerivedSource(less), {}, "model")


@pytest.mark.long
def test_a_tensor_without_a_name_is_an_error() -> None:
    for network, extra in (
        ("", "model.diffusion_model.input_blocks.40.0.in_layers.0.weight"),
        ("", "control_model.input_blocks.0.0.weight"),
        (".vae", "encoder.down.0.attn.0.q.weight"),
        (".unet", "unet.conv_in.weight"),
    ):
        with pytest.raises(PlanError, match=f"no name in the layout .*: {re.escape(extra)}"):
            converted_and_noted({**recorded(network, "ldm"), extra: torch.ones(2)}, "diffusers")


def test_networks_that_are_none_of_stable_diffusion() -> None:
    """A ControlNet has no way up, and an early latent diffusion model no attention to texts."""
    unet = recorded(".unet", "diffusers")
    assert not recognised({key: value for key, value in unet.items() if not key.startswith("up_blocks.")})
    assert not recognised({key: value for key, value in unet.items() if ".transformer_blocks." not in key})
    vae = recorded(".vae", "ldm")
    assert not recognised({key: value for key, value in vae.items() if not key.startswith("decoder.")})


def averaged() -> Tensors:
    """An original file with averages of the weights."""
    return load_file(RECORDED / "stable-diffusion-ema" / "ldm-ema.safetensors")


@pytest.mark.long
def test_a_user_chooses_between_weights_and_their_averages(ckpt: Run) -> None:
    counts = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}
    both = {**averaged(), **counts}
    weights, notes = converted_and_noted(both, "diffusers")
    plain = {key: value for key, value in both.items() if not key.startswith("model_ema.")}
    assert_same(weights, converted_and_noted(plain, "diffusers")[0])
    assert "left out: model_ema (496 tensors), averages of the weights during training; --layout diffusers-ema" in notes
    averages, notes = converted_and_noted(both, "diffusers-ema")
    assert_same(averages, load_file(RECORDED / "stable-diffusion-ema" / "diffusers-ema.safetensors"))
    assert (
        "left out: model.diffusion_model (494 tensors), the weights of the last step; --layout diffusers takes" in notes
    )
    assert "left out: model_ema.decay, model_ema.num_updates, which only training uses" in notes
    same = {key for key in weights if torch.equal(weights[key], averages[key])}
    assert same == {key for key in weights if not key.startswith("unet.")}
    save_file(both, "both.safetensors")
    said = ckpt("layouts", "both.safetensors").out
    assert "layout ldm of stable-diffusion\n" in said
    assert "ckpt convert both.safetensors --layout diffusers-ema -o OUT" in said
    assert "--layout ldm" not in said


@pytest.mark.long
def test_averages_of_some_weights_alone_are_not_taken() -> None:
    both = averaged()
    del both["model_ema.diffusion_modelinput_blocks10in_layers0weight"]
    with pytest.raises(PlanError, match="cannot be converted to the layout diffusers-ema"):
        converted_and_noted(both, "diffusers-ema")


@pytest.mark.long
def test_averages_of_a_u_net_alone_and_a_tensor_that_both_lack() -> None:
    unet = {key: value for key, value in averaged().items() if key.startswith(("model.", "model_ema."))}
    made, _ = converted_and_noted(unet, "diffusers-ema")
    assert "conv_in.weight" in made
    del unet["model.diffusion_model.out.2.bias"], unet["model_ema.diffusion_modelout2bias"]
    with pytest.raises(PlanError, match=r"unet.conv_out.bias is missing"):
        converted_and_noted(unet, "diffusers-ema")


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_one_component_is_taken_out_of_a_whole_model(layout: str, component: str) -> None:
    made, notes = converted_and_noted(recorded(".xl", layout), f"diffusers-{component.replace('_', '-')}")
    whole = recorded(".xl", "diffusers")
    prefix = f"{component}."
    assert_same(made, {key.removeprefix(prefix): one for key, one in whole.items() if key.startswith(prefix)})
    others = {"unet", "vae", "text-encoder", "text-encoder-2"} - {component.replace("_", "-")}
    assert all(f"another component: --layout diffusers-{one} takes it" in notes for one in others)
    assert f"--layout diffusers-{component.replace('_', '-')} takes" not in notes


def test_a_component_that_a_model_does_not_have_is_an_error() -> None:
    with pytest.raises(PlanError, match="cannot be converted to the layout diffusers-text-encoder-2"):
        converted_and_noted(recorded("", "ldm"), "diffusers-text-encoder-2")


@pytest.mark.long
def test_what_is_said_of_the_output() -> None:
    whole = "diffusers reads a file in the folder of each component: --to diffusers writes them, and --layout diffusers-unet"
    assert whole in converted_and_noted(recorded("", "ldm"), "diffusers")[1]
    for network, layout in (("", "diffusers-unet"), (".vae", "diffusers")):
        assert whole not in converted_and_noted(recorded(network, "ldm"), layout)[1]
    shorter = "the text encoder has no layer 23"
    assert whole not in (notes := converted_and_noted(recorded(".2", "diffusers"), "ldm")[1])
    assert shorter in notes
    assert shorter not in converted_and_noted(recorded("", "diffusers"), "ldm")[1]


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize(("source", "target"), [("ldm", "diffusers"), ("diffusers", "ldm")])
def test_a_transplant_finds_the_names_of_a_destination(source: str, target: str) -> None:
    """Also those of a form that nothing else gets: the names of transformers since 5.6."""
    wanted = {
        key.replace("transformer.text_model.", "transformer.").replace("text_encoder.text_model.", "text_encoder."): one
        for key, one in recorded("", target).items()
    }
    save_file(recorded("", source), "source.safetensors")
    save_file({key: torch.zeros_like(one) for key, one in wanted.items()}, "destination.safetensors")
    plan = cs.transplant("source.safetensors", "destination.safetensors")
    cs.apply(plan, "made.safetensors")
    assert_same(load_file("made.safetensors"), wanted)
