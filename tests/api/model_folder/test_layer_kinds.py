"""Layers with the modules of another kind than config.json gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.layers.kinds import layer_kind_notes

CONV, FULL = "conv", "full_attention"
KINDS = [CONV, CONV, FULL, CONV, FULL, CONV]
MODULES = {CONV: ("conv.in_proj", "conv.out_proj"), FULL: ("self_attn.q_proj", "self_attn.out_proj")}


def notes(said: list[str], stored: list[str] = KINDS, field: str = "layer_types", **config: Any) -> list[str]:
    Path("m").mkdir()
    state = {"model.embed_tokens.weight": torch.ones(8, 4)}
    for number, kind in enumerate(stored):
        names = (*MODULES[kind], "feed_forward.w1", "operator_norm")
        state |= {f"model.layers.{number}.{name}.weight": torch.ones(4, 4) for name in names}
    save_file(state, "m/model.safetensors")
    fields = {"model_type": "net", "num_hidden_layers": len(stored), field: said, **config}
    Path("m/config.json").write_text(json.dumps(fields))
    found = [one for one in cs.inspect("m").notes if "layers of another kind" in one]
    assert [one for one in cs.convert("m").notes if "layers of another kind" in one] == found
    return found


@pytest.mark.parametrize(
    ("said", "first"),
    [
        (KINDS, ""),
        ([CONV, CONV, FULL, FULL, CONV, CONV], f"{FULL} (layer_types[3]), but model.layers.3 has conv"),
        ([FULL, *KINDS[1:]], f"{FULL} (layer_types[0]), but model.layers.0 has conv"),
        ([*KINDS[:4], CONV, CONV], f"{CONV} (layer_types[4]), but model.layers.4 has self_attn"),
        ([FULL if one == CONV else CONV for one in KINDS], f"{FULL} (layer_types[0]), but model.layers.0 has conv"),
        ([FULL] * 6, ""),  # of one kind: other notes are about what they lack
        (KINDS[:5], ""),  # another number of layers is another note
    ],
)
def test_a_layer_of_another_kind_is_said(said: list[str], first: str) -> None:
    found = notes(said)
    assert len(found) == bool(first)
    assert all(one.startswith(f"config.json says {first}, as layers of another kind do") for one in found)


def test_other_layers_are_counted() -> None:
    (note,) = notes([CONV, CONV, FULL, FULL, CONV, CONV])
    assert note.endswith("transformers initialises what is missing; 1 other layer too")


def test_layers_that_differ_in_other_modules_are_not() -> None:
    """A first layer without experts has another module, whatever its kind of attention is."""
    Path("m").mkdir()
    state = {"model.embed_tokens.weight": torch.ones(8, 4)}
    for number in range(4):
        names = ("self_attn.q_proj", "mlp.up_proj" if number in (0, 3) else "moe.gate")
        state |= {f"model.layers.{number}.{name}.weight": torch.ones(4, 4) for name in names}
    save_file(state, "m/model.safetensors")
    said = ["sliding_attention", "sliding_attention", "sliding_attention", FULL]
    Path("m/config.json").write_text(json.dumps({"model_type": "net", "num_hidden_layers": 4, "layer_types": said}))
    assert not [one for one in cs.inspect("m").notes if "layers of another kind" in one]


def test_kinds_with_the_same_modules_are_not() -> None:
    assert notes([FULL, "sliding_attention"] * 3, [FULL] * 6) == []


@pytest.mark.parametrize(
    ("kind", "config", "modules", "stored"),
    [
        ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1}, ("mamba.in_proj", "self_attn.q_proj"), "maMa"),
        ("jamba", {"attn_layer_period": 4, "attn_layer_offset": 2}, ("mamba.in_proj", "self_attn.q_proj"), "mmAm"),
        ("qwen3_next", {}, ("linear_attn.in_proj", "self_attn.q_proj"), "mmmA"),
        ("lfm2", {"full_attn_idxs": [1, 2]}, ("conv.in_proj", "self_attn.q_proj"), "mAam"),
    ],
)
def test_kinds_that_a_class_derives_are_compared_too(
    kind: str, config: dict[str, Any], modules: tuple[str, str], stored: str
) -> None:
    def found(layers: str, **more: Any) -> list[str]:
        keys = [f"model.layers.{n}.{modules[one in 'aA']}.weight" for n, one in enumerate(layers)]
        return list(layer_kind_notes(keys, {"model_type": kind, "num_hidden_layers": len(layers), **config, **more}))

    assert not found(stored)
    (note,) = found(stored[1:] + stored[0])
    assert note.startswith("config.json says ")
    assert " for layer " in note
    assert not found(stored[1:] + stored[0], auto_map={"AutoModel": "code.Net"})
