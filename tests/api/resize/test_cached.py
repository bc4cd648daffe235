"""What resize learns by building networks is cached: the second plan is the same, and builds nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.destinations import transformers as kind_of_destination
from ckptsurgeon.destinations.hf import cached_build, described_fields, resizable
from ckptsurgeon.destinations.torch_module import meta
from ckptsurgeon.storage import cached_documents

from ...helpers.nursery import run_apart, with_torch
from .test_another_type import Saved
from .test_resize import source

__all__ = ["source"]

VERSIONS = {"torch": "2", "transformers": "5"}
WAYS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"num_key_value_heads": 1}, {}),
    ("llama", {"num_hidden_layers": 4}, {"layers": "identity"}),
    ("llama", {"hidden_size": 96}, {}),
    ("llama", {"num_local_experts": 4, "num_experts_per_tok": 2}, {"model_type": "mixtral"}),
    ("gemma3_text", {"hidden_size": 128, "num_hidden_layers": 1, "tie_word_embeddings": False}, {"layers": "first"}),
    ("t5", {"hidden_size": 96, "num_heads": 8}, {}),
    ("phi3", {"num_attention_heads": 6, "hidden_size": 96}, {}),
    ("gpt_oss", {"num_local_experts": 8, "num_experts_per_tok": 4}, {}),
    ("bloom", {"hidden_size": 128, "n_head": 8, "tie_word_embeddings": False}, {}),
    ("clip", {"text_config.hidden_size": 128, "text_config.num_attention_heads": 8}, {}),
    ("qwen2", {"vocab_size": 120}, {}),
    ("qwen2", {"num_attention_heads": 8}, {}),
    ("mixtral", {"num_local_experts": 2}, {"merge_experts": "similar"}),
    ("falcon", {"num_kv_heads": 1}, {}),
]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a cache folder of this test; versions are as in a process that has not imported transformers."""
    monkeypatch.setenv("CKPTSURGEON_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CKPTSURGEON_NO_BUILDS", raising=False)
    monkeypatch.setattr(resizable, "versions", lambda: VERSIONS)


@pytest.fixture
def never_built(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that makes every later build, and every later reading of fields by transformers, an error."""

    def refuses(*args: object) -> None:
        raise AssertionError("built again")

    def refuse() -> None:
        monkeypatch.setattr(kind_of_destination, "_built", refuses)
        monkeypatch.setattr(meta, "build_on_meta", refuses)
        monkeypatch.setattr(described_fields, "_described", refuses)
        monkeypatch.setattr(described_fields, "_class_of", refuses)

    return refuse


def entries() -> list[Path]:
    return sorted(Path("cache/builds").glob("*.json"))


def plan_text(folder: Path, fields: dict[str, Any], more: dict[str, Any]) -> str:
    return json.dumps(cs.resize(folder, set=fields, **more).to_json())


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "fields", "more"), WAYS)
def test_the_second_plan_is_the_same_and_builds_nothing(
    kind: str,
    fields: dict[str, Any],
    more: dict[str, Any],
    source: Saved,
    monkeypatch: pytest.MonkeyPatch,
    never_built: Callable[[], None],
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("CKPTSURGEON_NO_BUILDS", "1")
        without = plan_text(source(kind), fields, more)
        assert not entries()
    assert plan_text(source(kind), fields, more) == without
    assert entries()
    never_built()
    assert plan_text(source(kind), fields, more) == without


@pytest.mark.long
def test_other_fields_and_versions_are_other_entries(source: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    cs.resize(source("llama"), set={"intermediate_size": 80})
    number = len(entries())
    cs.resize(source("llama"), set={"intermediate_size": 72})
    assert number < len(entries()) < 2 * number  # the network of the source is known already
    number = len(entries())
    monkeypatch.setattr(resizable, "versions", lambda: {**VERSIONS, "torch": "3"})
    cs.resize(source("llama"), set={"intermediate_size": 72})
    assert len(entries()) > number
    number = len(entries())
    monkeypatch.setattr(resizable, "versions", dict)  # a process that has imported transformers
    monkeypatch.setattr(cached_build, "versions", dict)
    cs.resize(source("llama"), set={"intermediate_size": 64})
    assert len(entries()) == number


@pytest.mark.long
def test_entries_of_another_form_are_made_again(source: Saved) -> None:
    asked: dict[str, Any] = {"hidden_size": 96}
    wanted = plan_text(source("llama"), asked, {})
    for path in entries():
        assert cached_documents.keep_document(path.stem, {"kinds": [], "x": [1]})
    assert plan_text(source("llama"), asked, {}) == wanted
    assert not any(json.loads(path.read_text())["document"] == {"kinds": [], "x": [1]} for path in entries())


def test_no_text_of_the_user_is_kept(source: Saved, tmp_path: Path) -> None:
    """Neither one of the file, nor one that the library moves to another field, nor one that a module has."""
    folder = tmp_path / "private folder"
    folder.mkdir()
    fields = json.loads((source("bert") / "config.json").read_text())
    labels = {"0": "my label", "1": "yours"}
    fields |= {
        "_name_or_path": "/home/of/mine",
        "secret_of": "abc-123",
        "id2label": labels,
        "hidden_act": "gelu_python",
    }
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "model.safetensors").write_bytes((source("bert") / "model.safetensors").read_bytes())
    cs.resize(folder, set={"num_hidden_layers": 3}, layers="repeat")
    kept = [path.read_text() for path in entries()]
    assert any('"fields"' in text for text in kept)
    secret = ("home", "mine", "secret", "abc-123", "my label", "yours", "private", "gelu_python")
    assert not [one for one in secret if any(one in text for text in kept)]


CODE = """
import sys
sys.path = [path for path in sys.path if path]
from ckptsurgeon.cli import main
before = set(sys.modules)
code = main(sys.argv[1:])
print([name for name in ("torch", "transformers") if name in sys.modules.keys() - before], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.long
@pytest.mark.parametrize("options", [["--set", "hidden_size=96"], ["--as", "mixtral", "--set", "num_local_experts=4"]])
def test_the_second_command_imports_neither_torch_nor_transformers(options: list[str], source: Saved) -> None:
    words = ["resize", str(source("llama")), *options, "-n", "--json"]
    if "--as" in options:
        first, imported = run_apart(CODE, *words, nursery=with_torch()), ["transformers"]  # torch is there already
    else:
        command, imported = [sys.executable, "-P", "-c", CODE, *words], ["torch", "transformers"]
        first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert first.stderr.splitlines()[-1] == str(imported)
    again = run_apart(CODE, *words)
    assert (again.stdout, again.stderr.splitlines()[-1]) == (first.stdout, "[]")
