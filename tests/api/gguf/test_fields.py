"""Fields of config.json that are missing, and those that llama.cpp's metadata cannot say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.planning.llama_cpp.model_types import DEFAULTS, MODEL_TYPES

from .test_experts import written
from .test_layouts import model

OF_OTHERS = {"kimi_k2": "deepseek_v3"}
"""Models that transformers opens as another one, with code beside the weights."""
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    found, ours = transformers.AutoConfig.for_model(OF_OTHERS.get(model_type, model_type)), DEFAULTS[model_type]
    assert getattr(found, ours.norm) == ours.epsilon
    assert (getattr(found, "hidden_activation", None) or found.hidden_act) in ours.activations
    stated = found.rope_parameters
    assert stated.get("full_attention", stated)["rope_theta"] == ours.theta


def test_every_model_has_defaults() -> None:
    assert set(DEFAULTS) == set(MODEL_TYPES)


def test_what_mixtral_does_not_say_is_what_transformers_takes() -> None:
    written("mixtral", rms_norm_eps=None, rope_parameters=None)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        assert found.metadata["llama.attention.layer_norm_rms_epsilon"] == "1e-05"
        assert found.metadata["llama.rope.freq_base"] == "1000000.0"


@pytest.mark.costly
@pytest.mark.parametrize(
    ("model_type", "fields", "why"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act as 'gelu', which llama.cpp's metadata cannot express"),
        ("gemma2", {"hidden_activation": "silu"}, "hidden_activation as 'silu'"),
        ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping as None, not a number"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor as 0.5"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}, "partial_rotary_factor"),
        ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps as 'small', not a number"),
        ("llama", {"rope_parameters": None, "rope_theta": "1e4"}, "rope_theta as '1e4', not a number"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor as None, not a number"),
        ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.5}}, "attention_factor as 1.5"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "beta_fast as 16, .* llama.cpp computes with 32"),
        ("llama", {"rope_parameters": {**YARN, "beta_slow": 2}}, "beta_slow as 2"),
        ("llama", {"rope_parameters": {**YARN, "mscale": 0.7}}, "mscale as 0.7, which"),
        ("llama", {"rope_parameters": {**YARN, "truncate": False}}, "truncate as False"),
        ("llama", {"rope_parameters": {**YARN, "factor": 0.5}}, "the factor 0.5 of yarn"),
    ],
)
def test_what_cannot_be_said_is_refused(model_type: str, fields: dict[str, Any], why: str, ckpt: Any) -> None:
    model(model_type, **fields)
    with pytest.raises(cs.PlanError, match=why):
        cs.convert("model", layout="gguf")
    assert ckpt("convert", "model", "-o", "x.gguf").code == 4
    assert not Path("x.gguf").exists()


def test_what_llama_cpp_computes_by_itself_is_no_error() -> None:
    yarn = {**YARN, "attention_factor": 0.1 * math.log(4) + 1, "beta_fast": 32.0, "beta_slow": 1, "truncate": True}
    model("llama", rope_parameters=yarn, hidden_act="silu", partial_rotary_factor=1.0)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    model("gemma", folder="old", hidden_act="gelu")
    cs.apply(cs.convert("old", layout="gguf"), "old.gguf")
    with cs.open_checkpoint("x.gguf") as found:
        assert found.metadata["llama.rope.scaling.type"] == "yarn"
        assert found.metadata["llama.rope.scaling.factor"] == "4.0"
