"""DINOv2: forms of transformers' layout, what Meta, timm and transformers do not share, and its neighbours."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import CheckpointError, PlanError
from ckptsurgeon.planning.layouts.recognise import recognised

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
NETWORKS = ("dinov2", "dinov2.giant", "dinov2-with-registers", "dinov2-with-registers.giant")
PLAIN, REGISTERS = "dinov2", "dinov2-with-registers"


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def trained(network: str) -> Tensors:
    """The recording of Meta's tensors, with a mask token and a position embedding of the class token."""
    meta, generator = recorded(network, "meta"), torch.Generator().manual_seed(0)
    meta["mask_token"] = torch.randn(meta["mask_token"].shape, generator=generator)
    meta["pos_embed"][:, 0] = torch.randn(16, generator=generator)
    return meta


def model_of(network: str, name: str, tensors: Tensors, **options: Any) -> Any:
    """A network of transformers that loads all tensors, and lacks none."""
    import transformers

    Path("model").mkdir(exist_ok=True)
    shutil.copy(RECORDED / network / "config.json", "model")
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    model, report = getattr(transformers, name).from_pretrained("model", output_loading_info=True, **options)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def kind_of(network: str) -> str:
    """The name of transformers' class, before ``Model``."""
    return "Dinov2WithRegisters" if REGISTERS in network else "Dinov2"


@pytest.mark.long
@pytest.mark.parametrize("network", NETWORKS)
def test_each_form_of_transformers_has_a_name_in_meta(network: str) -> None:
    """The files that transformers writes, and its networks in memory, with the prefix and without."""
    meta = trained(network)
    hf = converted(meta, "transformers")
    assert_same(converted(hf, "meta"), meta)
    bare = model_of(network, f"{kind_of(network)}Model", hf)
    bare.save_pretrained("bare")
    stored = load_file("bare/model.safetensors")
    assert "encoder.layer.0.attention.attention.query.weight" in stored
    assert_same(converted(stored, "meta"), meta)
    in_memory = dict(bare.state_dict())
    assert "encoder.layer.0.attention.q_proj.weight" in in_memory
    assert_same(converted(in_memory, "meta"), meta)
    prefix = "dinov2_with_registers" if REGISTERS in network else "dinov2"
    assert_same(converted({f"{prefix}.{key}": value for key, value in in_memory.items()}, "meta"), meta)


@pytest.mark.costly
@pytest.mark.parametrize("network", NETWORKS)
def test_the_classifier_of_meta_is_that_of_transformers(network: str) -> None:
    """It has the class token and the mean of the patches as inputs."""
    meta = trained(network)
    head = {"linear_head.weight": torch.randn(5, 32), "linear_head.bias": torch.randn(5)}
    whole = {**{f"backbone.{key}": value for key, value in meta.items()}, **head}
    hf = converted(whole, "transformers")
    assert_same(converted(hf, "meta"), whole)
    model = model_of(network, f"{kind_of(network)}ForImageClassification", hf, num_labels=5)
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        values = model.base_model(image).last_hidden_state
        inputs = torch.cat((values[:, 0], values[:, 5 if REGISTERS in network else 1 :].mean(1)), 1)
        wanted = torch.nn.functional.linear(inputs, head["linear_head.weight"], head["linear_head.bias"])
        torch.testing.assert_close(model(image).logits, wanted)
    assert_same(converted(dict(model.state_dict()), "meta"), whole)


def test_a_head_that_transformers_lacks_is_an_error() -> None:
    """Meta's for four layers, and timm's, whose only input is the class token."""
    meta = {f"backbone.{key}": value for key, value in recorded(PLAIN, "meta").items()}
    assert "classifier" not in str(converted(meta, "transformers").keys())
    with pytest.raises(
        PlanError, match="has no name in the layout transformers of the family dinov2: linear_head.weight"
    ):
        converted({**meta, "linear_head.weight": torch.ones(5, 80)}, "transformers")
    for extra in ("head.weight", "fc_norm.weight", "norm_pre.weight", "blocks.1.attn.q_norm.weight", "dist_token"):
        with pytest.raises(
            PlanError, match=f"no name in the layout transformers of the family dinov2: {re.escape(extra)}"
        ):
            converted({**recorded(PLAIN, "timm"), extra: torch.ones(5, 16)}, "transformers")
    hf = {**converted(recorded(PLAIN, "meta"), "transformers"), "classifier.weight": torch.ones(5, 32)}
    with pytest.raises(PlanError, match="no name in the layout timm of the family dinov2: classifier.weight"):
        converted(hf, "timm")


