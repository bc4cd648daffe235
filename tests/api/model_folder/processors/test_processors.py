"""Files of processors that count tokens, cut patches or name placeholders otherwise than the network are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status

WORDS = ["<pad>", "</s>", "a", "b", "<image>", "<video>", "[IMG]"]
CLIP = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 384, "patch_size": 14}
LLAVA = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14,
         "vision_feature_select_strategy": "default"}  # fmt: skip
GRID = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
TOWER = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
Files = Mapping[str, Any]


def folder(config: Files, path: str = "net", **files: Any) -> str:
    """Write a folder with a tokeniser that has these files; returns its path."""
    Path(path).mkdir()
    save_file({"model.embed_tokens.weight": torch.ones(len(WORDS), 4)}, f"{path}/model.safetensors")
    words = {"model": {"type": "WordLevel", "vocab": {word: at for at, word in enumerate(WORDS)}}}
    for name, value in {"config": {"vocab_size": len(WORDS), **config}, "tokenizer": words, **files}.items():
        Path(path, f"{name}.json").write_text(json.dumps(value))
    return path


def notes(config: Files, **files: Any) -> list[str]:
    """Return the notes on the processor's files of a folder."""
    found = cs.inspect(folder(config, **files)).notes
    shutil.rmtree("net")
    return [one for one in found if "process" in one or "placeholder" in one or "tokenizer_config" in one]


