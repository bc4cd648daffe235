"""Settings of quantisation that are of single modules, or that leave some out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.tensors.quantised.modules import Modules

from ...helpers.zoo import BY_NAME, IN, LAYERS, Quantised

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


@pytest.mark.costly
@pytest.mark.parametrize(("name", "changed", "why"), ANOTHER)
def test_codes_are_not_put_under_settings_of_their_module_that_decode_them_otherwise(
    name: str, changed: dict[str, Any], why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = model(name).folder(Path("a")), model(name, **changed).folder(Path("b"), 1)
    notes = [
        note for note in cs.diff(a, b).notes if "quantised codes mean different numbers in the two checkpoints" in note
    ]
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
    assert any("excludes" in note and " by " in note and f"{FIRST}.weight" in note for note in notes)


SWAPPED = FIRST.replace(".0.", ".1.")
SWAP = ["model.layers.{n}=model.layers.{1-n}"]
EIGHT = {"bits": 8, "group_size": 32}
RENAMED = [
    ("mlx-4", {FIRST: EIGHT}, ["model=dec"], lambda said: said["dec" + FIRST[5:]] == EIGHT and FIRST not in said),
    ("mlx-4", {FIRST: EIGHT}, SWAP, lambda said: said[SWAPPED] == EIGHT and FIRST not in said),
    ("mlx-4", {FIRST: EIGHT, SECOND: {"bits": 4, "group_size": 64}}, SWAP, lambda said: said[SWAPPED] == EIGHT),
    ("gptq", {"dynamic": {f"+:{FIRST}": {"sym": False}}}, SWAP, lambda said: [*said["dynamic"]] == [f"+:{SWAPPED}"]),
    ("gptq", {"dynamic": {r".*q_proj": {"bits": 4}}}, SWAP, lambda said: [*said["dynamic"]] == [".*q_proj"]),
    ("gptq", {"quant_method": "auto-round", "extra_config": {FIRST: {"bits": 4}}}, SWAP,
     lambda said: [*said["extra_config"]] == [SWAPPED]),
    ("ct", grouped((["Linear"], {}), ([FIRST], OTHER)), SWAP,
     lambda said: said["config_groups"]["group_1"]["targets"] == [SWAPPED]),
    ("ct", grouped((["Linear"], {}), ignore=[3, "lm_head", "model.norm"]), ["model=dec"],
     lambda said: said["ignore"] == [3, "lm_head", "dec.norm"]),
    ("ct", grouped((["Linear"], {}), (["re:.*layers.0.*"], OTHER)), SWAP, "do not apply to modules under their new names: symmetric of"),
    ("gptq", {"dynamic": {r".*layers.0.*": {"bits": 8}}}, SWAP, "do not apply to modules under their new names: bits of"),
    ("ct", grouped((["Linear"], {}), ignore=["re:dec.*"]), ["model=dec"], "do not apply to modules under their new names: .* is quantised"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "rules", "wanted"), RENAMED)
def test_settings_of_modules_follow_their_new_names(
    name: str, changed: dict[str, Any], rules: list[str], wanted: Any, tmp_path: Path
) -> None:
    folder = model(name, **changed).folder(tmp_path / "m")
    if isinstance(wanted, str):
        with pytest.raises(cs.PlanError, match=wanted) as error:
            cs.rename(folder, map=rules)
        assert error.value.exit_code == 4
        return
    out = tmp_path / "out.safetensors"
    cs.apply(cs.rename(folder, map=rules), out)
    with safe_open(out, "pt") as file:
        assert wanted(json.loads(file.metadata()["quantization_config"]))
    again = tmp_path / "again.safetensors"
    cs.apply(cs.rename(out, map=rules if rules is SWAP else ["dec=model"]), again)
    with safe_open(again, "pt") as file:
        assert json.loads(file.metadata()["quantization_config"]) == model(name, **changed).settings


def test_plain_weights_that_settings_leave_out_by_their_old_name_are_said(tmp_path: Path) -> None:
    folder = model("fp8-block", modules_to_not_convert=["proj_out"]).folder(tmp_path / "m")
    state = load_file(folder / "model.safetensors") | {"a.proj_out.weight": torch.ones(4, 4)}
    save_file(state, folder / "model.safetensors")
    said = "by the old name (modules_to_not_convert (proj_out)), but not by the new name, so a loader expects quantised codes in a.head.weight"
    for rule, number in (("a.proj_out=a.head", 1), ("a=b", 0)):
        assert sum(said in note for note in cs.rename(folder, map=[rule]).notes) == number


def test_settings_of_modules_follow_a_map_into_a_file_without_settings(tmp_path: Path) -> None:
    folder = model("mlx-4", **{FIRST: EIGHT}).folder(tmp_path / "m")
    state = {key.replace(".0.", ".1."): one for key, one in load_file(folder / "model.safetensors").items()}
    save_file(state, tmp_path / "codes.safetensors")
    plan = cs.transplant(folder, tmp_path / "codes.safetensors", map=SWAP)
    assert json.loads(plan.metadata["quantization_config"]) == {"group_size": 64, "bits": 4, SWAPPED: EIGHT}


def test_the_settings_of_the_destination_go_along(tmp_path: Path) -> None:
    a = model("mlx-4").folder(tmp_path / "a")
    b = model("mlx-4", **{FIRST: EIGHT}).folder(tmp_path / "b", 1)
    plan = cs.transplant(a, b, include=[SECOND])
    assert json.loads(plan.metadata["quantization_config"])[FIRST] == EIGHT


def test_settings_in_a_file_of_their_own_follow_too(tmp_path: Path) -> None:
    folder = model("gptq").folder(tmp_path / "m")
    settings = {**model("gptq").settings, "dynamic": {FIRST: {"desc_act": False}}}
    (folder / "config.json").unlink()
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    cs.apply(cs.rename(folder, map=SWAP), tmp_path / "out")
    said = json.loads((tmp_path / "out/quantize_config.json").read_text())
    assert said == {**settings, "dynamic": {SWAPPED: {"desc_act": False}}}
    assert not [note for note in cs.inspect(tmp_path / "out").notes if "quantize_config.json" in note]


GATED = tuple(f"model.layers.{n}.{name}" for n in (0, 1) for name in ("self_attn.q_proj", "mlp.gate_proj"))


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "changed", "columns"),
    [
        ("mlx-4", {"bits": 4, "group_size": 64}, 0),
        ("mlx-4", {"bits": 8, "group_size": 32}, 64),
        ("ct", grouped((["Linear"], {})), 0),
        ("ct", grouped((["Linear"], {"num_bits": 8, "group_size": 16})), 64),
    ],
)
def test_settings_by_which_no_codes_are_as_wide_as_the_model_are_said(
    name: str, changed: dict[str, Any], columns: int, tmp_path: Path
) -> None:
    folder = replace(model(name, **changed), layers=GATED).folder(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for size, number in ((IN, bool(columns)), (None, False)):
        (folder / "config.json").write_text(json.dumps({**config, "hidden_size": size}))
        for verb in (cs.inspect, cs.convert):
            said = [note for note in verb(folder).notes if "with its quantization_config, " in note]
            assert len(said) == number
            assert all("4 quantised tensors of layers would have" in note for note in said)
            assert all(f"would have {columns} columns" in note and f"says {IN} (hidden_size)" in note for note in said)


@pytest.mark.costly
@pytest.mark.parametrize(
    "settings",
    [
        {"dynamic": {f".+.+.+x{n}": {} for n in range(199)}},
        {"modules_to_not_convert": [r"\d+" * 40 + "x", "(a+)+x", "*", "[", "", 1, None]},
        {
            "quant_method": "compressed-tensors",
            "ignore": ["re:(", 3, "re:(a|a)*b"],
            "config_groups": {"a": {"targets": [1, "re:[z-a]"]}, "b": 3},
        },
        {"quant_method": ["gptq"], "extra_config": [1], "dynamic": [1]},
    ],
)
def test_settings_of_strangers_are_read_whatever_they_hold(settings: dict[str, Any]) -> None:
    modules = Modules(settings)
    for n in range(300):
        for name in ("a" * 150 + f".{n}", "1" * 190 + str(n)):
            assert modules.settings(modules.place(name)) is not None
            assert modules.left_out(name) == ""
