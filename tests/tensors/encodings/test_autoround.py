"""Plain layers of AutoRound's models: its lists say which layers are quantised, and which stay plain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .test_missing_parts import THREE, folder_of
from .test_possible_exclusions import failures, undecided, with_settings
from .test_unlike import changed

BLOCKS = "block_name_to_quantize"
PLAIN: dict[str, Any] = {"bits": 16}


def folder(path: Path, settings: dict[str, Any], method: str = "auto-round") -> Path:
    """A model of GPTQ's codes whose second layer of ``THREE`` is plain."""
    made = folder_of("gptq", path)
    changed(made, 1)
    return with_settings(made, {"quant_method": method, "packing_format": "auto_round:auto_gptq", **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {BLOCKS: None},
        {BLOCKS: "model.layers"},
        {BLOCKS: "visual.blocks, model.layers"},
        {BLOCKS: ["model.layers"]},
        {BLOCKS: [["model.layers.0", "model.layers.1", "model.layers.2"]]},
        {"to_quant_block_names": "model.layers"},
        {BLOCKS: "model.layers", "extra_config": {THREE[0]: PLAIN}},
        {BLOCKS: "model.layers", "extra_config": {THREE[1]: {"bits": 8}}},
        {BLOCKS: "model.layers", "extra_config": {THREE[1]: {"bits": 8}, ".*mlp.*": PLAIN}},
        {BLOCKS: "model.layers", "extra_config": {r".*layers\.[02]\..*": PLAIN}},
        {BLOCKS: "model.layers", "extra_config": {r"^up_proj": PLAIN}},
        {BLOCKS: "model.layers", "extra_config": {r".*layers\.1\..*": {"bits": 8}}},
        {BLOCKS: "model.layers", "extra_config": {"(": PLAIN}},  # no expression: AutoRound skips it, too
    ],
)
@pytest.mark.parametrize("method", ["auto-round", "intel/auto-round"])
def test_a_plain_layer_that_the_lists_do_not_excuse_fails(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert failures(folder(tmp_path, settings, method)) == [f"{THREE[1]}.weight"]


@pytest.mark.parametrize(
    "settings",
    [
        {BLOCKS: ["model.layers.0", "model.layers.2"]},
        {BLOCKS: "model.layers.0,model.layers.2"},
        {BLOCKS: "model.language_model.layers"},  # another version of the model: nothing is known
        {BLOCKS: {"a": 1}},
        {"quant_block_list": [["model.layers.0"]]},
        {BLOCKS: "model.layers", "extra_config": {THREE[1]: PLAIN}},
        {BLOCKS: "model.layers", "extra_config": {r".*layers\.1\.mlp.*": PLAIN}},
        {BLOCKS: "model.layers", "extra_config": {r"layers\.1": PLAIN}},  # it is searched, not matched
        {BLOCKS: "model.layers", "extra_config": {r"layers.1.mlp": {"bits": 16, "data_type": "float"}}},
        {BLOCKS: "model.layers", "modules_to_not_convert": ["layers.1.mlp"]},
    ],
)
def test_a_plain_layer_that_the_lists_excuse_passes(settings: dict[str, Any], tmp_path: Path) -> None:
    made = folder(tmp_path, settings)
    assert failures(made) == undecided(made) == []


def test_an_expression_that_is_not_evaluated_may_excuse_any_layer(tmp_path: Path) -> None:
    made = folder(tmp_path, {BLOCKS: "model.layers", "extra_config": {"(a|b)(c|d)(e|f)(g|h)": PLAIN}})
    assert failures(made) == []
    assert undecided(made) == [f"{THREE[1]}.weight"]


def test_blocks_also_hold_for_the_format_of_gptq(tmp_path: Path) -> None:
    assert failures(folder(tmp_path, {BLOCKS: "model.layers"}, "gptq")) == [f"{THREE[1]}.weight"]


@pytest.mark.parametrize("extra", [[], "x", {"a": "b"}, {"a": {"bits": "16"}}, {".*": {"bits": None}}])
def test_lists_of_any_content_are_read(extra: object, tmp_path: Path) -> None:
    assert failures(folder(tmp_path, {BLOCKS: "model.layers", "extra_config": extra})) == [f"{THREE[1]}.weight"]
