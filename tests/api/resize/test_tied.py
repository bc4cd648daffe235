"""Tensors that the network ties, but that are stored with other values each, are an error, whatever is resized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers", minversion="5")

UNEQUAL = r"embed_tokens.weight and lm_head.weight of .* are not equal, but the destination ties them"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
CHANGES: dict[str, dict[str, Any]] = {
    "channels": {"set": {"intermediate_size": 40}},
    "width": {"set": {"hidden_size": 24}, "new_width": "init"},
    "fewer layers": {"set": {"num_hidden_layers": 1}, "layers": "first"},
    "more layers": {"set": {"num_hidden_layers": 3}, "layers": "repeat"},
    "heads": {"set": {"num_attention_heads": 2}},
    "vocabulary": {"set": {"vocab_size": 40}},
    "experts": {"set": {"num_local_experts": 2}, "model_type": "mixtral"},
    "untied": {"set": {"tie_word_embeddings": False}},
}


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small Llama that ties its embeddings, and stores them once."""
    folder = tmp_path_factory.mktemp("tied") / "llama"
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=4, vocab_size=30, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def stored_twice(tied: Path, folder: Path, change: Callable[[torch.Tensor], torch.Tensor], old: str = "") -> Path:
    """Write the model with an output layer, made from the embeddings by ``change``; ``old`` is removed from its keys."""
    folder.mkdir()
    weights = load_file(tied / "model.safetensors")
    weights[OUTPUT] = change(weights[EMBEDDING].clone())
    save_file({key.removeprefix(old): value for key, value in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((tied / "config.json").read_bytes())
    return folder


def last_row_changed(value: torch.Tensor) -> torch.Tensor:
    value[-1, -1] += 1
    return value


@pytest.mark.costly
@pytest.mark.parametrize("case", CHANGES)
def test_tied_tensors_with_other_values_are_not_resized(case: str, tied: Path, tmp_path: Path) -> None:
    source = stored_twice(tied, tmp_path / "in", last_row_changed)
    with pytest.raises(cs.PlanError, match=UNEQUAL) as raised:
        cs.apply(cs.resize(source, **CHANGES[case]), tmp_path / "out")
    assert "stored-twice" not in str(raised.value)
    assert "ckpt filter --exclude" in raised.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.costly
@pytest.mark.parametrize("case", CHANGES)
def test_a_second_copy_changes_nothing(case: str, tied: Path, tmp_path: Path) -> None:
    source = stored_twice(tied, tmp_path / "in", lambda value: value)
    for name, path in (("one", tied), ("two", source)):
        cs.apply(cs.resize(path, **CHANGES[case]), tmp_path / name)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_values_that_an_operation_would_make_equal_are_compared_before_it(tied: Path, tmp_path: Path) -> None:
    source = stored_twice(tied, tmp_path / "in", last_row_changed)  # the changed row is cut
    with pytest.raises(cs.PlanError, match=UNEQUAL):
        cs.apply(cs.resize(source, set={"vocab_size": 20}), tmp_path / "out")


def test_keys_without_their_prefix_are_compared_too(tied: Path, tmp_path: Path) -> None:
    source = stored_twice(tied, tmp_path / "in", last_row_changed, old="model.")
    with pytest.raises(cs.PlanError, match=UNEQUAL):
        cs.apply(cs.resize(source, set={"intermediate_size": 40}), tmp_path / "out")


def test_other_dtypes_are_not_equal_which_headers_say(tied: Path, tmp_path: Path) -> None:
    source = stored_twice(tied, tmp_path / "in", torch.Tensor.double)
    with pytest.raises(cs.PlanError, match=UNEQUAL):
        cs.resize(source, set={"intermediate_size": 40})


def test_a_stored_plan_compares_them(tied: Path, tmp_path: Path, ckpt: Callable[..., Any]) -> None:
    source = stored_twice(tied, tmp_path / "in", last_row_changed)
    (tmp_path / "plan.json").write_text(ckpt("resize", source, "--set", "intermediate_size=40", "-n", "--json").out)
    done = ckpt("apply", tmp_path / "plan.json", "-o", tmp_path / "out")
    assert done.code == 4
    assert "are not equal, but the destination ties them" in done.err