def test_a_mask_token_is_left_out_or_added_with_a_note() -> None:
    hf = converted(trained(PLAIN), "transformers")
    timm, notes = converted_and_noted(hf, "timm")
    assert "left out: dinov2.embeddings.mask_token, which only training uses: timm has no name for it" in notes
    back, notes = converted_and_noted(timm, "transformers")
    assert "added: dinov2.embeddings.mask_token, zeros, since transformers stores it, and timm does not" in notes
    assert torch.equal(back["dinov2.embeddings.mask_token"], torch.zeros(1, 16))
    same = {key: value for key, value in hf.items() if "mask_token" not in key}
    assert_same({key: value for key, value in back.items() if "mask_token" not in key}, same)
    assert "added" not in converted_and_noted(trained(PLAIN), "transformers")[1]
    assert "added: mask_token, zeros, since Meta" in converted_and_noted(timm, "meta")[1]


def test_a_network_without_a_mask_token_fills_one_that_has_none() -> None:
    from transformers import Dinov2Model

    fields = json.loads((RECORDED / PLAIN / "config.json").read_text())
    Path("config.json").write_text(json.dumps({**fields, "use_mask_token": False}))
    save_file(recorded(PLAIN, "timm"), "timm.safetensors")
    cs.apply(cs.transplant("timm.safetensors", "config.json"), "filled")
    model, report = Dinov2Model.from_pretrained("filled", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    timm = recorded(PLAIN, "timm")
    assert torch.equal(model.encoder.layer[1].attention.k_proj.weight, timm["blocks.1.attn.qkv.weight"][16:32])


def test_the_matrices_of_timm_are_told_apart_by_shapes() -> None:
    """With SwiGLU, the first matrix of the MLP has the same name as without, and has rows for the gate, too."""
    for network, name in (("dinov2.giant", "weights_in"), (PLAIN, "fc1")):
        timm = recorded(network, "timm")
        hf = converted(timm, "transformers")
        assert torch.equal(hf[f"dinov2.encoder.layer.1.mlp.{name}.weight"], timm["blocks.1.mlp.fc1.weight"])


@pytest.mark.costly
@pytest.mark.parametrize("network", NETWORKS[2:])
def test_timm_adds_the_position_embedding_of_the_class_token_to_it(network: str) -> None:
    """What was recorded is timm's own result for the same sum; the two halves add up to it exactly."""
    meta, wanted = recorded(network, "meta"), recorded(network, "timm")
    meta["pos_embed"][:, 0] = meta["cls_token"][:, 0] / 2
    meta["cls_token"] /= 2
    timm, notes = converted_and_noted(converted(meta, "transformers"), "timm")
    assert "timm's cls_token includes its position embedding" in notes
    assert_same(timm, wanted)
    images = load_file(RECORDED / network / "outputs.safetensors")
    model = model_of(network, f"{kind_of(network)}Model", converted(meta, "transformers"))
    with torch.no_grad():
        torch.testing.assert_close(model(images["pixel_values"]).last_hidden_state, images["output"])


@pytest.mark.parametrize(
    ("network", "number", "said"),
    [
        (REGISTERS, 49 + 4 + 1, "with register tokens has them for the patches of a square image alone"),
        (REGISTERS, 4 + 4 + 1, "their number does not show whether the class"),
        (REGISTERS, 0, "with register tokens has them for the patches of a square image alone"),
        (PLAIN, 0, "without register tokens has them for the class token and the patches"),
        (PLAIN, 4, "without register tokens has them for the class token and the patches"),  # as in DeiT III
    ],
)
def test_position_embeddings_for_other_tokens_are_an_error(network: str, number: int, said: str) -> None:
    """The names are the same; and 9 embeddings may be for 3 x 3 patches, or for 2 x 2 patches and 5 other tokens."""
    with pytest.raises(PlanError, match=f"pos_embed has {number} position embeddings.* {said}"):
        converted({**recorded(network, "timm"), "pos_embed": torch.ones(1, number, 16)}, "transformers")


@pytest.mark.costly
@pytest.mark.parametrize("shape", [(), (4,), (0,), (1, 1, 1, 1)])
def test_tensors_of_other_ranks_are_an_error(shape: tuple[int, ...]) -> None:
    timm, hf = recorded(REGISTERS, "timm"), converted(recorded(REGISTERS, "meta"), "transformers")
    for key in ("pos_embed", "cls_token"):
        for others in ({}, {"reg_token": torch.ones(shape), "blocks.0.mlp.fc1.weight": torch.ones(shape)}):
            with pytest.raises(CheckpointError):
                converted({**timm, **others, key: torch.ones(shape)}, "transformers")
    with pytest.raises(CheckpointError):
        converted({**hf, "dinov2_with_registers.embeddings.position_embeddings": torch.ones(shape)}, "timm")


def neighbours() -> dict[str, tuple[Tensors, str, str]]:
    """Networks with names of DINOv2, with the family and layout that they have."""
    vit, meta, timm = recorded("vit", "timm"), recorded(PLAIN, "meta"), recorded(PLAIN, "timm")
    return {
        "DINO, DeiT": (vit, "vit", "timm"),
        "without a head": ({key: one for key, one in vit.items() if not key.startswith("head.")}, "vit", "timm"),
        "of Meta": (meta, "dinov2", "meta"),
        "giant of Meta": (recorded("dinov2.giant", "meta"), "dinov2", "meta"),
        "of timm": (timm, "dinov2", "timm"),
        "giant of timm": (recorded("dinov2.giant", "timm"), "dinov2", "timm"),
        "registers of Meta": (recorded(REGISTERS, "meta"), "dinov2-with-registers", "meta"),
        "registers of timm": (recorded(REGISTERS, "timm"), "dinov2-with-registers", "timm"),
        "ViT": (converted(vit, "transformers"), "vit", "transformers"),
        "DINOv2": (converted(meta, "transformers"), "dinov2", "transformers"),
    }


def test_each_neighbour_has_one_layout() -> None:
    found, wanted = {}, {}
    for name, (tensors, *layout) in neighbours().items():
        save_file(tensors, "one.safetensors")
        wanted[name] = [tuple(layout)]
        with cs.open_checkpoint("one.safetensors") as checkpoint:
            found[name] = [(family.name, form.name) for family, form in recognised(checkpoint)]
    assert found == wanted


def test_blocks_in_chunks_are_another_layout() -> None:
    """Meta's training code may store blocks in chunks, whose number would be lost."""
    meta = {re.sub(r"^blocks\.", "blocks.0.", key): value for key, value in recorded(PLAIN, "meta").items()}
    with pytest.raises(PlanError, match=re.escape("the layout of before.safetensors is not known")):
        converted(meta, "transformers")


def test_notes_say_what_names_cannot() -> None:
    for network, layout, said in (
        (PLAIN, "meta", "with an offset of 0.1, transformers' without one"),
        (PLAIN, "timm", "timm resizes the position embeddings once, when it loads a file"),
        (PLAIN, "timm", "config.json must have image_size, patch_size and num_attention_heads"),
        (REGISTERS, "meta", "config.json must have image_size, patch_size and num_attention_heads"),
    ):
        assert said in converted_and_noted(recorded(network, layout), "transformers")[1]


@pytest.mark.parametrize("lost", ["blocks.1.attn.qkv.bias", "blocks.1.mlp.w12.weight", "blocks.1.ls2.gamma"])
def test_a_layer_without_a_tensor_is_an_error(lost: str) -> None:
    meta = recorded("dinov2.giant", "meta")
    del meta[lost]
    with pytest.raises(
        PlanError, match=re.escape(f"{lost} is missing from before.safetensors, although other layers or modules")
    ):
        converted(meta, "transformers")
