"""SpeechBrain's wrappers of wav2vec 2.0, HuBERT, WavLM and Whisper: its folders, heads, and what else they store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.errors import ConfigError, PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"
NETWORKS = [
    "wav2vec2.speechbrain",
    "wav2vec2.speechbrain-pre-training",
    "wav2vec2.speechbrain-hubert",
    "wavlm.speechbrain",
]


def recorded(network: str, layout: str = "speechbrain") -> Tensors:
    """The tensors of a recording."""
    return load_file(RECORDED / network / f"{layout}.safetensors")


def saved(tensors: Tensors, name: str = "wav2vec2") -> Path:
    """A folder of SpeechBrain's Checkpointer with a recogniser that has the tensors as ``name``."""
    folder = Path("save/CKPT+2026-03-01+12-00-00+00")
    folder.mkdir(parents=True)
    torch.save(tensors, folder / f"{name}.ckpt")
    torch.save({"0.w.weight": torch.ones(7, 8), "0.w.bias": torch.ones(7)}, folder / "model.ckpt")
    (folder / "CKPT.yaml").write_text("WER: 12.5\nend-of-epoch: true\nunixtime: 1772366400.0\n")
    return folder


@pytest.mark.costly
@pytest.mark.parametrize("network", NETWORKS)
def test_a_network_in_a_folder_of_the_checkpointer_is_converted_there_and_back(network: str) -> None:
    saved(recorded(network))
    cs.apply(cs.convert("save", root="wav2vec2", layout="transformers"), "plain.safetensors")
    assert_same(load_file("plain.safetensors"), converted(recorded(network), "transformers"))
    cs.apply(cs.convert("plain.safetensors", layout="speechbrain"), "wav2vec2.ckpt")
    assert_same(torch.load("wav2vec2.ckpt", weights_only=True), recorded(network))


@pytest.mark.long
def test_a_recorded_whisper_in_a_folder_is_converted() -> None:
    saved(recorded("whisper.speechbrain"), "whisper")
    cs.apply(cs.convert("save", root="whisper", layout="openai"), "whisper.pt")
    tensors = torch.load("whisper.pt", weights_only=True)
    tensors = tensors.get("model_state_dict", tensors)
    assert "decoder.blocks.1.cross_attn_ln.bias" in tensors
    back = converted(tensors, "transformers")
    assert_same(back, recorded("whisper.speechbrain", "transformers"))


def test_the_mel_filters_of_whisper_are_left_out_with_a_note() -> None:
    made, notes = converted_and_noted(recorded("whisper.speechbrain"), "transformers")
    assert_same(made, recorded("whisper.speechbrain", "transformers"))
    assert "left out: _mel_filters, which transformers computes" in notes


def test_whisper_is_only_read_as_speechbrain_loads_the_names_of_transformers() -> None:
    with pytest.raises(PlanError, match="speechbrain"):
        converted(recorded("whisper", "openai"), "speechbrain")
    made = converted(recorded("whisper", "openai"), "transformers")
    assert made.keys() == recorded("whisper.speechbrain").keys() - {"_mel_filters"}


def test_both_spellings_of_the_weight_norm_are_read() -> None:
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    older = {
        re.sub("|".join(names), lambda found: names[found[0]], key): value
        for key, value in recorded("wav2vec2.speechbrain").items()
    }
    assert "model.encoder.pos_conv_embed.conv.weight_g" in older
    fairseq = recorded("wav2vec2.speechbrain", "speechbrain-fairseq")
    assert_same(converted(older, "speechbrain-fairseq"), fairseq)


def test_a_head_for_ctc_has_no_place_in_the_wrapper() -> None:
    with pytest.raises(
        PlanError, match=r"no name in the layout speechbrain .*lm_head\.bias, lm_head\.weight"
    ) as caught:
        converted(recorded("wav2vec2", "transformers"), "speechbrain")
    assert "ckpt filter --exclude" in str(caught.value)
    without = {key: value for key, value in recorded("wav2vec2", "transformers").items() if "lm_head" not in key}
    made = converted(without, "speechbrain")
    assert {key.partition(".")[0] for key in made} == {"model"}


@pytest.mark.parametrize(
    ("network", "layout", "more"),
    [
        ("wav2vec2.speechbrain-pre-training", "speechbrain", "weights"),
        ("wav2vec2.speechbrain", "speechbrain", "model.encoder.layers.0.adapter_layer.norm.weight"),
        ("wav2vec2.speechbrain", "speechbrain-fairseq", "model.target_glu.0.weight"),
        ("wavlm.speechbrain", "speechbrain", "model.lm_head.weight"),
        ("whisper.speechbrain", "speechbrain", "tokenizer.weight"),
    ],
)
def test_what_has_no_name_is_an_error(network: str, layout: str, more: str) -> None:
    with pytest.raises(PlanError, match=f"no name in the layout transformers .*{re.escape(more)}"):
        converted({**recorded(network, layout), more: torch.ones(2)}, "transformers")


def test_a_layer_without_a_tensor_is_an_error() -> None:
    less = recorded("wavlm.speechbrain")
    del less["model.encoder.layers.1.attention.gru_rel_pos_const"]
    with pytest.raises(PlanError, match=r"model\.encoder\.layers\.1\.attention\.gru_rel_pos_const is missing from"):
        converted(less, "transformers")


