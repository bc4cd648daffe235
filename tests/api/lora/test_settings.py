"""The settings of two adapters are compared: whatever changes results is said, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ckptsurgeon as cs

from ...helpers.adapters import factors, peft_folder

HUB = "/home/x/.cache/huggingface/hub/models--org--Llama/snapshots/0123abcd"
DIFFERENT: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"lora_alpha": 8}, {"lora_alpha": 800}, "lora_alpha is 8 in a, 800 in b"),
    ({}, {"use_rslora": True}, "use_rslora is null in a, true in b"),
    ({"target_modules": ["q", "v"]}, {"target_modules": ["q"]}, "target_modules is ['q', 'v'] in a, ['q'] in b"),
    ({"layers_to_transform": None}, {"layers_to_transform": [0]}, "layers_to_transform is null in a, [0] in b"),
    (
        {"base_model_name_or_path": "org/llama"},
        {"base_model_name_or_path": "org/tied"},
        "base_model_name_or_path is org/llama in a, org/tied in b",
    ),
    ({"init_lora_weights": True}, {"init_lora_weights": "olora"}, "init_lora_weights is true in a, olora in b"),
    ({"task_type": "SEQ_CLS"}, {"task_type": "CAUSAL_LM"}, "task_type is SEQ_CLS in a, CAUSAL_LM in b"),
    ({"peft_type": "LOHA", "alpha": 8}, {"peft_type": "LOHA", "alpha": 9}, "alpha is 8 in a, 9 in b"),
]
ALIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"target_modules": ["q", "v"]}, {"target_modules": ["v", "q"]}),
    ({"use_dora": False, "modules_to_save": []}, {"modules_to_save": None}),
    ({"base_model_name_or_path": "org/llama", "revision": None}, {"base_model_name_or_path": None, "revision": "main"}),
    ({"base_model_name_or_path": "org/llama/"}, {"base_model_name_or_path": HUB}),
    ({"lora_dropout": 0.1, "inference_mode": False}, {"lora_dropout": 0.0, "inference_mode": True}),
    ({"init_lora_weights": "gaussian", "peft_version": "0.18"}, {"init_lora_weights": True, "peft_version": "0.21"}),
    ({"qalora_group_size": 16, "megatron_core": "megatron.core", "bias": "none"}, {}),
]


def adapters(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = factors(4, 4)
    for name, config in (("a", one), ("b", other)):
        peft_folder(name, {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}, **config)


@pytest.mark.parametrize(("one", "other", "said"), DIFFERENT)
def test_what_changes_results_is_said(one: dict[str, Any], other: dict[str, Any], said: str) -> None:
    adapters(one, other)
    note = f"the adapters differ, according to adapter_config.json: {said}"
    assert note in cs.diff("a", "b", values=True).notes
    assert note in cs.fits("a", "b").notes
    assert f"{note}; the output gets the adapter_config.json of b" in cs.average(["b", "a"]).notes
    files = [f"{name}/adapter_model.safetensors" for name in ("a", "b")]
    named = note.replace(" in a, ", f" in {files[0]}, ").removesuffix(" in b") + f" in {files[1]}"
    assert named in cs.diff(*files, values=True).notes


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_what_changes_no_results_is_not(one: dict[str, Any], other: dict[str, Any]) -> None:
    adapters(one, other)
    plans = (cs.average(["b", "a"]), cs.transplant("a", "b"))
    notes = [note for one in (cs.diff("a", "b", values=True), cs.fits("a", "b"), *plans) for note in one.notes]
    assert not [note for note in notes if "the adapters differ" in note]


IGNORED = "adapter_config.json: 1 module has factors that lora merge uses, but PEFT ignores because of target_modules"
VERBS: dict[str, Callable[[], cs.Plan]] = {
    "transplant": lambda: cs.transplant("a", "b"),
    "transplant of it": lambda: cs.transplant("b", "a"),
    "average": lambda: cs.average(["b", "a"]),
    "average with it": lambda: cs.average(["a", "b"]),
    "merge": lambda: cs.merge(["b", "a"], method="linear", weights=[0.5, 0.5]),
    "convert": lambda: cs.convert("b", dtype="float16"),
    "filter": lambda: cs.filter("b", include=["**"]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_factors_that_peft_ignores_in_an_output_are_said_once(verb: str) -> None:
    adapters({"target_modules": ["q"]}, {"target_modules": ["v"]})
    assert sum(f"{IGNORED}: layers.0.q" in note for note in VERBS[verb]().notes) == 1


def test_what_compares_adapters_says_that_peft_ignores_factors() -> None:
    adapters({"target_modules": ["q"]}, {"target_modules": ["v"]})
    for found in (cs.diff("a", "b"), cs.fits("b", "a"), cs.fits("b/adapter_model.safetensors", "a")):
        assert sum(f"{IGNORED}: layers.0.q" in note for note in found.notes) == 1


def test_a_rank_that_is_not_that_of_the_factors_is_said_once() -> None:
    adapters({"target_modules": ["q"]}, {"target_modules": ["q"], "r": 4})
    said = (
        "adapter_config.json does not fit the tensors: the configuration of the adapter has the rank 4 for layers.0.q"
    )
    assert sum(said in note for note in cs.convert("b").notes) == 1
