"""Settings of quantised models that transformers refuses or ignores, and that are said to be so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Status
from ckptsurgeon.checkpoint.refused_settings import refused_settings

from ..helpers.zoo import BY_NAME

TEXTS = "has strings in place of numbers or booleans, which libraries refuse or ignore: "
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"quant_method": "gptq", "bits": "4"}, f"{TEXTS}bits '4'"),
    "group": ({"quant_method": "gptq", "bits": 4, "group_size": "64"}, f"{TEXTS}group_size '64'"),
    "block": ({"quant_method": "fp8", "weight_block_size": ["128", "128"]}, f"{TEXTS}weight_block_size ['128', '128']"),
    "deep": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": "8", "symmetric": "true"}}}},
        f"{TEXTS}num_bits '8', symmetric 'true'",
    ),
    "flag": ({"quant_method": "gptq", "bits": 4, "desc_act": "false"}, f"{TEXTS}desc_act 'false'"),
    "no load": (
        {"quant_method": "bitsandbytes", "bnb_4bit_quant_type": "nf4"},
        "sets neither load_in_4bit nor load_in_8bit to true: transformers refuses to load the model",
    ),
    "both loads": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": True},
        "sets both load_in_4bit and load_in_8bit to true: transformers refuses to load the model",
    ),
    "old names": (
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32},
        "has q_group_size 32 and no group_size: transformers ignores q_group_size, and uses group_size 128",
    ),
    "format": (
        {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"a": {"format": "float-quantized"}}},
        "says format int-quantized, but its config_groups say float-quantized: loaders may use either",
    ),
    "unknown format": (
        {"quant_method": "compressed-tensors", "format": "nonsense", "config_groups": {"a": {"format": "pack-quantized"}}},
        "says format nonsense, which compressed-tensors does not have: a loader may refuse it, or use another",
    ),
    "unknown format of a group": (
        {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"a": {"format": "of-tomorrow"}}},
        "says format of-tomorrow, which compressed-tensors does not have: a loader may refuse it, or use another",
    ),
    "formats": (
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"a": {"format": "nvfp4-pack-quantized"}, "b": {"format": "float-quantized"}},
        },
        "says format pack-quantized, but its config_groups say nvfp4-pack-quantized, float-quantized: loaders may use either",
    ),
}  # fmt: skip
SOUND: list[dict[str, Any]] = [
    {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False},
    {"quant_method": "awq", "w_bit": 4, "q_group_size": 128},
    {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "bits": 4, "group_size": 32},
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    *(
        {"quant_method": "compressed-tensors", "format": stated, "config_groups": groups}
        for stated, groups in (
            ("float-quantized", {"a": {"format": "float-quantized"}}),
            ("naive-quantized", {"a": {"format": "float-quantized"}}),
            ("mixed-precision", {"a": {"format": "float-quantized"}, "b": {"format": "int-quantized"}}),
            ("int-quantized", {"a": {"format": "float-quantized"}, "b": {"format": "int-quantized"}}),
            ("int-quantized", {"a": {"format": None}}),
            ("int-quantized", {"a": {}, "b": {"format": "float-quantized"}}),
            ("dense", {"a": {"format": "float-quantized"}}),
            (None, {"a": {"format": "float-quantized"}}),
            ("int-quantized", None),
            ("int-quantized", {"a": 3}),
        )
    ),
    {"quant_method": "hqq", "sym": None, "group_size": "per_channel"},
]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_said(name: str) -> None:
    settings, said = REFUSED[name]
    assert list(refused_settings(settings)) == [said]


@pytest.mark.parametrize("settings", SOUND)
def test_sound_settings_have_no_note(settings: dict[str, Any]) -> None:
    assert list(refused_settings(settings)) == []


@pytest.mark.parametrize("name", ["no load", "both loads", "block"])
def test_transformers_refuses_them(name: str) -> None:
    from transformers.quantizers.auto import AutoQuantizationConfig

    with pytest.raises((ValueError, TypeError)):
        AutoQuantizationConfig.from_dict(dict(REFUSED[name][0]))


def test_transformers_ignores_the_old_names_of_awq() -> None:
    from transformers.quantizers.auto import AutoQuantizationConfig

    assert AutoQuantizationConfig.from_dict(dict(REFUSED["old names"][0])).group_size == 128


def test_the_notes_of_a_model_have_it(tmp_path: Path, ckpt: Any) -> None:
    folder = BY_NAME["gptq"].folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["bits"] = str(config["quantization_config"]["bits"])
    (folder / "config.json").write_text(json.dumps(config))
    said = f"its quantization_config {TEXTS}bits"
    assert any(said in note for note in cs.inspect(folder).notes)
    assert any(said in one.what for row in cs.check(folder).rows for one in row.found)
    assert any(said in note for note in cs.apply(cs.convert(folder, dequantize=True), "out").notes)


@pytest.mark.parametrize("is_on", [True, False])
def test_both_or_no_loads_of_bitsandbytes_are_a_failure_and_a_note(tmp_path: Path, is_on: bool) -> None:
    folder = BY_NAME["bnb-nf4"].folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(load_in_4bit=is_on, load_in_8bit=is_on)
    (folder / "config.json").write_text(json.dumps(config))
    found = [one for row in cs.check(folder).rows for one in row.found if "load_in_8bit" in one.what]
    assert [one.status for one in found] == [Status.FAIL]
    assert any("load_in_8bit to true" in note for note in cs.inspect(folder).notes)


@pytest.mark.parametrize("name", BY_NAME)
def test_no_model_of_the_zoo_has_such_settings(name: str) -> None:
    assert list(refused_settings(BY_NAME[name].settings or {})) == []