def encoder_only() -> Tensors:
    """What SpeechBrain 1.1.2 stores with encoder_only=True: it deletes the decoder, and nothing else changes."""
    found = {key: value for key, value in recorded("whisper.speechbrain").items() if "decoder" not in key}
    assert found.keys() == recorded("whisper.speechbrain-encoder").keys()
    return found


def test_an_encoder_of_whisper_alone_gets_the_names_of_transformers_and_of_openai() -> None:
    made, notes = converted_and_noted(encoder_only(), "transformers")
    plain = recorded("whisper.speechbrain", "transformers")
    assert_same(made, {key: value for key, value in plain.items() if "decoder" not in key})
    assert "the layout of SpeechBrain (encoder_only)" in notes
    whole = converted(recorded("whisper.speechbrain"), "openai")
    assert_same(
        converted(encoder_only(), "openai"), {key: one for key, one in whole.items() if not key.startswith("decoder")}
    )


def test_transformers_loads_the_encoder_of_whisper_and_computes_what_speechbrain_s_encoder_does() -> None:
    import transformers

    save_file(encoder_only(), "encoder.safetensors")
    config = json.loads((RECORDED / "whisper.speechbrain" / "config.json").read_text())
    network = transformers.WhisperForAudioClassification(transformers.WhisperConfig(**config)).eval()
    network.save_pretrained("classifier")
    cs.apply(cs.convert("encoder.safetensors", layout="transformers"), "classifier/model.safetensors", force=True)
    loaded, said = transformers.WhisperForAudioClassification.from_pretrained("classifier", output_loading_info=True)
    assert {key.partition(".")[0] for key in said["missing_keys"]} <= {"projector", "classifier"}
    assert not said["unexpected_keys"]
    whole = transformers.WhisperModel(transformers.WhisperConfig(**config)).eval()
    plain = recorded("whisper.speechbrain", "transformers")
    whole.load_state_dict({key.removeprefix("model."): value for key, value in plain.items()})
    inputs = torch.randn(1, config["num_mel_bins"], 2 * config["max_source_positions"])
    with torch.no_grad():
        outputs = [one.encoder(inputs).last_hidden_state for one in (loaded.eval(), whole)]
    assert torch.equal(outputs[0], outputs[1])


@pytest.mark.costly
@pytest.mark.parametrize("layout", ["transformers", "openai"])
def test_an_encoder_of_whisper_alone_is_known_in_all_layouts(layout: str) -> None:
    made = converted(recorded("whisper.speechbrain-encoder"), layout)
    save_file(made, "encoder.safetensors")
    assert [(one.family, one.layout) for one in cs.layouts("encoder.safetensors").found] == [("whisper", layout)]
    other = {"transformers": "openai", "openai": "transformers"}[layout]
    assert_same(converted(converted(made, other), layout), made)


def test_the_sum_of_layers_that_speechbrain_stores_is_left_out() -> None:
    """Recorded from WeightedSSLModel; the weights of the sum are zeros before training."""
    tensors = recorded("wav2vec2.speechbrain-weighted")
    assert tensors["weights"].tolist() == [0.0, 0.0, 0.0]
    made, notes = converted_and_noted(tensors, "transformers")
    assert_same(made, recorded("wav2vec2.speechbrain-weighted", "transformers"))
    assert "left out: weights, with which SpeechBrain's WeightedSSLModel sums the layers" in notes


def test_an_encoder_with_a_part_of_the_decoder_is_not_known() -> None:
    key = "model.decoder.layer_norm.weight"
    with pytest.raises((ConfigError, PlanError)):
        converted({**encoder_only(), key: recorded("whisper.speechbrain")[key]}, "transformers")


@pytest.mark.costly
@pytest.mark.parametrize("network", ["wav2vec2.speechbrain", "wav2vec2.speechbrain-hubert", "wavlm.speechbrain"])
def test_the_weights_of_a_sum_of_layers_are_left_out_with_a_note(network: str) -> None:
    """WeightedSSLModel of SpeechBrain 1.1.2 has the names of the other wrappers, and one parameter more."""
    made, notes = converted_and_noted({"weights": torch.randn(3), **recorded(network)}, "transformers")
    assert_same(made, converted(recorded(network), "transformers"))
    assert "left out: weights, with which SpeechBrain's WeightedSSLModel sums the layers" in notes


@pytest.mark.costly
@pytest.mark.parametrize(
    ("network", "layout", "family"),
    [
        ("wav2vec2.speechbrain", "speechbrain-fairseq", "wav2vec2"),
        ("whisper.speechbrain", "speechbrain", "whisper"),
        *((network, "speechbrain", network.partition(".")[0]) for network in NETWORKS),
    ],
)
def test_wrappers_are_recognised(ckpt: Any, network: str, layout: str, family: str) -> None:
    file = RECORDED / network / f"{layout}.safetensors"
    found = json.loads(ckpt("layouts", str(file), "--json").out)["found"]
    assert [(one["family"], one["layout"]) for one in found] == [(family, layout)]
