"""Entries of the metadata that a user sets, by every verb that makes a plan of tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

import ckptsurgeon as cs

from ...helpers.gguf_files import UINT32, gguf, tensor_info

GIVEN = {"a.count": "7", "general.name": "Two", "old": ""}
VERBS: dict[str, dict[str, Any]] = {
    "rename": {"source": "one", "map": ["w=v"]},
    "filter": {"source": "one", "include": ["w"]},
    "convert": {"source": "one"},
    "average": {"sources": ["one", "two"]},
    "merge": {"models": ["one", "two"], "method": "linear", "weights": [0.5, 0.5]},
    "transplant": {"source": "one", "destination": "two"},
}


@pytest.fixture(params=["gguf", "safetensors"])
def suffix(request: pytest.FixtureRequest) -> str:
    """Two files with entries; the suffix of their names."""
    value = struct.pack("<2f", 1, 2)
    entries = {"a.count": (UINT32, struct.pack("<I", 5)), "old": (UINT32, struct.pack("<I", 1))}
    for name in ("one", "two"):
        if request.param == "gguf":
            Path(f"{name}.gguf").write_bytes(gguf([tensor_info("w", [2], 0, 0)], entries, value + bytes(24)))
        else:
            save_file({"w": torch.tensor([1.0, 2.0])}, f"{name}.safetensors", {"a.count": "5", "old": "1"})
    return str(request.param)


def named(arguments: dict[str, Any], suffix: str) -> dict[str, Any]:
    """Arguments whose files have the suffix."""

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return [one(item) for item in value]
        return f"{value}.{suffix}" if value in ("one", "two") else value

    return {name: one(value) for name, value in arguments.items()}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_sets_and_removes_entries(verb: str, suffix: str) -> None:
    plan = getattr(cs, verb)(**named(VERBS[verb], suffix), metadata=GIVEN)
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply("plan.json", f"out.{suffix}")
    assert cs.verify(f"out.{suffix}").ok
    with cs.open_checkpoint(f"out.{suffix}") as found:
        said = {key: value for key, value in found.metadata.items() if key != "format"}
        assert said == {"a.count": "7", "general.name": "Two"}
        assert suffix == "safetensors" or found.header.stored["a.count"].kind == UINT32


@pytest.mark.parametrize("verb", VERBS)
def test_a_recipe_and_the_option_give_one_plan(verb: str, suffix: str, ckpt: Any) -> None:
    arguments = named(VERBS[verb], suffix)
    plan = getattr(cs, verb)(**arguments, metadata=GIVEN)
    Path("recipe.yaml").write_text(yaml.safe_dump({"verb": verb, **arguments, "metadata": GIVEN}))
    assert json.loads(ckpt("apply", "recipe.yaml", "-n", "--json").out) == plan.to_json()
    files = [value for name, value in arguments.items() if name in ("source", "sources", "models", "destination")]
    words = [word for value in files for word in (value if isinstance(value, list) else [value])]
    flags = {"map": "--map", "include": "--include", "method": "--method", "weights": "--weights"}
    for name, flag in flags.items():
        if name in arguments:
            value = arguments[name]
            words += [flag, ",".join(map(str, value)) if isinstance(value, list) else value]
    words += [word for key, value in GIVEN.items() for word in ("--set-metadata", f"{key}={value}")]
    told = ckpt(verb, *words, "-n", "--json")
    assert told.code == 0, told
    assert json.loads(told.out) == plan.to_json()


@pytest.mark.parametrize("verb", VERBS)
def test_the_name_of_the_recipe_is_reserved(verb: str, suffix: str) -> None:
    with pytest.raises(cs.ConfigError, match="the name ckptsurgeon in metadata is reserved"):
        getattr(cs, verb)(**named(VERBS[verb], suffix), metadata={"ckptsurgeon": "x"})


@pytest.mark.parametrize("verb", VERBS)
def test_a_plan_without_entries_records_none(verb: str, suffix: str) -> None:
    plan = getattr(cs, verb)(**named(VERBS[verb], suffix))
    assert "metadata" not in plan.arguments
    assert plan.metadata["a.count"] == "5"


@pytest.mark.parametrize("verb", VERBS)
def test_what_removes_nothing_is_said(verb: str, suffix: str) -> None:
    plan = getattr(cs, verb)(**named(VERBS[verb], suffix), metadata={"old": "", "nope": "", "format": ""})
    assert [note for note in plan.notes if "set-metadata" in note] == [
        "--set-metadata nope= removes nothing: the output would not have this entry",
        "--set-metadata format= leaves format=pt in safetensors files: transformers loads no others",
    ]
