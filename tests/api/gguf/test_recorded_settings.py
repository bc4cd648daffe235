"""Weights made from a GGUF file beside the config.json of another model: every verb that reads the folder notes it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.recorded_settings import recorded_setting_notes

from .test_layouts import MODELS, model
from .test_more_models import KINDS, saved

BEGIN = "config.json may be of another model than the weights, whose metadata record the settings of the GGUF file that they were converted from: "
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"num_attention_heads": 8}, "num_attention_heads is 8, not 4 (llama.attention.head_count)"),
    "keys": ({"num_key_value_heads": 4}, "num_key_value_heads is 4, not 2 (llama.attention.head_count_kv)"),
    "epsilon": ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06, not 1e-05 (llama.attention.layer_norm_rms_epsilon)"),
    "rope": (
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
        "rope_theta is 10000.0, not 500000.0 (llama.rope.freq_base)",
    ),
}


def back() -> None:
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.convert("x.gguf", layout="transformers"), "back")
    shutil.copy("model/config.json", "back/config.json")


def said(notes: Any) -> list[str]:
    return [note[note.index(BEGIN) + len(BEGIN) :] for note in notes if BEGIN in note]


@pytest.mark.costly
@pytest.mark.parametrize("kind", WRONG)
def test_another_setting_in_config_json_is_said(kind: str) -> None:
    model("llama")
    back()
    fields, note = WRONG[kind]
    path = Path("back/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    plans = [
        cs.convert("back", dtype="bf16"),
        cs.filter("back", include="**"),
        cs.average(["back", "model"]),
        cs.merge(["back", "model"], method="linear", weights=[1, 1]),
        cs.transplant("back", "model"),
    ]
    checked = [one.what for row in cs.check("back").rows for one in row.found]
    for notes in (cs.inspect("back").notes, cs.diff("back", "model").notes, checked, *(one.notes for one in plans)):
        assert said(notes) == [note]


@pytest.mark.costly
@pytest.mark.parametrize("kind", [*MODELS, *KINDS])
def test_the_own_config_json_gets_no_note(kind: str) -> None:
    model(kind) if kind in MODELS else saved(kind)
    back()
    assert not said((*cs.inspect("back").notes, *cs.convert("back").notes, *cs.average(["back", "model"]).notes))


@pytest.mark.parametrize(
    ("metadata", "config"),
    [
        ({"llama.block_count": "2", "llama.attention.head_count": "8"}, {"model_type": "qwen2"}),
        ({"llama.block_count": "2", "llama.attention.head_count": "odd"}, {"model_type": "llama"}),
        ({"llama.block_count": "2", "llama.attention.head_count": "[8, 4]"}, {"model_type": "llama"}),
        ({"llama.attention.head_count": "8"}, {"model_type": "llama"}),
        ({"llama.block_count": "2", "llama.rope.freq_base": "8"}, {"model_type": "llama", "rope_theta": None}),
        ({"deepseek2.block_count": "2", "deepseek2.attention.head_count_kv": "1"}, {"model_type": "deepseek_v3"}),
        ({"general.architecture": "llama", "llama.block_count": "2"}, {"model_type": "llama"}),
        ({"llama.block_count": "2"}, {"model_type": ["odd"]}),
    ],
)
def test_settings_that_cannot_be_compared_get_no_note(metadata: dict[str, str], config: dict[str, Any]) -> None:
    fields = {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert not [*recorded_setting_notes(metadata, {**fields, **config})]
