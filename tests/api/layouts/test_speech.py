"""wav2vec 2.0, the networks made of it, and Parakeet: spellings, what only training uses, heads, and networks that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import Tensors, assert_same, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
OLDER = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def recorded(network: str, layout: str) -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def older(tensors: Tensors) -> Tensors:
    """The tensors with the weight norm in torch's older spelling, as in files of earlier versions."""
    renamed = {}
    for key, value in tensors.items():
        for present, before in OLDER.items():
            key = key.replace(present, before)
        renamed[key] = value
    assert renamed.keys() != tensors.keys()
    return renamed


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["transformers", "torchaudio"])
@pytest.mark.parametrize(
    ("network", "theirs"),
    [("wav2vec2", "fairseq"), ("wav2vec2.pre-trained", "fairseq"), ("wav2vec2.hubert", "fairseq"), ("wavlm", "unilm")],
)
def test_both_spellings_of_the_weight_norm_are_read(network: str, theirs: str, layout: str) -> None:
    present, _ = converted_and_noted(recorded(network, theirs), layout)
    back, _ = converted_and_noted(present, theirs)
    assert_same(converted_and_noted(older(present), theirs)[0], back)
    assert any(key.endswith("pos_conv.0.weight_g") for key in back)


def test_files_of_earlier_transformers_load_and_compute_the_same() -> None:
    import transformers

    Path("model").mkdir()
    save_file(older(recorded("wav2vec2", "transformers")), "model/model.safetensors", {"format": "pt"})
    Path("model/config.json").write_bytes((RECORDED / "wav2vec2" / "config.json").read_bytes())
    model, report = transformers.Wav2Vec2ForCTC.from_pretrained("model", output_loading_info=True)
    assert not report["missing_keys"] | report["unexpected_keys"]
    assert_same(dict(model.state_dict()), recorded("wav2vec2", "transformers"))


@pytest.mark.long
def test_what_only_training_uses_is_left_out_with_a_note() -> None:
    made, notes = converted_and_noted(recorded("wav2vec2.pre-trained", "fairseq"), "torchaudio")
    assert not any(name in key for key in made for name in ("mask", "quantizer", "project_"))
    assert "left out: mask_emb, quantizer, project_q, final_proj, which only training uses: torchaudio has no" in notes
    made, notes = converted_and_noted(recorded("wav2vec2.hubert-pre-trained", "fairseq"), "transformers")
    assert "left out: final_proj, label_embs_concat, which only training uses: transformers (Wav2Vec2) has no" in notes
    assert "masked_spec_embed" in made
    made, notes = converted_and_noted(recorded("wav2vec2.hubert", "fairseq"), "transformers-hubert")
    assert "left out: w2v_encoder.w2v_model.label_embs_concat, which only training uses" in notes
    assert "no name for it" in notes
    _, notes = converted_and_noted(recorded("wav2vec2", "fairseq"), "transformers")
    assert "left out" not in notes


def test_the_average_of_data2vec_s_teacher_is_left_out_with_a_note() -> None:
    tensors = recorded("data2vec-audio.pre-trained", "fairseq")
    made, notes = converted_and_noted({**tensors, "_ema.0.fc1.weight": torch.ones(2)}, "transformers")
    assert_same(made, recorded("data2vec-audio.pre-trained", "transformers"))
    assert "left out: final_proj, _ema, which only training uses" in notes


@pytest.mark.parametrize(
    ("network", "layout", "more", "target"),
    [
        ("wavlm", "transformers", "lm_head.weight", "unilm"),
        ("wav2vec2", "transformers", "wav2vec2.encoder.layers.0.adapter_layer.norm.weight", "fairseq"),
        ("wav2vec2", "fairseq", "w2v_encoder.w2v_model.target_glu.0.weight", "transformers"),
        ("wav2vec2.pre-trained", "fairseq", "input_quantizer.vars", "torchaudio"),
        ("data2vec-audio", "fairseq", "w2v_encoder.w2v_model.encoder.extra.weight", "transformers"),
        ("parakeet", "nemo", "joint.joint_net.2.weight", "transformers"),
    ],
)
def test_what_has_no_name_is_an_error(network: str, layout: str, more: str, target: str) -> None:
    save_file({**recorded(network, layout), more: torch.ones(2)}, "more.safetensors")
    with pytest.raises(PlanError, match=f"1 tensor of more.safetensors has no name in the layout {target}.*{more}"):
        cs.convert("more.safetensors", layout=target)


def test_part_of_what_training_uses_with_a_name_is_not_left_out_with_the_rest() -> None:
    tensors = recorded("wav2vec2.pre-trained", "fairseq")
    save_file({**tensors, "quantizer.extra": torch.ones(2)}, "more.safetensors")
    with pytest.raises(PlanError, match=r"has no name in the layout transformers.*quantizer\.extra"):
        cs.convert("more.safetensors", layout="transformers")


