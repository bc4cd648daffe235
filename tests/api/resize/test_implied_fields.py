"""The numbers of channels that a configuration leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ckptsurgeon.api.resize.implied_fields import implied_fields
from ckptsurgeon.destinations.resizable_model import resizable

SIZES = {"n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 8, "vocab_size": 20, "n_inner": None}


@pytest.mark.parametrize(("field", "found"), [("n_inner", {"n_inner": 64}), ("n_head", {})])
def test_channels_that_are_null_are_the_number_that_gives_the_same_shapes(
    field: str, found: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **SIZES}))
    assert implied_fields(resizable(str(path)), [field]) == found
