"""What adapter_config.json says and the tensors are not is said, by inspect and by a merge; what PEFT writes is sound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.methods.lora.targets import targets_of
from fixtures.peft_cases import CASES

from ...helpers.adapters import factors, peft_folder

GOLDEN = Path(__file__).parents[3] / "fixtures" / "golden" / "peft"
LAYERS = [f"model.layers.{number}" for number in range(3)]


def base() -> None:
    state = {f"{layer}.{name}.weight": torch.ones(4, 4) for layer in LAYERS for name in ("q_proj", "o_proj")}
    state |= {f"{layer}.q_proj.bias": torch.ones(4) for layer in LAYERS}
    save_file({**state, "lm_head.weight": torch.ones(6, 4), "score.weight": torch.ones(2, 4)}, "base.safetensors")


def adapter(*names: str, more: dict[str, torch.Tensor] | None = None, **config: Any) -> list[str]:
    """The notes on an adapter of these modules."""
    base()
    tensors = dict(more or {})
    for name in names or [f"{layer}.q_proj" for layer in LAYERS]:
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = factors(4, 4)
    peft_folder("a", tensors, **config)
    return [note.removeprefix("a: ") for note in cs.lora_merge("base.safetensors", "a").notes]


Q = {"target_modules": ["q_proj"]}
UNMEANT = "{} factors that lora merge uses, but PEFT ignores because of {}: {}"
LOST = "target_modules selects {} without factors: {}"
BOTH = [
    (
        {"target_modules": ["o_proj"], "exclude_modules": ["o_proj"]},
        UNMEANT.format("3 modules have", "target_modules", "model.layers.0.q_proj"),
    ),
    (
        {**Q, "exclude_modules": [f"{LAYERS[1]}.q_proj"]},
        UNMEANT.format("1 module has", "exclude_modules", f"{LAYERS[1]}.q_proj"),
    ),
    (
        {**Q, "layers_to_transform": [0, 1]},
        UNMEANT.format("1 module has", "layers_to_transform", f"{LAYERS[2]}.q_proj"),
    ),
    (
        {**Q, "layers_to_transform": 0, "layers_pattern": "layers"},
        UNMEANT.format("2 modules have", "layers_to_transform", f"{LAYERS[1]}.q_proj"),
    ),
    ({"target_modules": r".*\.[01]\.q_proj"}, UNMEANT.format("1 module has", "target_modules", f"{LAYERS[2]}.q_proj")),
    ({**Q, "alpha_pattern": {"q_proj": 2, "k_proj": 8}}, "alpha_pattern has entries that match no module: k_proj"),
    ({**Q, "rank_pattern": {r"layers\.9\.q_proj": 8}}, r"rank_pattern has entries that match no module: layers\.9"),
    ({**Q, "modules_to_save": ["lm_head"]}, "modules_to_save lists lm_head, but the adapter has no tensors of them"),
    ({**Q, "lora_bias": True}, "lora_bias is set, but no module of the adapter has a bias"),
]


@pytest.mark.parametrize(("config", "said"), BOTH)
def test_what_tensors_are_not_is_said_by_inspect_and_by_a_merge(config: dict[str, Any], said: str) -> None:
    merged = adapter(**config)
    inspected = cs.inspect("a").notes
    edited = [cs.convert("a", dtype="f64"), cs.filter("a", include="*")]
    others = [inspected, *([one for one in plan.notes if "adapter_config.json: " in one] for plan in edited)]
    cs.apply(edited[0], "cast")
    others.append([note.why for note in cs.verify("cast").notes])
    for notes in (merged, *([note.removeprefix("adapter_config.json: ") for note in found] for found in others)):
        assert len([note for note in notes if note.startswith(said)]) == 1, notes


HEAD = {"lm_head.weight": torch.ones(6, 4)}
OF_BASE = [
    ({"target_modules": ["q_proj", "o_proj", "k_proj"]}, {}, LOST.format("3 modules", f"{LAYERS[0]}.o_proj")),
    (
        {**Q, "modules_to_save": ["lm_head", "score"]},
        HEAD,
        "modules_to_save lists score, but the adapter has no tensors of it",
    ),
    ({**Q, "bias": "all"}, {}, "bias is all, but the adapter has no biases: 3 biases of the base do not change"),
    (
        {**Q, "bias": "lora_only"},
        {},
        "bias is lora_only, but the adapter has no biases: 3 biases of the base do not change",
    ),
]


@pytest.mark.parametrize(("config", "more", "said"), OF_BASE)
def test_what_a_base_has_and_an_adapter_should_is_said_by_a_merge(
    config: dict[str, Any], more: dict[str, torch.Tensor], said: str
) -> None:
    (note,) = adapter(more=more, **config)
    assert note.startswith(said)


SOUND = [
    {**Q, "bias": "none", "lora_bias": False, "layers_to_transform": [0, 1, 2], "layers_pattern": "layers"},
    {"target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|o_proj))|(?:model.*q_proj)"},
    {"target_modules": [f"{layer}.q_proj" for layer in LAYERS], "layers_to_transform": [7]},
    {**Q, "modules_to_save": ["classifier", "score"], "more": {"score.weight": torch.ones(2, 4)}},
    {"target_modules": None},
    {"target_modules": ["q_proj", "k_proj"]},
]


@pytest.mark.parametrize("config", SOUND)
def test_what_is_as_it_is_said_to_be_gives_no_note(config: dict[str, Any]) -> None:
    assert not adapter(**config)
    assert not cs.inspect("a").notes


@pytest.mark.parametrize("name", CASES)
def test_what_peft_writes_is_sound(name: str) -> None:
    assert not cs.lora_merge(GOLDEN / "base.safetensors", GOLDEN / name).notes
    assert not [note for note in cs.inspect(GOLDEN / name).notes if "adapter_config" in note]


@pytest.mark.parametrize("name", ["square", "score", "all", "extracted", "extracted-mixed"])
def test_of_a_gpt2_too(name: str) -> None:
    notes = cs.lora_merge(GOLDEN / "gpt2" / "base", GOLDEN / "gpt2" / name).notes
    assert not [note for note in notes if "fan_in_fan_out" not in note]


def test_a_module_that_is_excluded_from_a_merge_is_not_lacking() -> None:
    adapter(**Q)
    assert not cs.lora_merge("base.safetensors", "a", exclude=["model.layers.1.q_proj"]).notes


def test_names_that_have_something_before_those_of_the_base_are_compared_all_the_same() -> None:
    notes = adapter(
        *(layer.removeprefix("model.") + ".q_proj" for layer in LAYERS), target_modules=["q_proj", "o_proj"]
    )
    assert LOST.format("3 modules", "layers.0.o_proj, layers.1.o_proj, layers.2.o_proj") in notes


def test_inspect_says_that_a_configuration_is_of_another_adapter() -> None:
    adapter(**Q)
    said = json.loads(Path("a/adapter_config.json").read_text())
    Path("a/adapter_config.json").write_text(json.dumps({**said, "r": 8}))
    (note,) = cs.inspect("a").notes
    assert note.startswith(
        "adapter_config.json does not fit the tensors: the configuration of the adapter has the rank 8 for model.layers.0.q_proj"
    )


@pytest.mark.parametrize("said", [{}, {"target_modules": 3}, {"target_modules": ["q"], "layers_pattern": "(a+)+"}])
def test_targets_that_are_not_understood_are_none(said: dict[str, Any]) -> None:
    assert targets_of(said) is None
