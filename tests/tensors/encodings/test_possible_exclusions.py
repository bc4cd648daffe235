"""Plain layers of a quantised model that settings exclude by the rule of some loader, or may exclude."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.analysis.check.report import Found, Status
from ckptsurgeon.tensors.quantised import expressions, modules
from ckptsurgeon.tensors.quantised.exclusions import PossibleExclusions

from .test_missing_parts import THREE, State, folder_of
from .test_unlike import changed

SAID = "not quantised, although other layers are, and"
UNDECIDED = "which may exclude it, are not evaluated"
FEW = {f"-:model.(a|b)({n}|c)(d|e).*": {} for n in range(2)}
"""Expressions with more groups than are evaluated: they may exclude any module."""


def findings(folder: Path) -> list[Found]:
    """What ``check`` finds, without the network that the folder's class would build."""
    report = cs.check(folder, skip=["class-tensors", "model-card"])
    return [one for row in report.rows for one in row.found]


def failures(folder: Path) -> list[str]:
    """Return what ``check`` says of plain weights among quantised ones; it is always a failure."""
    found = [one for one in findings(folder) if SAID in one.what]
    assert all(one.status is Status.FAIL for one in found)
    return [one.what.rpartition(": ")[2] for one in found]


def undecided(folder: Path) -> list[str]:
    """Return the weights of which ``check`` says that settings may exclude them; it is always a warning."""
    found = [one for one in findings(folder) if UNDECIDED in one.what]
    assert all(one.status is Status.WARN for one in found)
    return [one.what.rpartition(": ")[2] for one in found]


