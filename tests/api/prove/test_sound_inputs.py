"""Sounds as inputs: the values of the model's own feature extractor, one batch for a folder, and errors."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.prove.inputs import given_inputs
from ckptsurgeon.api.prove.media import folder_files, sound_inputs

transformers = pytest.importorskip("transformers")
soundfile = pytest.importorskip("soundfile")

RATE = 16_000


def recogniser() -> Any:
    """A wav2vec 2.0 in the folder ``a``, with its feature extractor."""
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
        num_conv_pos_embedding_groups=2, num_conv_pos_embeddings=4,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForCTC(config)
    model.save_pretrained("a")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained("a")
    return model


def whisper() -> Any:
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=16, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_target_positions=8,
        max_source_positions=50, decoder_start_token_id=3, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    model.save_pretrained("a")
    transformers.WhisperFeatureExtractor(chunk_length=1).save_pretrained("a")
    return model


def wave(samples: int, seed: int) -> Any:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype("f4")


def clips(lengths: Mapping[str, int]) -> dict[str, Any]:
    """Write sounds of these lengths into the folder ``clips``; return the samples that their readers get."""
    Path("clips").mkdir(exist_ok=True)
    for seed, (name, samples) in enumerate(lengths.items()):
        soundfile.write(f"clips/{name}", wave(samples, seed), RATE)
    return {name: soundfile.read(f"clips/{name}", dtype="float32")[0] for name in lengths}


def extracted(*waves: Any) -> Any:
    """What the model's users get, one sound after another."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained("a")
    made = [dict(extractor(one, sampling_rate=RATE, return_tensors="pt")) for one in waves]
    return {name: torch.cat([one[name] for one in made]) for name in made[0]}


def same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_sounds_of_a_folder_are_one_batch_in_natural_order() -> None:
    model = recogniser()
    read = clips({"10.wav": 1600, "2.flac": 1600, "1.ogg": 1600, ".hidden.wav": 800, "notes.txt.wav": 1600})
    Path("clips/words.txt").write_text("one two\n")
    found = given_inputs("clips", model, "a")
    assert same(found.arguments, extracted(*(read[name] for name in ("1.ogg", "2.flac", "10.wav", "notes.txt.wav"))))
    assert found.said == "input_values (4, 1600) from clips (without 1 other file)"
    assert found.notes


def test_sounds_of_several_lengths_are_cut_to_the_shortest_not_padded() -> None:
    model = recogniser()
    read = clips({"long.wav": 3200, "short.wav": 1600})
    found = given_inputs("clips", model, "a")
    assert same(found.arguments, extracted(read["long.wav"][:1600], read["short.wav"]))
    assert found.notes == ("the inputs are input_values (2, 1600) from clips (only the first 0.10 s of each)",)


def test_sounds_that_the_extractor_makes_equal_are_not_cut() -> None:
    model = whisper()
    read = clips({"long.wav": 3200, "short.wav": 1600})
    found = given_inputs("clips", model, "a")
    features = extracted(*read.values())["input_features"]
    assert torch.equal(found.arguments["input_features"], features)
    assert not found.notes


def test_the_end_of_a_sound_that_the_extractor_drops_is_said() -> None:
    model = whisper()
    read = clips({"0.wav": 4 * RATE, "1.wav": RATE, "2.wav": RATE + 1})
    found = given_inputs("clips", model, "a")
    assert torch.equal(found.arguments["input_features"], extracted(*read.values())["input_features"])
    assert found.notes == (
        "the inputs are input_features (3, 80, 100), decoder_input_ids (3, 1) from clips (only the first 1 s of 2 sounds)",
    )
    alone = given_inputs("clips/0.wav", model, "a")
    assert alone.unused == "only the first 1 s of 1 sound"
    assert not given_inputs("clips/1.wav", model, "a").notes


def test_an_extractor_that_divides_long_sounds_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recogniser()
    clips({"0.wav": 3200})
    monkeypatch.setattr(transformers.Wav2Vec2FeatureExtractor, "n_samples", 1600, raising=False)
    assert not given_inputs("clips", model, "a").notes


