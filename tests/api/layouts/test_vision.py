"""ViT and CLIP: forms of transformers' layout, one tower alone, and what has no place in the other layout."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"


def recorded(family: str, layout: str) -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / family / f"{layout}.safetensors")


def made(family: str, recording: str) -> None:
    """Write the folder ``made`` for transformers, from a recording."""
    Path("made").mkdir()
    save_file(converted(recorded(family, recording), "transformers"), "made/model.safetensors", {"format": "pt"})
    shutil.copy(RECORDED / family / "config.json", "made")


@pytest.mark.long
def test_each_form_of_vit_has_a_name_in_timm() -> None:
    """The files that transformers writes, and its networks in memory, with the head and without."""
    from transformers import ViTForImageClassification, ViTModel

    made("vit", "timm")
    whole = ViTForImageClassification.from_pretrained("made")
    bare = ViTModel.from_pretrained("made", add_pooling_layer=False)
    whole.save_pretrained("whole")
    bare.save_pretrained("bare")
    timm = recorded("vit", "timm")
    headless = {key: value for key, value in timm.items() if not key.startswith("head.")}
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file("whole/model.safetensors")
    assert_same(converted(load_file("whole/model.safetensors"), "timm"), timm)
    assert_same(converted(dict(whole.state_dict()), "timm"), timm)
    assert_same(converted(load_file("bare/model.safetensors"), "timm"), headless)
    assert_same(converted(dict(bare.state_dict()), "timm"), headless)


def test_what_vit_and_timm_do_not_share_is_an_error() -> None:
    from transformers import ViTModel

    made("vit", "timm")
    with pytest.raises(PlanError, match=re.escape("2 tensors of before.safetensors have no name in the layout timm")):
        converted(dict(ViTModel.from_pretrained("made").state_dict()), "timm")  # the pooler
    timm = recorded("vit", "timm")
    for extra in ("blocks.0.ls1.gamma", "reg_token", "fc_norm.weight", "blocks.0.attn.q_norm.weight"):
        with pytest.raises(PlanError, match=f"no name in the layout transformers of the family vit: {extra}"):
            converted({**timm, extra: torch.ones(16)}, "transformers")
    with pytest.raises(PlanError, match="blocks.1.attn.qkv.weight has size 47"):
        converted({**timm, "blocks.1.attn.qkv.weight": torch.ones(47, 16)}, "transformers")


def test_a_timm_network_fills_a_vit_without_a_head() -> None:
    from transformers import ViTConfig, ViTModel

    Path("bare").mkdir()
    config = ViTConfig.from_json_file(RECORDED / "vit" / "config.json")
    config.architectures = ["ViTModel"]
    config.save_pretrained("bare")
    save_file(recorded("vit", "timm"), "timm.safetensors")
    plan = cs.transplant("timm.safetensors", "bare/config.json")
    assert any("converted from the layout of timm" in note for note in plan.notes)
    assert any("timm's layer norms have eps 1e-6" in note for note in plan.notes)
    cs.apply(plan, "filled")
    model, report = ViTModel.from_pretrained("filled", output_loading_info=True)
    assert not report["unexpected_keys"]
    timm = recorded("vit", "timm")
    assert torch.equal(model.state_dict()["layers.1.attention.k_proj.weight"], timm["blocks.1.attn.qkv.weight"][16:32])


@pytest.mark.long
def test_one_tower_of_clip() -> None:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPVisionModel, CLIPVisionModelWithProjection

    made("clip", "openai")
    openai = recorded("clip", "openai")
    vision = {key: value for key, value in openai.items() if key.startswith("visual.")}
    text = {key: value for key, value in openai.items() if key not in vision and key != "logit_scale"}
    projected = (
        CLIPVisionModelWithProjection.from_pretrained("made"),
        CLIPTextModelWithProjection.from_pretrained("made"),
    )
    for model, wanted in zip(projected, (vision, text), strict=True):
        assert_same(converted(dict(model.state_dict()), "openai"), wanted)
    del vision["visual.proj"], text["text_projection"]
    for kind, wanted in ((CLIPVisionModel, vision), (CLIPTextModel, text)):
        assert_same(converted(dict(kind.from_pretrained("made").state_dict()), "openai"), wanted)


def test_what_clip_computes_is_left_out_with_a_note() -> None:
    openai = recorded("clip", "openai")
    sizes = {"input_resolution": torch.tensor(8), "context_length": torch.tensor(8), "vocab_size": torch.tensor(30)}
    save_file({**openai, **sizes}, "jit.safetensors")
    plan = cs.convert("jit.safetensors", layout="transformers")
    assert any("left out: input_resolution, context_length" in note for note in plan.notes)
    assert any("have the activation quick_gelu, most of open_clip's have gelu" in note for note in plan.notes)
    cs.apply(plan, "made.safetensors")
    hf = load_file("made.safetensors")
    assert not hf.keys() & sizes.keys()
    ids = {f"{tower}_model.embeddings.position_ids": torch.arange(8)[None] for tower in ("text", "vision")}
    save_file({**hf, **ids}, "old.safetensors")
    plan = cs.convert("old.safetensors", layout="openai")
    assert any("left out: text_model.embeddings.position_ids" in note for note in plan.notes)
    cs.apply(plan, "back.safetensors")
    assert_same(load_file("back.safetensors"), openai)


def test_what_clip_has_no_name_for_is_an_error() -> None:
    openai = recorded("clip", "openai")
    for extra in ("logit_bias", "visual.layer1.0.conv1.weight", "text_projection.bias", "positional_embedding.scale"):
        with pytest.raises(PlanError, match=f"no name in the layout transformers of the family clip: {extra}"):
            converted({**openai, extra: torch.ones(12)}, "transformers")


@pytest.mark.parametrize(
    "lost", ["transformer.resblocks.1.attn.in_proj_bias", "visual.transformer.resblocks.0.attn.in_proj_bias"]
)
def test_a_layer_of_clip_without_a_joined_tensor_is_an_error(lost: str) -> None:
    openai = recorded("clip", "openai")
    del openai[lost]
    with pytest.raises(
        PlanError, match=re.escape(f"{lost} is missing from before.safetensors, although other layers or modules")
    ):
        converted(openai, "transformers")