def with_settings(folder: Path, settings: dict[str, Any], **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= settings
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


EXCLUDED = [
    ("awq", "modules_to_not_convert", "model.layers.{}."),
    ("awq", "modules_to_not_convert", "layers.{}"),
    ("awq", "modules_to_not_convert", "layers.{}.mlp"),
    ("bnb-nf4", "llm_int8_skip_modules", "model.layers.{}."),
    ("fp8-block", "modules_to_not_convert", "model.layers.{}."),
    ("fp8-block", "modules_to_not_convert", r"model\.layers\.({}|7)\."),
    ("fp8-block", "modules_to_not_convert", r"model\.layers\.({0}|[7-8])\.mlp"),
    ("fp8-block", "modules_to_not_convert", ".{}.mlp.up_proj"),
    ("fp8-block", "ignored_layers", "model.layers.{}.mlp.gate_up_proj"),
    ("int4-packed", "ignore", "model.layers.{}.mlp.gate_up_proj"),
    ("int4-packed", "ignore", r"re:model\.layers\.([{0}-{0}])\..*"),
    ("int4-packed", "ignore", r"re:.*layers\.(?={})\d+\..*"),
    ("int4-packed", "ignore", r"re:.*layers\.{}\..*gate_up_proj"),
]
each_rule = pytest.mark.parametrize(("name", "field", "entry"), EXCLUDED)


@each_rule
def test_what_some_loader_takes_for_excluded_is_not_said(name: str, field: str, entry: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    assert failures(with_settings(folder, {field: ["lm_head", entry.format(1)]})) == []


@each_rule
def test_entries_for_another_layer_exclude_nothing_else(name: str, field: str, entry: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    assert failures(with_settings(folder, {field: ["lm_head", entry.format(2)]})) == [f"{THREE[1]}.weight"]


def test_autoawq_compares_entries_with_any_part_of_a_name(tmp_path: Path) -> None:
    for name, found in (("awq", []), ("fp8-block", [f"{THREE[1]}.weight"])):
        folder = folder_of(name, tmp_path / name)
        changed(folder, 1)
        assert failures(with_settings(folder, {"modules_to_not_convert": ["ers.1.mlp.up"]})) == found


EXPRESSIONS = [r"-:.*\.([{0}-{0}])\..*", r"-:^model\.layers\.(?!0|{1}).*", r"-:.*\.(?:{0}|[7-9])\.mlp.*"]


@pytest.mark.costly
@pytest.mark.parametrize("entry", EXPRESSIONS)
def test_expressions_of_gptqmodel_exclude_the_layers_that_they_match(entry: str, tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path)
    changed(folder, 1)
    assert failures(with_settings(folder, {"dynamic": {entry.format(1, 2): {}}})) == []
    assert failures(with_settings(folder, {"dynamic": {entry.format(2, 1): {}}})) == [f"{THREE[1]}.weight"]
    assert failures(with_settings(folder, {"dynamic": {}})) == [f"{THREE[1]}.weight"]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gptq", {"dynamic": FEW}),
        ("gptq", {"dynamic": {f"-:other{number}": {} for number in range(201)}}),
        ("int4-packed", {"ignore": ["re:(a|b)(c|d)(e|f)(.*)up_proj"]}),
        ("fp8-block", {"modules_to_not_convert": ["(a+)+$"]}),
    ],
)
def test_expressions_that_are_not_evaluated_may_exclude_anything(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    assert (failures(folder), undecided(folder)) == ([f"{THREE[1]}.weight"], [])
    with_settings(folder, settings)
    assert (failures(folder), undecided(folder)) == ([], [f"{THREE[1]}.weight"])


def test_weights_of_a_section_with_16_bits_are_plain(tmp_path: Path) -> None:
    folder = folder_of("gptq", tmp_path)
    changed(folder, 1)
    for bits, found in ((16, []), (8, [f"{THREE[1]}.weight"])):
        with_settings(folder, {"dynamic": {r"+:.*\.1\..*": {"bits": bits}}})
        assert (failures(folder), undecided(folder)) == (found, [])


@pytest.mark.parametrize(
    ("name", "field", "entries"),
    [
        ("fp8-block", "modules_to_not_convert", ["proj"]),
        ("fp8-block", "modules_to_not_convert", ["model.layer"]),
        ("awq", "modules_to_not_convert", [".0.mlp", "up_pro"]),
        ("awq", "modules_to_not_convert", ["up"]),
        ("fp8-block", "modules_to_not_convert", [f"visual.blocks.{layer}.mlp.up_proj" for layer in range(9)]),
        ("fp8-block", "modules_to_not_convert", ["*lm_head"]),
        ("int4-packed", "ignore", [f"visual.blocks.{layer}.mlp.up_proj" for layer in range(9)]),
    ],
)
def test_a_rule_by_which_quantised_modules_would_be_excluded_is_not_the_loader_s(
    name: str, field: str, entries: list[str], tmp_path: Path
) -> None:
    """The last but one is not a valid regular expression: a loader cannot use it."""
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    with_settings(folder, {field: entries})
    assert (failures(folder), undecided(folder)) == ([f"{THREE[1]}.weight"], [])


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gptq", {"dynamic": {"-:mlp": {}}}),
        ("gptq", {"dynamic": {"-:layers.\\d+.mlp": {}}}),
        ("gptq", {"modules_in_block_to_quantize": [["mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"]]}),
        ("fp8-block", {"modules_to_not_convert": ["mlp.*"]}),
        ("fp8-block", {"modules_to_not_convert": ["[l]ayers.*"]}),
        ("fp8-block", {"modules_to_not_convert": ["(?a)(?u)x"]}),
        ("int4-packed", {"ignore": ["re:mlp.up.*"]}),
        ("int4-packed", {"ignore": ["re:.*gate_up_proj"]}),
    ],
)
def test_a_reading_of_an_entry_that_excludes_quantised_modules_is_not_the_loader_s(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    """An expression may match the end of a name, or the name of a joined module, in some loader."""
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    with_settings(folder, settings)
    assert (failures(folder), undecided(folder)) == ([f"{THREE[1]}.weight"], [])


@pytest.mark.parametrize("entry", ["[[x]", "[a--b]", "(?i)[\x01-\U0010fffe]", "(?i)[\\x01-\\U0010fffe]", "[a-\u4e00]"])
def test_costly_and_doubtful_expressions_are_not_compiled(
    entry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python warns of the first two, and takes very long for many such ranges. Warnings are errors in tests."""
    folder = folder_of("fp8-block", tmp_path)
    changed(folder, 1)
    monkeypatch.setattr(expressions, "_compiled", lambda text: pytest.fail(f"{text} is compiled"))
    with_settings(folder, {"modules_to_not_convert": ["lm_head", entry]})
    assert (failures(folder), undecided(folder)) == ([], [f"{THREE[1]}.weight"])


def test_of_very_many_expressions_the_first_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(expressions, "_compiled", tried.append)
    entries = [f"(a|b)(c|d)(e|f){number}" for number in range(1000)]
    assert len(modules.Modules({"quant_method": "fp8", "modules_to_not_convert": entries}).unread) == 800
    assert len(tried) == 200


def test_before_version_5_transformers_compared_the_beginning_of_a_name(tmp_path: Path) -> None:
    folder = folder_of("fp8-block", tmp_path)
    changed(folder, 1)
    state = load_file(folder / "model.safetensors")
    moved = {key.replace(".layers.1.", ".layers.10."): one for key, one in state.items()}
    save_file(moved, folder / "model.safetensors")
    for entry, found in (("model.layers.1", []), ("model.layers.2", [f"{THREE[1].replace('.1.', '.10.')}.weight"])):
        assert failures(with_settings(folder, {"modules_to_not_convert": [entry]})) == found


@pytest.mark.costly
@pytest.mark.parametrize(
    "entry", [r"re:.*\.layers\.\d{1,2}\.mlp.*", r"re:(?i).*MLP\.up.*", r"re:.*\bup_proj\b", r"re:.*\.[^.]+\.up_proj$"]
)
def test_ordinary_expressions_are_evaluated(entry: str, tmp_path: Path) -> None:
    folder = folder_of("int4-packed", tmp_path)
    changed(folder, 1)
    other = re.sub("up|mlp|MLP", "other", entry)
    for given, found in ((entry, []), (other, [f"{THREE[1]}.weight"])):
        with_settings(folder, {"ignore": [given]})
        assert (failures(folder), undecided(folder)) == (found, [])


def test_many_modules_and_expressions_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only names that have all words of an expression are compared with it."""
    settings = {"quant_method": "gptq", "dynamic": {"-:.*mlp.*shared.*gate.*": {}}}
    exclusions = PossibleExclusions(settings)
    names = [f"model.layers.3.mlp.experts.{expert}.up_proj" for expert in range(2000)]
    assert not any(map(exclusions.may_exclude, names))
    assert exclusions.may_exclude("model.layers.3.mlp.shared_expert.gate")
    assert not exclusions.is_spent
    monkeypatch.setattr(modules, "_STEPS", 1000)
    assert not exclusions.may_exclude("model.layers.3.mlp.shared_expert.gate")
    assert exclusions.is_spent


def test_if_not_all_could_be_compared_this_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of("gptq", tmp_path)
    changed(folder, 1)
    with_settings(folder, {"dynamic": {r"-:.*\.7\..*up.*": {}, r"-:.*\.(7)\..*up.*": {}}})
    assert (failures(folder), undecided(folder)) == ([f"{THREE[1]}.weight"], [])
    monkeypatch.setattr(modules, "_STEPS", 1)
    assert (failures(folder), undecided(folder)) == ([], [f"{THREE[1]}.weight"])


@pytest.mark.parametrize(
    ("name", "field", "entry"),
    [
        ("fp8-block", "modules_to_not_convert", THREE[1]),
        ("fp8-block", "modules_to_not_convert", r"model\.layers\.[1]\..*"),
        ("int4-packed", "ignore", THREE[1]),
        ("int4-packed", "ignore", r"re:model\.layers\.1\..*"),
        ("gptq", "dynamic", r"-:model\.layers\.1\..*"),
    ],
)
def test_entries_may_have_another_prefix_than_the_keys(name: str, field: str, entry: str, tmp_path: Path) -> None:
    def edit(state: State) -> None:
        for key in [one for one in state if one.startswith("model.layers.")]:
            state[key.replace("model.", "model.language_model.", 1)] = state.pop(key)

    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")
    key = f"{THREE[1].replace('model.', 'model.language_model.', 1)}.weight"
    assert failures(folder) == [key]
    assert failures(with_settings(folder, {field: {entry: {}} if field == "dynamic" else [entry]})) == []


def test_an_entry_that_names_a_module_of_the_model_excludes_no_other(tmp_path: Path) -> None:
    other = "llm.blocks.1.mlp.up_proj"
    entry = {"modules_to_not_convert": [other]}
    folder = with_settings(folder_of("fp8-block", tmp_path), entry)
    changed(folder, 1)
    assert failures(folder) == []  # perhaps a name from another version of the model
    state = load_file(folder / "model.safetensors")
    save_file({**state, f"model.{other}.weight": torch.ones(64, 64)}, folder / "model.safetensors")
    assert failures(folder) == [f"{THREE[1]}.weight"]


@pytest.mark.parametrize(
    "entry",
    [
        "mtp.layers.1.mlp.up_proj", "visual.blocks.1.mlp", "audio_tower.layers.1.mlp.up_proj",
        "model.encoder.layers.1.mlp.up_proj", "mtp.layers.1",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("name", "field"), [("fp8-block", "modules_to_not_convert"), ("int4-packed", "ignore")])
def test_an_entry_for_another_part_of_a_model_excludes_no_layer_of_its_language_model(
    name: str, field: str, entry: str, tmp_path: Path
) -> None:
    """They have modules with the same names within a layer, and may be stored elsewhere."""
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    assert failures(with_settings(folder, {field: ["lm_head", entry]})) == [f"{THREE[1]}.weight"]


GATES = tuple(name.replace("up_proj", "gate_proj") for name in THREE)


def with_gates(folder: Path, *plain: str) -> None:
    """Add quantised projections ``gate_proj`` to all layers; those in the modules ``plain`` are not quantised."""
    state = {key: one for key, one in load_file(folder / "model.safetensors").items() if "gate_proj" not in key}
    parts = {key.removeprefix(THREE[0]): one for key, one in state.items() if key.startswith(f"{THREE[0]}.")}
    for name in GATES:
        own = {".weight": torch.ones(64, 64)} if name in plain else parts
        state |= {f"{name}{end}": one.clone() for end, one in own.items()}
    save_file(state, folder / "model.safetensors")


@pytest.mark.costly
@pytest.mark.parametrize("part", ["vision_tower.encoder", "visual", "decoder", "layers"])
@pytest.mark.parametrize("first", ["model", "bert"])
def test_an_entry_may_have_one_more_word_before_the_key(part: str, first: str, tmp_path: Path) -> None:
    """transformers names the modules of a model ``model.visual``, and saves ``visual``."""
    folder = folder_of("fp8-block", tmp_path)
    changed(folder, 1)
    state = load_file(folder / "model.safetensors")
    save_file({key.replace("model.layers", part, 1): one for key, one in state.items()}, folder / "model.safetensors")
    own = THREE[1].replace("model.layers", part, 1)
    assert failures(with_settings(folder, {"modules_to_not_convert": ["lm_head"]})) == [f"{own}.weight"]
    assert failures(with_settings(folder, {"modules_to_not_convert": [f"{first}.{own}"]})) == []
    assert failures(with_settings(folder, {"modules_to_not_convert": [f"{first}.{part}"]})) == [f"{own}.weight"]


@pytest.mark.parametrize("entry", ["gate_up_proj", "model.layers.1.mlp.gate_up_proj", "layers.1.mlp.gate_up_proj"])
@pytest.mark.parametrize(
    ("name", "field"),
    [("fp8-block", "modules_to_not_convert"), ("awq", "modules_to_not_convert"), ("int4-packed", "ignore")],
)
def test_the_name_of_a_joined_module_excludes_no_single_part(name: str, field: str, entry: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    with_gates(folder, GATES[1])
    with_settings(folder, {field: ["lm_head", entry]})
    both = f"{GATES[1]}.weight, {THREE[1]}.weight"
    assert failures(folder) == ([both] if entry == "gate_up_proj" else [])
    with_gates(folder)
    assert failures(folder) == [f"{THREE[1]}.weight"]


TARGETS = {
    "targets": ["re:.*mlp.*_proj"],
    "weights": {"num_bits": 4, "group_size": 32, "type": "int", "strategy": "group"},
}


@pytest.mark.parametrize(
    ("name", "settings", "is_said"),
    [
        ("gptq", {"provider": "auto-round"}, True),
        ("gptq", {"provider": "auto-round", "block_name_to_quantize": ["model.layers.0", "model.layers.2"]}, False),
        ("fp8-channel", {"quant_method": "fbgemm_fp8"}, True),
        ("int4-packed", {"config_groups": {"a": TARGETS}}, True),
        ("int4-packed", {"config_groups": {"a": {**TARGETS, "targets": ["re:.*self_attn.*"]}}}, False),
        ("int4-packed", {"config_groups": {"a": {**TARGETS, "targets": [THREE[0], THREE[2]]}}}, False),
        ("int4-packed", {"config_groups": {"a": TARGETS, "b": {**TARGETS, "targets": ["Linear"]}}}, True),
        ("int4-packed", {"config_groups": {"a": {**TARGETS, "targets": ["LlamaMLP"]}}}, False),
        ("fp8-tensor", {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {key: {"quant_algo": "FP8"} for key in THREE}}, True),
        ("fp8-tensor", {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {THREE[0]: {"quant_algo": "FP8"}, THREE[1]: {"quant_algo": "NONE"}}}, False),
    ],
)  # fmt: skip
def test_plain_layers_are_said_with_all_settings_that_say_which_are_quantised(
    name: str, settings: dict[str, Any], is_said: bool, tmp_path: Path
) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 1)
    assert failures(with_settings(folder, settings)) == ([f"{THREE[1]}.weight"] if is_said else [])


@pytest.mark.costly
@pytest.mark.parametrize("section", ["", "text_config"])
@pytest.mark.parametrize("name", ["gptq", "fp8-block"])
def test_layers_for_multi_token_prediction_may_be_plain(name: str, section: str, tmp_path: Path) -> None:
    folder = folder_of(name, tmp_path)
    changed(folder, 2)
    plain = [f"{THREE[2]}.weight"]
    for number, more, found in ((2, 1, []), (3, 1, plain), (1, 1, plain), (1, 2, []), (2, 0, plain), (2, None, plain)):
        fields = {"num_hidden_layers": number, "num_nextn_predict_layers": more}
        assert failures(with_settings(folder, {}, **({section: fields} if section else fields))) == found


def test_layers_of_an_encoder_are_not_for_multi_token_prediction(tmp_path: Path) -> None:
    folder = folder_of("fp8-block", tmp_path)
    changed(folder, 2)
    state = load_file(folder / "model.safetensors")
    tower = "model.vision_tower.encoder."
    save_file({key.replace("model.", tower, 1): one for key, one in state.items()}, folder / "model.safetensors")
    fields = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1}
    assert failures(with_settings(folder, {}, **fields)) == [f"{THREE[2].replace('model.', tower, 1)}.weight"]
