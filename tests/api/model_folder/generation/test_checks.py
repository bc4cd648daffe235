"""Settings of generation that the model contradicts, that contradict each other, or that transformers refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..test_model_folders import model

TOLD = "generation_config.json says "
LONG = f"{TOLD}40 (max_length), but the model has 32 positions"
PLAIN = {"max_position_embeddings": 32}


def notes(config: dict[str, Any], generation: dict[str, Any]) -> list[str]:
    model("m", **config)
    Path("m/generation_config.json").write_text(json.dumps({"eos_token_id": 2, **generation}))
    found = [one for one in cs.inspect("m").notes if "generation" in one or "(max_length)" in one]
    assert [one for one in cs.convert("m").notes if one in found] == found
    return found


@pytest.mark.parametrize(
    ("config", "generation", "said"),
    [
        (PLAIN, {"max_length": 40}, f"{LONG} (max_position_embeddings): longer texts fail or make no sense"),
        ({"n_positions": 32}, {"max_length": 40}, f"{LONG} (n_positions): longer texts fail or make no sense"),
        (PLAIN, {"max_length": 32}, ""),
        ({**PLAIN, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, {"max_length": 40}, ""),
        ({**PLAIN, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, {"max_length": 40}, ""),
        ({**PLAIN, "rope_parameters": {"rope_type": "default"}}, {"max_length": 40}, f"{LONG} (max_position_embeddings)"),
        ({**PLAIN, "rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}, {"max_length": 40}, ""),
        ({"n_positions": 32, "model_type": "t5"}, {"max_length": 40}, ""),  # its positions are relative
        ({"max_position_embeddings": None}, {"max_length": 40}, ""),
        ({}, {"min_length": 9, "max_length": 5}, f"{TOLD}9 (min_length), but 5 (max_length): no text can end by itself"),
        ({}, {"min_length": 9, "max_length": 5, "max_new_tokens": 20}, ""),  # max_length is not used then
        ({}, {"min_new_tokens": 9, "max_new_tokens": 5}, f"{TOLD}9 (min_new_tokens), but 5 (max_new_tokens)"),
        ({}, {"min_length": 5, "max_length": 5}, ""),
    ],
)  # fmt: skip
def test_lengths_are_compared(config: dict[str, Any], generation: dict[str, Any], said: str) -> None:
    found = notes(config, generation)
    assert len(found) == bool(said), found
    assert all(one.startswith(said) for one in found)


def test_config_json_is_compared_too() -> None:
    (note,) = notes({**PLAIN, "max_length": 40}, {})
    assert note.startswith("config.json says 40 (max_length), but the model has 32 positions")


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        ({"repetition_penalty": 0}, "0 (repetition_penalty), which is not above 0"),
        ({"num_beams": 0}, "0 (num_beams), which is not above 0"),
        ({"max_new_tokens": 0}, "0 (max_new_tokens), which is not above 0"),
        ({"do_sample": True, "temperature": 0.0}, "0.0 (temperature), which is not above 0"),
        ({"do_sample": True, "temperature": "0.6"}, "'0.6' (temperature), which is not a number"),
        ({"do_sample": True, "top_k": -1}, "-1 (top_k), which is below 0"),
        ({"do_sample": True, "min_p": 2.0}, "2.0 (min_p), which is not from 0 to 1"),
        ({"temperature": 0.0}, ""),  # not read, since the best token is taken
        ({"do_sample": True, "temperature": 0.6, "top_k": 0, "min_p": 0.1, "repetition_penalty": 1.05}, ""),
        ({"do_sample": True, "top_p": 0.9, "num_beams": None}, ""),
    ],
)
def test_values_that_transformers_refuses_are_said(generation: dict[str, Any], said: str) -> None:
    assert notes({}, generation) == ([f"{TOLD}{said}: generation fails"] if said else [])


@pytest.mark.parametrize(
    ("generation", "said"),
    [
        (
            {"num_return_sequences": 3},
            "3 texts (num_return_sequences), but without num_beams or do_sample, a prompt has only one result",
        ),
        ({"num_return_sequences": 3, "num_beams": 2}, "3 texts (num_return_sequences), but num_beams is 2"),
        ({"num_return_sequences": 3, "num_beams": 3}, ""),
        ({"num_return_sequences": 3, "do_sample": True}, ""),
        ({"num_return_sequences": 1}, ""),
    ],
)
def test_more_texts_than_beams_are_said(generation: dict[str, Any], said: str) -> None:
    expected = [f"generation_config.json asks for {said}: transformers refuses the model"] if said else []
    assert notes({}, generation) == expected
