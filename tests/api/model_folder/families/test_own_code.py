"""Code that a configuration names (``auto_map``) is said to be missing, or to stay behind when a folder is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

OWN = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
WITHOUT = "not in the folder: transformers can load the model only if it does not need this code"


def folder(auto_map: Any, *code: str, of_tokenizer: Any = None) -> list[str]:
    Path("m").mkdir()
    save_file({"norm.weight": torch.ones(4)}, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    if of_tokenizer is not None:
        Path("m/tokenizer_config.json").write_text(json.dumps({"auto_map": of_tokenizer}))
    for name in code:
        Path("m", name).write_text("")
    return [one for one in cs.inspect("m").notes if "auto_map" in one]


def test_missing_code_is_named() -> None:
    said = f"auto_map of config.json refers to modeling_own.py, which is {WITHOUT}"
    assert folder(OWN, "configuration_own.py") == [said]
    assert said in cs.convert("m").notes


def test_all_of_it_is_named() -> None:
    assert folder(OWN, of_tokenizer={"AutoTokenizer": ["tokenization_own.Own", None]}) == [
        f"auto_map of config.json refers to configuration_own.py, modeling_own.py, which are {WITHOUT}",
        f"auto_map of tokenizer_config.json refers to tokenization_own.py, which is {WITHOUT}",
    ]


@pytest.mark.parametrize(
    "auto_map", [{"AutoModel": "org/repo--modeling_own.OwnModel"}, {}, None, "x.Y", {"AutoModel": 1}]
)
def test_code_of_another_repository_is_not(auto_map: Any) -> None:
    assert folder(auto_map) == []


def test_code_that_is_there_is_said_to_stay() -> None:
    assert folder(OWN, "configuration_own.py", "modeling_own.py") == []
    said = "files in the folder that are not copied: configuration_own.py, modeling_own.py"
    assert any(said in one for one in cs.convert("m").notes)
