"""GPT-2 of Megatron-LM before Megatron-core: nested files of ranks, both spellings, and versions with other orders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ckptsurgeon as cs
from ckptsurgeon.errors import FormatError, PlanError

from ...helpers.converting import Tensors, assert_same, converted, converted_and_noted

RECORDED = Path(__file__).resolve().parents[3] / "fixtures" / "golden" / "layouts" / "gpt2"


def recorded(layout: str) -> Tensors:
    """The tensors of a recording: 2 heads."""
    return load_file(RECORDED / f"{layout}.safetensors")


def run(stack: str = "encoder", **beside: Any) -> None:
    """Write a folder of one rank as Megatron-LM does: the tensors of the stack have flat names in a dict of their own."""
    tensors = {key.removeprefix("language_model."): value for key, value in recorded("megatron-lm").items()}
    inside = {key.removeprefix("encoder."): one for key, one in tensors.items() if key.startswith("encoder.")}
    if stack == "transformer":
        inside = {key.replace("self_attention.", "attention."): one for key, one in inside.items()}
    names = ("word_embeddings", "position_embeddings")
    embedding = {name: {"weight": tensors[f"embedding.{name}.weight"]} for name in names}
    Path("run/mp_rank_00").mkdir(parents=True, exist_ok=True)
    state = {"iteration": 10, "model": {"language_model": {"embedding": embedding, stack: inside}}, **beside}
    torch.save(state, "run/mp_rank_00/model_optim_rng.pt")


@pytest.mark.parametrize("stack", ["encoder", "transformer"])
def test_a_folder_of_ranks_becomes_transformers(stack: str) -> None:
    run(stack, checkpoint_version=3.0)
    plan = cs.convert("run", layout="transformers", heads="2")
    cs.apply(plan, "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))
    assert any("have the order of checkpoint_version 2 or 3" in note for note in plan.notes)


@pytest.mark.parametrize("root", [None, "model"])
def test_the_file_of_the_only_rank_becomes_transformers(root: str | None) -> None:
    run(checkpoint_version=3.0)
    cs.apply(
        cs.convert("run/mp_rank_00/model_optim_rng.pt", layout="transformers", heads="2", root=root), "out.safetensors"
    )
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))


def test_a_part_of_the_file_can_still_be_chosen() -> None:
    run()
    found = cs.inspect("run/mp_rank_00/model_optim_rng.pt", root="model.language_model.encoder")
    assert "layers.0.mlp.dense_h_to_4h.weight" in found.tensors


@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_the_file_of_one_of_several_ranks_is_an_error(parallel: str) -> None:
    run(checkpoint_version=3.0, args=argparse.Namespace(**{f"{parallel}_model_parallel_size": 2}))
    with pytest.raises(FormatError, match="has only the parts of one rank of a run with") as caught:
        cs.inspect("run/mp_rank_00/model_optim_rng.pt")
    assert "Give the folder that has all folders mp_rank_" in str(caught.value)


@pytest.mark.parametrize(("stack", "version"), [("encoder", 0), ("encoder", 1.0), ("transformer", 0.0)])
def test_versions_with_another_order_of_rows_are_an_error(stack: str, version: float) -> None:
    run(stack, checkpoint_version=version)
    with pytest.raises(
        PlanError, match=f"its checkpoint_version is {version:g}, whose rows of queries, keys and values"
    ):
        cs.convert("run", layout="transformers", heads="2")


def test_the_first_names_without_a_version_are_an_error() -> None:
    """Megatron-LM takes such a file for version 0."""
    run("transformer")
    with pytest.raises(PlanError, match="it states no checkpoint_version"):
        cs.convert("run", layout="transformers", heads="2")


def test_it_has_megatron_core_s_values_under_other_names() -> None:
    made, notes = converted_and_noted(recorded("megatron-local"), "megatron-lm", heads="2")
    assert_same(made, recorded("megatron-lm"))
    assert "which a file must state beside the tensors" in notes
    assert_same(converted(recorded("megatron-lm"), "megatron-local", heads="2"), recorded("megatron-local"))


@pytest.mark.parametrize("version", ["1.0", "3.0", [1], None, float("nan"), True])
def test_a_version_that_is_no_number_from_two_is_an_error(version: object) -> None:
    """A version that cannot be read may be one with another order of rows."""
    run(checkpoint_version=version)
    with pytest.raises(PlanError, match="its checkpoint_version is") as caught:
        cs.convert("run", layout="transformers", heads="2")
    assert caught.value.hint == "Load and save it with Megatron-LM, which writes version 3."


def test_later_names_without_a_version_are_converted() -> None:
    run()
    cs.apply(cs.convert("run", layout="transformers", heads="2"), "out.safetensors")
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))