@pytest.mark.long
def test_statistics_of_a_folder_are_means_over_its_sounds() -> None:
    """Gram matrices of two clips are the mean of those of each clip."""
    recogniser()
    clips({"0.wav": 1600, "1.wav": 1600})
    grams = {}
    for name in ("clips", "clips/0.wav", "clips/1.wav"):
        out = f"{name.replace('/', '-')}.safetensors"
        cs.apply(cs.stats("a", inputs=name, gram=True), out)
        with cs.open_checkpoint(out) as found:
            grams[name] = {key: found.tensor(key) for key in found if key.endswith(".gram")}
    both, first, second = grams.values()
    assert both
    for key, matrix in both.items():
        torch.testing.assert_close(matrix, (first[key] + second[key]) / 2, rtol=1e-4, atol=1e-5)


def test_sounds_that_cannot_be_used_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = recogniser()
    clips({"0.wav": 1600, "1.wav": 1600})
    soundfile.write("clips/1.wav", wave(1600, 0), 8000)
    with pytest.raises(cs.ConfigError, match=r"sample rate of clips/1\.wav is 8000 Hz, but the model needs 16000 Hz"):
        given_inputs("clips", model, "a")
    soundfile.write("clips/1.wav", wave(0, 0), RATE)
    with pytest.raises(cs.ConfigError, match=r"clips/1\.wav has no samples"):
        given_inputs("clips", model, "a")
    Path("clips/1.wav").write_bytes(b"no sound")
    with pytest.raises(cs.ConfigError, match=r"clips/1\.wav cannot be read as audio"):
        given_inputs("clips", model, "a")
    clips({"1.wav": 1600})
    monkeypatch.setattr(sound_inputs, "MOST_SAMPLES", 3199)
    with pytest.raises(cs.ConfigError, match="the sounds of clips have more samples than the limit of 3,199"):
        given_inputs("clips", model, "a")
    monkeypatch.setattr(folder_files, "MOST", 1)
    with pytest.raises(cs.ConfigError, match="the folder clips has 2 sounds, but at most 1 are allowed"):
        given_inputs("clips", model, "a")
    monkeypatch.setitem(sys.modules, "soundfile", None)  # as if it were not installed
    with pytest.raises(cs.ConfigError, match="the package soundfile is needed"):
        given_inputs("clips/0.wav", model, "a")


@pytest.mark.parametrize(("images", "sounds"), [(1, 2), (2, 1), (1, 1)])
def test_a_folder_of_images_and_sounds_is_one_of_what_it_has_more_of(images: int, sounds: int) -> None:
    """A picture of the cover among sounds is left out, and said; it made the folder one of images."""
    model = recogniser()
    clips({f"{number}.wav": 1600 for number in range(sounds)})
    for number in range(images):
        Path(f"clips/cover{number}.jpg").write_bytes(b"no image")
    if sounds > images:
        found = given_inputs("clips", model, "a")
        assert found.said == "input_values (2, 1600) from clips (without 1 other file)"
    else:
        with pytest.raises(cs.ConfigError, match="image"):
            given_inputs("clips", model, "a")


def test_a_folder_with_other_files_is_an_error_that_names_both_kinds() -> None:
    model = recogniser()
    Path("clips").mkdir()
    Path("clips/sound.mp3").write_bytes(b"x")
    with pytest.raises(cs.ConfigError, match="the folder clips has neither images nor sounds"):
        given_inputs("clips", model, "a")


@pytest.mark.long
def test_recognisers_with_other_alphabets_are_compared_by_the_letters_of_both() -> None:
    """The inputs are sounds, so only the output layer has a row for each token."""
    model = recogniser()
    model.save_pretrained("b")
    letters = {"a": ["<pad>", "|", *"abcdef"], "b": ["<pad>", "|", *"fedcba"]}
    for folder, tokens in letters.items():
        Path(folder, "vocab.json").write_text(json.dumps({token: row for row, token in enumerate(tokens)}))
    at = [letters["a"].index(token) for token in letters["b"]]
    for name in ("weight", "bias"):
        getattr(model.lm_head, name).data = getattr(model.lm_head, name).data[at]
    model.save_pretrained("b")
    found = cs.prove("a", "b")
    assert found.verdict in ("SAME", "EQUIVALENT")
    assert "the token lists differ: only the 8 tokens that are in both are compared" in found.notes
    model.lm_head.weight.data[3] *= 1.5
    model.save_pretrained("b")
    assert cs.prove("a", "b").verdict == "DIFFERENT"
