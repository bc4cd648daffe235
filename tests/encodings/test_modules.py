"""Settings of quantisation that are of single modules, or that leave some out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from .zoo import BY_NAME, LAYERS, Quantised

FIRST, SECOND = LAYERS
WEIGHTS = {"num_bits": 4, "group_size": 32, "symmetric": True}


def grouped(*groups: tuple[list[str], dict[str, Any]], **more: Any) -> dict[str, Any]:
    found = {
        f"group_{place}": {"targets": targets, "weights": {**WEIGHTS, **changed}}
        for place, (targets, changed) in enumerate(groups)
    }
    return {"quant_method": "compressed-tensors", "config_groups": found, **more}


MODELS = BY_NAME | {
    "ct": replace(BY_NAME["int4-second-group"], settings=grouped((["Linear"], {}))),
    "mlx-4": replace(BY_NAME["mlx"], settings={"group_size": 64, "bits": 4}),
}
OTHER = {"symmetric": False}


def model(name: str, **changed: Any) -> Quantised:
    return replace(MODELS[name], settings={**MODELS[name].settings, **changed})


ANOTHER = [
    ("mlx-4", {FIRST: {"bits": 8, "group_size": 32}}, f"bits of {FIRST} is 4 in a, 8 in b"),
    ("mlx-4", {FIRST: False}, f"{FIRST} is quantised in a, left out by {FIRST} in b"),
    ("gptq", {"dynamic": {r".*\.0\..*q_proj": {"bits": 8}}}, f"bits of {FIRST} is 4 in a, 8 in b"),
    ("gptq", {"dynamic": {rf"+:{FIRST}": {"sym": True}}, "sym": False}, None),
    ("gptq", {"dynamic": {r"-:.*q_proj": {}}}, rf"{FIRST} is quantised in a, left out by dynamic \(-:\.\*q_proj\) in b"),
    ("gptq", {"quant_method": "auto-round", "extra_config": {FIRST: {"bits": 8}}}, f"bits of {FIRST} is 4 in a, 8 in b"),
    ("ct", grouped((["Linear"], {}), (["re:.*q_proj"], OTHER)), f"symmetric of {FIRST} is true in a, false in b"),
    ("ct", grouped((["Linear"], {}), ([FIRST], OTHER)), f"symmetric of {FIRST} is true in a, false in b"),
    ("ct", grouped((["Linear"], {}), (["re:.*lm_head"], OTHER)), None),
    ("ct", grouped((["Linear"], {}), ignore=["re:.*q_proj"]), rf"{FIRST} is quantised in a, left out by ignore \(re:"),
    ("ct", grouped((["Linear"], {}), ignore=["model.layers.0", "q_proj", "lm_head"]), None),
    ("fp8-block", {"modules_to_not_convert": ["q_proj"]}, r"left out by modules_to_not_convert \(q_proj\) in b"),
    ("fp8-block", {"modules_to_not_convert": ["model.layers.0"]}, r"left out by modules_to_not_convert \(model.layers.0\)"),
    ("fp8-block", {"modules_to_not_convert": ["model.layers.*.self_attn"]}, r"left out by modules_to_not_convert"),
    ("fp8-block", {"modules_to_not_convert": ["proj", "model.layer", "layers.0", "lm_head", "(a+)+$"]}, None),
    ("bnb-nf4", {"llm_int8_skip_modules": [FIRST]}, r"left out by llm_int8_skip_modules"),
    ("bnb-nf4", {"llm_int8_skip_modules": None}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "why"), ANOTHER)
def test_codes_are_not_put_under_settings_of_their_module_that_decode_them_otherwise(
    name: str, changed: dict[str, Any], why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = model(name).folder(Path("a")), model(name, **changed).folder(Path("b"), 1)
    notes = [note for note in cs.diff(a, b).notes if "the same codes stand for other numbers" in note]
    if why is None:
        assert cs.transplant(a, b).counts["copied"]
        assert not notes
        assert not [note for note in cs.inspect(b).notes if "quantization_config" in note]
        return
    with pytest.raises(cs.PlanError, match=why) as error:
        cs.transplant(a, b)
    assert error.value.exit_code == 4
    assert notes
    assert cs.transplant(a, b, exclude=list(LAYERS)).counts["copied"]
    assert cs.transplant(model(name, **changed).folder(Path("c"), 2), b).counts["copied"]


def test_codes_of_modules_of_which_nothing_else_is_said_are_taken(tmp_path: Path) -> None:
    a = model("mlx-4").folder(tmp_path / "a")
    b = model("mlx-4", **{FIRST: {"bits": 8, "group_size": 32}}).folder(tmp_path / "b", 1)
    assert cs.transplant(a, b, include=[SECOND]).counts["copied"] == 3


LEFT_OUT = [
    (name, changed, why.partition("left out by ")[2]) for name, changed, why in ANOTHER if why and "left" in why
]


@pytest.mark.parametrize(("name", "changed", "by"), LEFT_OUT)
@pytest.mark.parametrize("verb", [cs.inspect, cs.convert, lambda path: cs.transplant(path, path)])
def test_codes_of_modules_that_settings_leave_out_are_said(
    name: str, changed: dict[str, Any], by: str, verb: Any, tmp_path: Path
) -> None:
    notes = verb(model(name, **changed).folder(tmp_path / "m")).notes
    assert any("leaves" in note and "out by" in note and f"{FIRST}.weight" in note for note in notes)
