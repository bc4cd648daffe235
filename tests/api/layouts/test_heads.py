"""Numbers of heads that the user gives: compared with a configuration, and shown by the size of a head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.errors import PlanError

from ...helpers.converting import converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts"


def laid(network: str, layout: str, **fields: int) -> None:
    """A recording beside its configuration, with other fields."""
    shutil.copy(RECORDED / network / f"{layout}.safetensors", "model.safetensors")
    config = json.loads((RECORDED / network / "config.json").read_text())
    Path("config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize("heads", ["12/4", "3/1", "6", "2/6"])
def test_other_heads_than_those_of_the_configuration_are_an_error(heads: str) -> None:
    laid("llama", "transformers")
    with pytest.raises(PlanError, match=f"heads=.{heads}.: config.json of .* has 6 heads of queries and 2 of keys"):
        cs.convert("model.safetensors", layout="meta", heads=heads)
    notes = cs.convert("model.safetensors", layout="meta", heads="6/2").notes
    assert any("head size 4" in note for note in notes)


def test_other_heads_than_those_of_params_json_are_an_error() -> None:
    shutil.copy(RECORDED / "llama" / "meta.safetensors", "model.safetensors")
    Path("params.json").write_text(json.dumps({"dim": 24, "n_heads": 6, "n_kv_heads": 2}))
    with pytest.raises(PlanError, match=r"heads=.12/4.: params\.json of .* has 6 heads") as caught:
        cs.convert("model.safetensors", layout="transformers", heads="12/4")
    assert "correct params.json if it is of another model" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("network", "layout", "target", "heads", "size"),
    [
        ("llama", "transformers", "meta", "6/2", 4),
        ("llama", "transformers", "meta", "3/1", 8),
        ("llama", "meta", "transformers", "6/2", 4),
        ("llama", "litgpt", "transformers", "6/2", 4),
        ("llama", "megatron-dist", "transformers", "6/2", 4),
        ("gpt2", "nanogpt", "megatron", "4", 4),
        ("gpt2", "nanogpt", "megatron", "2", 8),
        ("gpt2", "nanogpt", "megatron", "1", 16),
        ("gpt-neox", "transformers", "litgpt", "3", 8),
    ],
)
def test_a_note_names_the_size_of_the_heads_that_were_given(
    network: str, layout: str, target: str, heads: str, size: int
) -> None:
    _, notes = converted_and_noted(load_file(RECORDED / network / f"{layout}.safetensors"), target, heads=heads)
    queries, _, keys = heads.partition("/")
    noun = "head" if queries == "1" else "heads"
    said = f"head size {size}: {queries} {noun} of queries and {keys or queries} of keys and values, as --heads says"
    assert said in notes


@pytest.mark.parametrize(
    ("network", "layout", "target"), [("gpt2", "nanogpt", "megatron"), ("gpt-neox", "transformers", "litgpt")]
)
def test_fewer_heads_of_keys_than_of_queries_are_an_error_for_a_network_that_has_as_many(
    network: str, layout: str, target: str
) -> None:
    tensors = load_file(RECORDED / network / f"{layout}.safetensors")
    with pytest.raises(PlanError, match="2 heads of queries and 1 of keys and values do not fit this network"):
        converted_and_noted(tensors, target, heads="2/1")


def test_a_note_names_the_size_that_norms_of_heads_show() -> None:
    tensors = load_file(RECORDED / "llama.qwen3" / "megatron.safetensors")
    _, notes = converted_and_noted(tensors, "transformers")
    assert "head size 4: 8 heads of queries and 2 of keys and values, as the tensors show" in notes


def test_there_is_no_note_if_the_configuration_states_the_heads_or_no_change_needs_them() -> None:
    laid("llama", "transformers")
    assert not any("head size" in note for note in cs.convert("model.safetensors", layout="meta").notes)
    _, notes = converted_and_noted(load_file(RECORDED / "gpt2" / "nanogpt.safetensors"), "transformers", heads="2")
    assert "head size" not in notes
