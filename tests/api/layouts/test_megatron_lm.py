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


def run(stack: str = "encoder", whole: Tensors | None = None, rank: int = 0, **beside: Any) -> None:
    """Write the folder of a rank as Megatron-LM does: the tensors of the stack have flat names in a dict of their own."""
    whole = whole or recorded("megatron-lm")
    tensors = {key.removeprefix("language_model."): value.clone() for key, value in whole.items()}
    inside = {key.removeprefix("encoder."): one for key, one in tensors.items() if key.startswith("encoder.")}
    if stack == "transformer":
        inside = {key.replace("self_attention.", "attention."): one for key, one in inside.items()}
    names = ("word_embeddings", "position_embeddings")
    embedding = {name: {"weight": tensors[f"embedding.{name}.weight"]} for name in names}
    Path(f"run/mp_rank_{rank:02d}").mkdir(parents=True, exist_ok=True)
    state = {"iteration": 10, "model": {"language_model": {"embedding": embedding, stack: inside}}, **beside}
    torch.save(state, f"run/mp_rank_{rank:02d}/model_optim_rng.pt")


@pytest.mark.costly
@pytest.mark.parametrize("stack", ["encoder", "transformer"])
def test_a_folder_of_ranks_becomes_transformers(stack: str) -> None:
    run(stack, checkpoint_version=3.0)
    plan = cs.convert("run", layout="transformers", heads="2")
    cs.apply(plan, "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))
    assert any("have the order of checkpoint_version 2 or 3" in note for note in plan.notes)


@pytest.mark.costly
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
    assert "Give the folder that has the folders mp_rank_" in str(caught.value)


def in_order(tensors: Tensors, version: int) -> Tensors:
    """The tensors of 2 heads with rows in the order of an older version, as transformers' converter describes it."""
    made = {}
    for key, value in tensors.items():
        if "query_key_value" in key:
            heads = value.view(2, 3, -1, *value.shape[1:])
            value = (heads.transpose(0, 1) if version == 0 else heads.transpose(1, 2)).reshape(value.shape)
        made[key] = value
    return made


@pytest.mark.costly
@pytest.mark.parametrize("stack", ["encoder", "transformer"])
@pytest.mark.parametrize("version", [0, 1, 0.0, 1.0])
def test_older_versions_have_other_orders_of_rows(stack: str, version: float) -> None:
    tensors = in_order(recorded("megatron-lm"), int(version))
    run(stack, tensors, checkpoint_version=version)
    plan = cs.convert("run", layout="transformers")
    cs.apply(plan, "out.safetensors")
    assert cs.verify("out.safetensors").ok
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))
    assert any(f"read in the order of checkpoint_version {version:g}" in note for note in plan.notes)
    cs.apply(cs.convert("run", layout="megatron-local", heads="2"), "core.safetensors")
    assert_same(load_file("core.safetensors"), recorded("megatron-local"))


def run_two_ranks(stack: str, version: int, **beside: Any) -> None:
    """Write the folders of two ranks, each of which has one head, with its rows in the order of a version."""
    columns, rows = ("attention.dense.weight", "4h_to_h.weight"), ("query_key_value", "dense_h_to_4h", "word_embed")
    for rank in range(2):
        parts = {
            key: value.chunk(2, 1)[rank] if key.endswith(columns)
            else value.chunk(2)[rank] if any(one in key for one in rows) else value
            for key, value in recorded("megatron-lm").items()
        }  # fmt: skip
        for key, value in parts.items():
            if "query_key_value" in key and version == 1:
                parts[key] = value.view(3, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
        run(stack, parts, rank, args=argparse.Namespace(tensor_model_parallel_size=2), **beside)


@pytest.mark.costly
@pytest.mark.parametrize(
    ("stack", "version", "stated"),
    [("encoder", 1, 1.0), ("encoder", 0, 0), ("transformer", 0, 0.0), ("transformer", 0, None)],
)
def test_ranks_of_older_versions_are_joined(stack: str, version: int, stated: float | None) -> None:
    """One head has the same order of rows in versions 0 and 2: all queries, then all keys, then all values."""
    run_two_ranks(stack, version, **({} if stated is None else {"checkpoint_version": stated}))
    cs.apply(cs.convert("run", layout="transformers"), "out.safetensors")
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))


@pytest.mark.parametrize("stack", ["encoder", "transformer"])
@pytest.mark.parametrize("stated", [None, 0.5, 1.5, -1, "3.0", True, float("nan")])
def test_ranks_whose_version_is_not_known_are_an_error(stack: str, stated: object) -> None:
    if (stack, stated) != ("transformer", None):
        run_two_ranks(stack, 0, checkpoint_version=stated) if stated is not None else run_two_ranks(stack, 0)
        with pytest.raises(FormatError, match="is in a checkpoint of"):
            cs.inspect("run")


@pytest.mark.parametrize("version", [0.5, 1.5, -1])
def test_versions_that_never_were_are_an_error(version: float) -> None:
    run(checkpoint_version=version)
    with pytest.raises(
        PlanError, match=f"its checkpoint_version is {version:g}, whose rows of queries, keys and values"
    ):
        cs.convert("run", layout="transformers", heads="2")


def test_the_first_names_without_a_version_are_version_0_in_a_file_of_megatron() -> None:
    """Megatron-LM takes such a file for version 0; another file may have lost the version."""
    tensors = in_order(recorded("megatron-lm"), 0)
    run("transformer", tensors)
    cs.apply(cs.convert("run", layout="transformers"), "out.safetensors")
    assert_same(load_file("out.safetensors"), converted(recorded("nanogpt"), "transformers"))
    first = {key.replace("encoder", "transformer").replace("self_att", "att"): one for key, one in tensors.items()}
    with pytest.raises(PlanError, match="it states no checkpoint_version"):
        converted(first, "transformers", heads="2")


def test_it_has_megatron_core_s_values_under_other_names() -> None:
    made, notes = converted_and_noted(recorded("megatron-local"), "megatron-lm", heads="2")
    assert_same(made, recorded("megatron-lm"))
    assert "the file must state the version in addition to the tensors" in notes
    assert_same(converted(recorded("megatron-lm"), "megatron-local", heads="2"), recorded("megatron-local"))


@pytest.mark.parametrize("version", ["1.0", "3.0", [1], None, float("nan"), True, False])
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
