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
    [(2, ["<image>"], True), (4, ["<image>"], False), (2, ["<audio>"], False), (2, [], False)],
)
def test_a_word_that_stands_for_images_is_named(number: int, added: list[str], named: bool) -> None:
    said = (
        "image_token_index of config.json is 2 ('a'), an ordinary word of the tokeniser beside it, which has '<image>'"
    )
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
        "chat_template.jinja writes tokens that the tokeniser lacks, so that it splits them: '<|eot_id|>'; it has "
        "'<|im_end|>', '<|im_start|>'"
    )
    assert (said in model(*added, config={}, chat="{{ m }}<|eot_id|>")) == named


@pytest.mark.parametrize(("kinds", "named"), [(3, True), (2, False)])
def test_kinds_of_more_layers_than_there_are_are_named(kinds: int, named: bool) -> None:
    config = {"layer_types": ["full_attention"] * kinds, "num_hidden_layers": 2}
    said = "layer_types of config.json has 3 entries, but num_hidden_layers is 2: transformers 5 cannot load this model"
    assert (said in model(config=config)) == named