HEALTHY: dict[str, tuple[Files, Files]] = {  # as in the folders of the models on the hub
    "llava": ({"model_type": "llava", "vision_config": CLIP, "image_token_index": 4}, {"processor_config": LLAVA}),
    "llava with siglip": (
        {"model_type": "llava", "vision_config": SIGLIP, "vision_feature_select_strategy": "full"},
        {"processor_config": {**LLAVA, "num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}},
    ),
    "llava, full": (
        {"model_type": "llava", "vision_config": CLIP, "vision_feature_select_strategy": "full"},
        {"processor_config": {**LLAVA, "vision_feature_select_strategy": "full"}},
    ),
    "llava, both of the differences undo each other": (
        {"model_type": "llava", "vision_config": SIGLIP, "vision_feature_select_strategy": "full"},
        {"processor_config": LLAVA},
    ),
    "llava before tokens were expanded": (
        {"model_type": "llava", "vision_config": CLIP}, {"processor_config": {"processor_class": "LlavaProcessor"}}
    ),
    "pixtral": (
        {"model_type": "llava", "vision_config": {"model_type": "pixtral", "patch_size": 16}, "image_token_index": 6,
         "vision_feature_select_strategy": "full"},
        {"processor_config": {"image_token": "[IMG]", "patch_size": 16, "processor_class": "PixtralProcessor"}},
    ),
    "mistral3": (
        {"model_type": "mistral3", "spatial_merge_size": 2, "image_token_index": 6, "vision_config": {"patch_size": 14}},
        {"processor_config": {"image_token": "[IMG]", "patch_size": 14, "spatial_merge_size": 2}},
    ),
    "vipllava": (
        {"model_type": "vipllava", "vision_config": CLIP, "vision_feature_select_strategy": "full"},
        {"processor_config": LLAVA},
    ),
    "video_llava": ({"model_type": "video_llava", "vision_config": CLIP}, {"processor_config": {"patch_size": 14}}),
    "llava_onevision": (
        {"model_type": "llava_onevision", "vision_config": SIGLIP},
        {"processor_config": {"num_image_tokens": 729, "vision_feature_select_strategy": "full"}},
    ),
    "aya_vision": (
        {"model_type": "aya_vision", "vision_config": SIGLIP, "image_token_index": 5, "downsample_factor": 2},
        {"processor_config": {"image_token": "<image>", "patch_size": 28, "img_size": 364}},
    ),
    "paligemma": (
        {"model_type": "paligemma", "vision_config": {**SIGLIP, "image_size": 224}},
        {"preprocessor_config": {"image_seq_length": 256}},
    ),
    "gemma3": ({"model_type": "gemma3", "mm_tokens_per_image": 256}, {"processor_config": {"image_seq_length": 256}}),
    "idefics2": (
        {"model_type": "idefics2", "perceiver_config": {"resampler_n_latents": 64}},
        {"processor_config": {"image_seq_len": 64}},
    ),
    "idefics3": (
        {"model_type": "idefics3", "scale_factor": 2, "vision_config": {"image_size": 364, "patch_size": 14}},
        {"processor_config": {"image_seq_len": 169}},
    ),
    "smolvlm": (
        {"model_type": "smolvlm", "scale_factor": 3, "vision_config": {"image_size": 384, "patch_size": 14}},
        {"processor_config": {"image_seq_len": 81}},
    ),
    "internvl": (
        {"model_type": "internvl", "downsample_ratio": 0.5,
         "vision_config": {"image_size": [448, 448], "patch_size": [14, 14]}},
        {"processor_config": {"image_seq_length": 256}},
    ),
    "janus": (
        {"model_type": "janus", "vision_config": {"image_size": 384, "patch_size": 16}},
        {"processor_config": {"num_image_tokens": 576}},
    ),
    "blip-2": ({"model_type": "blip-2", "num_query_tokens": 32}, {"processor_config": {"num_query_tokens": 32}}),
    "qwen2_vl": ({"model_type": "qwen2_vl", "vision_config": TOWER}, {"preprocessor_config": GRID}),
    "qwen3_vl": (
        {"model_type": "qwen3_vl", "vision_config": {**TOWER, "patch_size": 16}},
        {"preprocessor_config": {**GRID, "patch_size": 16}, "video_preprocessor_config": {**GRID, "patch_size": 16}},
    ),
    "qwen2_5_omni": (
        {"model_type": "qwen2_5_omni", "thinker_config": {"vision_config": TOWER}}, {"preprocessor_config": GRID}
    ),
    "paddleocr_vl": (
        {"model_type": "paddleocr_vl", "vision_config": TOWER}, {"preprocessor_config": {**GRID, "temporal_patch_size": 1}}
    ),
    "lfm2_vl": (
        {"model_type": "lfm2_vl", "downsample_factor": 2, "vision_config": {"patch_size": 16}},
        {"preprocessor_config": {"downsample_factor": 2, "encoder_patch_size": 16}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_files_that_agree_get_no_note(name: str) -> None:
    config, files = HEALTHY[name]
    assert not notes(config, **files)


DAMAGED = [  # the healthy folder, what is changed in a file, and what the note says
    ("llava", "processor_config", {"vision_feature_select_strategy": "full"},
     "says full (vision_feature_select_strategy), but llava models use default: transformers gives an image 1 token more"),
    ("llava, full", "processor_config", {"vision_feature_select_strategy": "default"},
     "says default (vision_feature_select_strategy), but config.json says full: transformers gives an image 1 token fewer"),
    ("llava", "processor_config", {"num_additional_image_tokens": 0},
     "says 0 (num_additional_image_tokens), but clip_vision_model adds 1 feature to those of the patches"),
    ("llava with siglip", "processor_config", {"num_additional_image_tokens": 1}, "siglip_vision_model adds 0 features"),
    ("llava", "processor_config", {"patch_size": 16}, "says 16 (patch_size), but vision_config of config.json says 14"),
    ("llava", "processor_config", {"image_token": "<image_soft_token>"},
     "the placeholder of images is '<image_soft_token>' (image_token of processor_config.json), which the tokeniser lacks"),
    ("llava", "processor_config", {"image_token": "<video>"},
     "the id of '<video>' (image_token of processor_config.json) is 5, but image_token_index of config.json is 4"),
    ("llava", "tokenizer_config", {"image_token": "<video>"}, "'<video>' (image_token of tokenizer_config.json) is 5"),
    ("llava", "tokenizer_config", {"image_token": "<img>"}, "'<img>' (image_token of tokenizer_config.json), which the"),
    ("llava", "tokenizer_config", {"extra_special_tokens": {"image_token": "<img>"}}, "1 token that tokenizer.json lacks"),
    ("mistral3", "processor_config", {"image_token": "<image>"}, "is 4, but image_token_index of config.json is 6"),
    ("mistral3", "processor_config", {"spatial_merge_size": 1}, "says 1 (spatial_merge_size), but config.json says 2"),
    ("vipllava", "processor_config", {"vision_feature_select_strategy": "full"}, "but vipllava models use default"),
    ("video_llava", "processor_config", {"num_additional_image_tokens": 0}, "1 token fewer than the model has features"),
    ("video_llava", "processor_config", {"vision_feature_select_strategy": "full"}, "1 token more than the model has features"),
    ("llava_onevision", "processor_config", {"num_image_tokens": 576}, "but an image has 729 features (image_size 384"),
    ("llava_onevision", "processor_config", {"vision_feature_select_strategy": "default"}, "but config.json says full"),
    ("paligemma", "preprocessor_config", {"image_seq_length": 1024}, "preprocessor_config.json says 1024 (image_seq_length)"),
    ("gemma3", "processor_config", {"image_seq_length": 64}, "but config.json says 256 (mm_tokens_per_image)"),
    ("idefics2", "processor_config", {"image_seq_len": 320}, "config.json says 64 (perceiver_config.resampler_n_latents)"),
    ("idefics3", "processor_config", {"image_seq_len": 64}, "has 169 features (image_size 364, patch_size 14, scale_factor 2)"),
    ("smolvlm", "processor_config", {"image_seq_len": 169}, "has 81 features"),
    ("internvl", "processor_config", {"image_seq_length": 1024}, "has 256 features"),
    ("janus", "processor_config", {"num_image_tokens": 256}, "has 576 features"),
    ("blip-2", "processor_config", {"num_query_tokens": 64}, "but config.json says 32 (num_query_tokens)"),
    ("qwen2_vl", "preprocessor_config", {"merge_size": 1},
     "preprocessor_config.json says 1 (merge_size), but config.json says 2 (vision_config.spatial_merge_size)"),
    ("qwen2_vl", "preprocessor_config", {"temporal_patch_size": 1}, "says 1 (temporal_patch_size)"),
    ("qwen2_vl", "preprocessor_config", {"patch_size": 16}, "says 16 (patch_size), but config.json says 14"),
    ("qwen3_vl", "video_preprocessor_config", {"merge_size": 1}, "video_preprocessor_config.json says 1 (merge_size)"),
    ("qwen2_5_omni", "preprocessor_config", {"merge_size": 4}, "(thinker_config.vision_config.spatial_merge_size)"),
    ("qwen2_vl", "processor_config", {"image_processor": {**GRID, "merge_size": 1}},
     "image_processor of processor_config.json says 1 (merge_size)"),
    ("lfm2_vl", "preprocessor_config", {"encoder_patch_size": 14}, "says 14 (encoder_patch_size), but config.json says 16"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "change", "said"), DAMAGED)
def test_files_that_differ_are_named(name: str, file: str, change: Files, said: str) -> None:
    config, files = HEALTHY[name]
    found = notes(config, **{**files, file: {**files.get(file, {}), **change}})
    assert len(found) == 1, found
    assert said in found[0]


def test_numbers_that_are_missing_have_the_default_of_the_class() -> None:
    config, files = HEALTHY["llava"]
    less = {name: value for name, value in LLAVA.items() if name != "num_additional_image_tokens"}
    (found,) = notes(config, **{**files, "processor_config": less})
    assert "has no num_additional_image_tokens, which makes it 0, but clip_vision_model adds 1 feature" in found
    full = {"model_type": "video_llava", "vision_config": CLIP, "vision_feature_select_strategy": "full"}
    (found,) = notes(full, processor_config={"patch_size": 14})
    assert "has no vision_feature_select_strategy, which makes it default, but config.json says full" in found


@pytest.mark.long
@pytest.mark.costly
@pytest.mark.parametrize("value", [None, "x", [1], {"a": 1}, True, -1, 10**400, 1.5])
def test_values_of_other_types_are_no_error(value: Any) -> None:
    for name, file, change, _ in DAMAGED:
        config, files = HEALTHY[name]
        bad = {**files.get(file, {}), **dict.fromkeys(change, value)}
        notes(config, **{**files, file: bad})
        notes({**config, "vision_config": value, "image_token_index": value, "scale_factor": value}, **files)


def test_check_warns_and_an_output_has_the_note(ckpt: Callable[..., Any]) -> None:
    config, files = HEALTHY["llava"]
    bad = {**LLAVA, "vision_feature_select_strategy": "full"}
    folder(config, "bad", **{**files, "processor_config": bad})
    folder(config, "good", **files)
    found = [row.status for row in cs.check("bad").rows for one in row.found if "select_strategy" in one.what]
    assert found == [Status.WARN]
    assert cs.check("good").ok
    plan = cs.convert("bad", dtype="float16")
    assert any("vision_feature_select_strategy" in note for note in plan.notes)
    said = "according to processor_config.json: vision_feature_select_strategy is default in good, full in bad"
    assert any(said in note for note in cs.diff("good", "bad").notes)
    assert not any("prepare inputs" in note for note in cs.diff("good", "good").notes)
