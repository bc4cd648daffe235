"""Files that prepare inputs for another model are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

WORDS = ["<pad>", "</s>", "a", "b"]


def model(*added: str, config: dict[str, Any], **files: Any) -> list[str]:
    """Write a folder whose tokeniser adds these tokens; return the notes on it."""
    Path("net").mkdir()
    rows = len(WORDS) + len(added)
    save_file({"model.embed_tokens.weight": torch.ones(rows, 4)}, "net/model.safetensors")
    tokens = [{"id": len(WORDS) + at, "content": one, "special": True} for at, one in enumerate(added)]
    words = {word: at for at, word in enumerate(WORDS)}
    written = {"config": {"model_type": "net", "vocab_size": rows, **config}, **files}
    written["tokenizer"] = {"model": {"type": "WordLevel", "vocab": words}, "added_tokens": tokens}
    template = written.pop("chat", None)
    for name, value in written.items():
        Path("net", f"{name}.json").write_text(json.dumps(value))
    if template is not None:
        Path("net/chat_template.jinja").write_text(template)
    return list(cs.inspect("net").notes)


@pytest.mark.parametrize(
    ("kind", "wanted", "made", "said"),
    [
        ("vit", 32, {"size": {"height": 64, "width": 64}}, "makes images of 64 x 64 (size)"),
        ("vit", 32, {"size": {"height": 32, "width": 32}}, ""),
        ("vit", 32, {"size": 32}, ""),
        (
            "clip_vision_model",
            336,
            {"size": {"shortest_edge": 336}, "crop_size": 224},
            "images of 224 x 224 (crop_size)",
        ),
        ("clip", 224, {"size": 256, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}, ""),
        ("vit", 32, {"size": {"shortest_edge": 64}}, ""),
        ("vit", 32, {"size": 64, "do_resize": False}, ""),
        ("dinov2", 518, {"size": 256, "crop_size": 224}, ""),
    ],
)
def test_a_processor_of_images_of_another_size_is_named(kind: str, wanted: int, made: Any, said: str) -> None:
    part = {"model_type": kind, "image_size": wanted}
    config = {"vision_config": part} if "vision" in kind else part
    found = [note for note in model(config=config, preprocessor_config=made) if "images" in note]
    assert len(found) == bool(said)
    assert all(said in note and f"config.json says {wanted} (image_size)" in note for note in found)


@pytest.mark.parametrize(("bins", "named"), [(80, True), (128, False)])
def test_a_processor_with_other_mel_bins_is_named(bins: int, named: bool) -> None:
    made = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": bins}
    said = "preprocessor_config.json says 80 (feature_size), but config.json says 128 (num_mel_bins)"
    assert (said in model(config={"num_mel_bins": 128}, preprocessor_config=made)) == named


@pytest.mark.parametrize(
    ("number", "added", "named"),
    [(2, ["<image>"], True), (1, ["<image>"], False), (4, ["<image>"], False), (2, ["<audio>"], False), (2, [], False)],
)
def test_a_word_that_stands_for_images_is_named(number: int, added: list[str], named: bool) -> None:
    said = "image_token_index of config.json is 2, but in the tokeniser this is the id of 'a', not of '<image>'"
    assert (said in model(*added, config={"image_token_index": number})) == named


@pytest.mark.parametrize(
    ("added", "named"),
    [
        (["<|im_start|>", "<|im_end|>"], True),
        (["<|im_start|>", "<|eot_id|>"], False),  # a template may write tokens of its own as text
        (["<s>"], False),  # no token has this form, and the model was trained with it as text
    ],
)
def test_a_chat_template_of_another_tokeniser_is_named(added: list[str], named: bool) -> None:
    said = (
        "chat_template.jinja writes tokens that the tokeniser lacks, so that they are split into pieces: '<|eot_id|>'; the tokeniser has "
        "'<|im_end|>', '<|im_start|>'"
    )
    assert (said in model(*added, config={}, chat="{{ m }}<|eot_id|>")) == named


@pytest.mark.parametrize(("kinds", "named"), [(3, True), (2, False)])
def test_kinds_of_more_layers_than_there_are_are_named(kinds: int, named: bool) -> None:
    config = {"layer_types": ["full_attention"] * kinds, "num_hidden_layers": 2}
    said = "layer_types of config.json has 3 entries, but num_hidden_layers is 2: transformers 5 cannot load this model"
    assert (said in model(config=config)) == named


def test_a_special_token_that_is_no_image_is_named() -> None:
    said = "image_token_id of config.json is 4, but in the tokeniser this is the id of '<|end|>', not of '<image>'"
    assert said in model("<|end|>", "<image>", config={"image_token_id": 4})


@pytest.mark.parametrize(
    ("token", "more", "named"),
    [
        ("<unk_img>", {}, False),
        ("<|slot|>", {"image_start_id": 5, "image_end_id": 6}, False),  # <image> and </image> begin and end an image
        ("<|slot|>", {"image_start_id": 5}, True),
        ("<|slot|>", {"video_token_id": 5, "image_end_id": 6}, True),
        ("<|slot|>", {}, True),
    ],
)
def test_a_placeholder_may_have_another_name(token: str, more: dict[str, int], named: bool) -> None:
    notes = model(token, "<image>", "</image>", config={"image_token_id": 4, **more})
    assert any(one.startswith("image_token_id of config.json is 4, but") for one in notes) == named


@pytest.mark.parametrize(("size", "named"), [(16, True), (8, False)])
def test_patches_of_another_size_are_named(size: int, named: bool) -> None:
    said = "processor_config.json says 16 (patch_size), but vision_config of config.json says 8"
    found = model(config={"vision_config": {"patch_size": 8}}, processor_config={"patch_size": size})
    assert (said in found) == named


@pytest.mark.parametrize(("layer", "named"), [(-5, True), (-4, False), (3, False), (4, True), ([-1, -9], True)])
def test_a_layer_of_a_tower_that_there_is_not_is_named(layer: Any, named: bool) -> None:
    config = {"vision_config": {"num_hidden_layers": 3}, "vision_feature_layer": layer}
    assert any("(vision_feature_layer), but vision_config has 3 layers" in one for one in model(config=config)) == named


@pytest.mark.parametrize(("other", "named"), [("{{ m }} {{ n }}", True), ("{{ m }}\n", False)])
def test_two_chat_templates_are_named(other: str, named: bool) -> None:
    said = "chat_template.jinja and tokenizer_config.json have different chat templates: transformers uses chat_template.jinja"
    assert (said in model(config={}, chat="{{ m }}", tokenizer_config={"chat_template": other})) == named


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_experts_per_tok": 8}, "config.json says 8 (num_experts_per_tok), but there are 4 experts (num_experts)"),
        ({"n_group": 3}, "config.json says 3 (n_group), into which 4 experts (num_experts) cannot be divided"),
        ({"n_group": 2, "num_experts_per_tok": 4}, ""),
    ],
)
def test_choices_of_more_experts_than_there_are_are_named(config: dict[str, Any], said: str) -> None:
    found = [one for one in model(config={"num_experts": 4, **config}) if "experts (num_experts)" in one]
    assert found == ([said] if said else [])


@pytest.mark.parametrize(
    ("generation", "named"),
    [({"bos_token_id": 0}, True), ({"eos_token_id": 1, "bos_token_id": 0}, False), ({"max_length": 9}, False)],
)
def test_a_generation_configuration_without_the_end_is_named(generation: dict[str, Any], named: bool) -> None:
    found = model(config={"eos_token_id": 1}, generation_config=generation)
    said = (
        "generation_config.json has no eos_token_id, and that of config.json, 1, is not read: generation does not end"
    )
    assert any(one.startswith(said) for one in found) == named


RULES = [*(f"{one} {two}" for one in "abcdefgh" for two in "abcdefgh"), "\u0120 a"]


def bpe(merges: list[str], **fields: Any) -> list[str]:
    """Write a byte-level tokeniser with these rules; return the notes on its folder."""
    letters = "abcdefgh"
    words = [*letters, "\u0120", "\u0120a", *(one + two for one in letters for two in letters)]
    Path("net").mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(len(words), 4)}, "net/model.safetensors")
    made = {"type": "BPE", "vocab": {word: at for at, word in enumerate(words)}, "merges": merges}
    step = {"type": "ByteLevel"}
    text = {"added_tokens": [], "pre_tokenizer": step, "decoder": step, "model": made}
    Path("net/tokenizer.json").write_text(json.dumps(text))
    Path("net/config.json").write_text(json.dumps({"model_type": "net", "vocab_size": len(words)}))
    Path("net/tokenizer_config.json").write_text(json.dumps(fields))
    return list(cs.inspect("net").notes)


def test_merge_rules_that_are_lost_are_named() -> None:
    assert not bpe(RULES)
    Path("net").rename("whole")
    said = "tokenizer.json has 10 merge rules, but 55 tokens of several characters are made by no rule"
    assert any(one.startswith(said) for one in bpe(RULES[:10]))


@pytest.mark.parametrize(
    ("name", "kind"), [("BertTokenizer", "WordPiece"), ("T5TokenizerFast", "Unigram"), ("GPT2Tokenizer", ""), ("X", "")]
)
def test_a_class_for_another_kind_of_tokeniser_is_named(name: str, kind: str) -> None:
    found = bpe(RULES, tokenizer_class=name)
    assert found == (
        [f"tokenizer_config.json says {name}, which is for {kind}, but tokenizer.json is BPE"] if kind else []
    )


@pytest.mark.parametrize(("seconds", "said"), [(15, True), (30, False)])
def test_sounds_of_another_length_are_noted(seconds: int, said: bool) -> None:
    made = {"feature_extractor_type": "WhisperFeatureExtractor", "chunk_length": seconds}
    notes = model(config={"model_type": "whisper", "max_source_positions": 1500}, preprocessor_config=made)
    wanted = "makes 1500 frames (chunk_length 15), but config.json says 1500 (max_source_positions), for 3000 frames"
    assert [wanted in note for note in notes if "frames" in note] == [True] * said


@pytest.mark.parametrize(
    ("kind", "made", "wanted"),
    [
        ("wav2vec2", "WhisperFeatureExtractor", "Wav2Vec2FeatureExtractor"),
        ("whisper", "Wav2Vec2FeatureExtractor", "WhisperFeatureExtractor"),
        ("wav2vec2-bert", "Wav2Vec2FeatureExtractor", "SeamlessM4TFeatureExtractor"),
        ("wavlm", "Wav2Vec2FeatureExtractor", ""),
        ("whisper", "WhisperFeatureExtractor", ""),
        ("wav2vec2", "OwnFeatureExtractor", ""),
        ("wav2vec2", ["WhisperFeatureExtractor"], ""),
        ("voxtral", "WhisperFeatureExtractor", ""),
    ],
)
def test_an_extractor_for_another_kind_of_model_is_named(kind: str, made: Any, wanted: str) -> None:
    found = model(config={"model_type": kind}, preprocessor_config={"feature_extractor_type": made})
    own = [one for one in found if one.startswith("preprocessor_config.json is for")]
    said = f"preprocessor_config.json is for {made}, but a {kind} model needs {wanted}: it cannot read such inputs"
    assert own == ([said] if wanted else [])