def test_a_layer_without_a_tensor_is_an_error() -> None:
    tensors = recorded("wavlm", "unilm")
    lost = "encoder.layers.1.self_attn.grep_a"
    save_file({key: value for key, value in tensors.items() if key != lost}, "less.safetensors")
    with pytest.raises(PlanError, match=rf"{lost} is missing from less.safetensors"):
        cs.convert("less.safetensors", layout="transformers")


@pytest.mark.costly
@pytest.mark.parametrize("kind", ["group", "layer"])
def test_norms_of_the_convolutions_keep_their_kind(kind: str) -> None:
    """fairseq has the only norm as ``0.2``, and one for each convolution as ``{n}.2.1``."""
    network = {"group": "wav2vec2", "layer": "wav2vec2.pre-trained"}[kind]
    made, _ = converted_and_noted(recorded(network, "transformers"), "fairseq")
    assert_same(made, recorded(network, "fairseq"))
    norms = sorted(key.partition("conv_layers.")[2] for key in made if ".2." in key and "conv_layers" in key)
    wanted = ["0.2.bias", "0.2.weight"] if kind == "group" else [
        f"{n}.2.1.{part}" for n in range(3) for part in ("bias", "weight")
    ]  # fmt: skip
    assert [norm for norm in norms if not norm.startswith("2.0.")] == wanted


@pytest.mark.long
def test_a_transplant_finds_the_names_of_hubert() -> None:
    save_file(recorded("wav2vec2.hubert", "fairseq"), "hubert.safetensors")
    plan = cs.transplant("hubert.safetensors", RECORDED / "wav2vec2.hubert" / "config.json")
    assert any("to that of transformers (Hubert)" in note for note in plan.notes)
    cs.apply(plan, "made")
    assert_same(load_file("made/model.safetensors"), recorded("wav2vec2.hubert", "transformers-hubert"))


@pytest.mark.long
def test_networks_are_told_apart(ckpt: Any) -> None:
    for network, layout, family in (
        ("wav2vec2", "torchaudio", "wav2vec2"),
        ("wavlm", "torchaudio", "wavlm"),
        ("wavlm", "transformers", "wavlm"),
        ("data2vec-audio.pre-trained", "transformers", "data2vec-audio"),
        ("wav2vec2.hubert-pre-trained", "fairseq", "wav2vec2"),
    ):
        save_file(recorded(network, layout), "model.safetensors")
        found = json.loads(ckpt("layouts", "model.safetensors", "--json").out)["found"]
        assert [(one["family"], one["layout"]) for one in found] == [(family, layout)]


def test_the_window_and_filters_of_nemo_are_left_out_with_a_note() -> None:
    tensors = recorded("parakeet", "nemo")
    plain, _ = converted_and_noted(tensors, "transformers")
    made, notes = converted_and_noted({**tensors, "preprocessor.featurizer.window": torch.ones(2)}, "transformers")
    assert_same(made, plain)
    assert "left out: preprocessor.featurizer, which transformers computes" in notes


@pytest.mark.costly
@pytest.mark.parametrize(
    ("network", "name", "head"),
    [
        ("wav2vec2.hubert-pre-trained", "Wav2Vec2Model", ""),
        ("wav2vec2.hubert-pre-trained", "HubertForCTC", "lm_head"),
        ("wavlm", "WavLMForCTC", "lm_head"),
        ("data2vec-audio.pre-trained", "Data2VecAudioForCTC", "lm_head"),
    ],
)
def test_a_network_without_a_head_is_loaded_by_classes_with_and_without_one(network: str, name: str, head: str) -> None:
    import transformers

    made, _ = converted_and_noted(recorded(network, "unilm" if network == "wavlm" else "fairseq"), "transformers")
    Path("model").mkdir()
    save_file(made, "model/model.safetensors", {"format": "pt"})
    fields = json.loads((RECORDED / network / "config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**fields, "vocab_size": 7}))
    _, report = getattr(transformers, name).from_pretrained("model", output_loading_info=True)
    assert report["missing_keys"] == ({f"{head}.weight", f"{head}.bias"} if head else set())
    assert not report["unexpected_keys"]


def test_a_conformer_of_nemo_is_not_that_of_espnet() -> None:
    path = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "parakeet" / "nemo.safetensors"
    with pytest.raises(PlanError, match="the family parakeet has no such layout") as caught:
        cs.convert(path, layout="espnet")
    assert "ESPnet's conformer is another network: its subsampling has convolutions without" in caught.value.hint
