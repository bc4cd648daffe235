"""``--new-tokens omp`` of a transplant makes the rows that resize makes, which are those of mergekit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from fixtures.mergekit_cases import GOLDEN

from ..resize.test_donor import EMBEDDINGS, english, german, near

__all__ = ["english", "german"]

transformers = pytest.importorskip("transformers", minversion="5")

HOME = GOLDEN / "tokensurgeon"
LIST = "tokenizer.json"


def test_rows_are_those_of_mergekit(tmp_path: Path) -> None:
    fields = json.loads((HOME / "base/config.json").read_text())
    fields["vocab_size"] = json.loads((HOME / "donor/config.json").read_text())["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    lists = (HOME / "base" / LIST, HOME / "donor" / LIST)
    plan = cs.transplant(HOME / "base", tmp_path / "config.json", vocab=lists, new_tokens="omp", omp_k=6)
    assert plan.sources[-1].role == "donor"
    cs.apply(plan, tmp_path / "out.safetensors")
    ours, theirs = load_file(tmp_path / "out.safetensors"), load_file(HOME / "expected.safetensors")
    for key in EMBEDDINGS:
        assert near(ours[key], theirs[key])
        assert ours[key].abs().sum(1).min() > 0
    checked = cs.verify(tmp_path / "out.safetensors")
    assert checked.ok
    assert not checked.not_compared


@pytest.fixture
def resized(english: Callable[[str], Path], german: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of a Llama, and of the same Llama with the German tokens, made by resize."""
    source = english("llama")
    cs.apply(cs.resize(source, tokenizer=german, new_tokens="omp", omp_k=9), tmp_path / "resized")
    return source, tmp_path / "resized"


@pytest.mark.long
def test_a_configuration_gets_the_rows_of_resize(
    resized: tuple[Path, Path], german: Path, tmp_path: Path, ckpt: Callable[..., Any]
) -> None:
    source, wanted = resized
    done = ckpt(
        "transplant", source, wanted / "config.json", "--vocab", f"{source / LIST}:{german / LIST}",
        "--new-tokens", "omp", "--omp-k", "9", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "at most 9 rows of tokens that the model shares with" in " ".join(done.err.split())
    assert cs.diff(tmp_path / "out", wanted, values=True).same


def test_the_folder_of_a_model_gets_the_rows_too(resized: tuple[Path, Path], german: Path, tmp_path: Path) -> None:
    """A folder is a checkpoint, but its config.json says which tensor is the embedding, and which the output layer."""
    source, wanted = resized
    cs.apply(cs.resize(source, tokenizer=german), tmp_path / "other")
    lists = (source / LIST, tmp_path / "other" / LIST)
    plan = cs.transplant(source, tmp_path / "other", vocab=lists, new_tokens="omp", omp_k=9, donor=german)
    cs.apply(plan, tmp_path / "out")
    assert cs.diff(tmp_path / "out", wanted, values=True).same
    assert cs.verify(tmp_path / "out").ok


@pytest.mark.long
def test_a_saved_plan_and_a_recipe_make_the_same_rows(resized: tuple[Path, Path], german: Path, tmp_path: Path) -> None:
    source, wanted = resized
    lists = (source / LIST, german / LIST)
    plan = cs.transplant(source, wanted / "config.json", vocab=lists, new_tokens="omp", omp_k=9)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    cs.apply(cs.load_plan(tmp_path / "plan.json"), tmp_path / "first.safetensors")
    carried = json.loads(cs.open_checkpoint(tmp_path / "first.safetensors").recipe or "")["arguments"]
    assert (carried["new_tokens"], carried["omp_k"]) == ("omp", 9)
    shutil.copytree(german, tmp_path / "donor")
    recipe = {
        "verb": "transplant", **carried, "source": str(source), "destination": str(wanted / "config.json"),
        "vocab": list(map(str, lists)), "donor": "donor", "output": str(tmp_path / "second.safetensors"),
    }  # fmt: skip
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(recipe))
    cs.apply(tmp_path / "again.yaml")
    assert cs.diff(tmp_path / "first.safetensors", wanted, values=True).same
    assert cs.diff(tmp_path / "second.safetensors", wanted, values=True).same


# What cannot be done.


@pytest.mark.long
def test_a_donor_without_weights_is_an_error(resized: tuple[Path, Path], german: Path, tmp_path: Path) -> None:
    source, wanted = resized
    (tmp_path / "bare").mkdir()
    for name in ("config.json", LIST):
        shutil.copy(german / name, tmp_path / "bare" / name)
    lists = (source / LIST, tmp_path / "bare" / LIST)
    with pytest.raises(cs.ConfigError, match=r"the donor .*bare has no weights") as caught:
        cs.transplant(source, wanted / "config.json", vocab=lists, new_tokens="omp")
    assert "donor DIR" in caught.value.hint


def test_a_destination_of_an_unknown_network_is_an_error(
    resized: tuple[Path, Path], german: Path, tmp_path: Path
) -> None:
    source, wanted = resized
    shutil.copy(wanted / "model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(cs.PlanError, match=r"cannot make new rows of (lm_head|model\.embed_tokens)\.weight"):
        cs.transplant(
            source, tmp_path / "alone.safetensors", vocab=(source / LIST, german / LIST), new_tokens="omp", omp_k=9
        )


def test_a_transplant_that_maps_no_row_is_an_error(german: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3, 4)}, tmp_path / "a.safetensors")
    with pytest.raises(cs.ConfigError, match="no tensor has rows that are mapped by token"):
        cs.transplant(german, german / "config.json", vocab=(german / LIST, german / LIST), new_tokens="omp")
    with pytest.raises(cs.ConfigError, match="donor is only for"):
        cs.transplant(tmp_path / "a.safetensors", tmp_path / "a.safetensors", donor=german)
