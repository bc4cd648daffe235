"""Whisper's alignment heads follow the layers that are left, and are said if they are of none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs


def whisper(path: str, heads: list[Any], layers: int = 3) -> str:
    Path(path).mkdir()
    sides = (("encoder", 2), ("decoder", layers))
    save_file(
        {
            f"model.{side}.layers.{number}.fc1.weight": torch.ones(4, 4)
            for side, most in sides
            for number in range(most)
        },
        f"{path}/model.safetensors",
    )
    fields = {"model_type": "whisper", "encoder_layers": 2, "decoder_layers": layers, "decoder_attention_heads": 4}
    Path(path, "config.json").write_text(json.dumps(fields))
    Path(path, "generation_config.json").write_text(json.dumps({"alignment_heads": heads, "max_length": 9}))
    return path


@pytest.mark.parametrize(
    ("heads", "left", "said"),
    [
        ([[0, 1], [2, 3]], [[0, 1]], "loses 1 head: its layer is left out"),
        ([[2, 1], [2, 3]], None, "is removed with all its 2 heads: their layers are left out"),
        ([[0, 1]], [[0, 1]], ""),
    ],
)
def test_heads_of_layers_that_are_left_out_go_with_them(heads: list[Any], left: list[Any] | None, said: str) -> None:
    plan = cs.filter(whisper("m", heads), exclude="model.decoder.layers.2")
    cs.apply(plan, "out")
    expected = {"max_length": 9} | ({"alignment_heads": left} if left else {})
    assert json.loads(Path("out/generation_config.json").read_text()) == expected
    assert [note for note in plan.notes if "alignment" in note] == (
        [f"alignment_heads of generation_config.json {said}"] if said else []
    )
    assert cs.verify("out").ok


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        ([[0, 1], [3, 0]], ["the decoder has 3 layers, but alignment_heads of generation_config.json lists [3, 0]"]),
        ([[0, 4]], ["a layer of the decoder has 4 heads, but alignment_heads of generation_config.json lists [0, 4]"]),
        ([[2, 3]], []),
        (["x", [None, 9]], []),
    ],
)
def test_heads_that_no_layer_has_are_said(heads: list[Any], said: list[str]) -> None:
    path = whisper("m", heads)
    for notes in (cs.inspect(path).notes, cs.convert(path).notes):
        assert [note for note in notes if "alignment" in note] == [f"{one} (layer, head)" for one in said]


def noted(kind: str, config: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return the notes on the generation settings of a small encoder-decoder."""
    Path("m").mkdir()
    save_file({"model.encoder.layers.0.fc1.weight": torch.ones(4, 4)}, "m/model.safetensors")
    name = "WhisperForConditionalGeneration" if kind == "whisper" else "T5ForConditionalGeneration"
    Path("m/config.json").write_text(json.dumps({"model_type": kind, "architectures": [name], **config}))
    Path("m/generation_config.json").write_text(json.dumps({"pad_token_id": 0, **settings}))
    words = ("max_length", "is_multilingual", "decoder_start_token_id")
    return [note for note in cs.inspect("m").notes if any(word in note for word in words)]


LANGUAGES = {"lang_to_id": {"<|en|>": 3, "<|de|>": 4}}


@pytest.mark.parametrize(
    ("kind", "config", "settings", "said"),
    [
        ("whisper", {"max_target_positions": 64}, {"max_length": 448}, "generation_config.json says 448 (max_length), but the model has 64"),
        ("whisper", {"max_target_positions": 64}, {"max_length": 64}, ""),
        ("whisper", {}, {"is_multilingual": False, **LANGUAGES}, "says is_multilingual: false, but lang_to_id has 2 languages"),
        ("whisper", {}, {"is_multilingual": True, **LANGUAGES}, ""),
        ("whisper", {}, {"is_multilingual": False}, ""),
        ("t5", {"decoder_start_token_id": None}, {}, "decoder_start_token_id is in neither config.json nor generation_config.json"),
        ("t5", {}, {}, "decoder_start_token_id is in neither config.json nor generation_config.json"),
        ("t5", {}, {"decoder_start_token_id": 0}, ""),
        ("mt5", {}, {}, ""),
    ],
)  # fmt: skip
def test_settings_that_the_decoder_contradicts_are_noted(
    kind: str, config: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    notes = noted(kind, config, settings)
    assert len(notes) == bool(said)
    assert all(said in note for note in notes)
