"""Outputs whose names, metadata and format do not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from .test_layouts import model, read

WILL_NOT_LOAD = "llama.cpp will not load the output, because its tensors have the names of transformers"


def metadata(path: str) -> dict[str, str]:
    with cs.open_checkpoint(path) as found:
        return dict(found.metadata)


def said(notes: Any, text: str) -> bool:
    return any(text in note for note in notes)


@pytest.mark.long
def test_the_way_there_and_back_and_there_again(ckpt: Any) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.convert("x.gguf", layout="transformers", dtype="bfloat16"), "back")
    assert "general.architecture" not in metadata("back")
    shutil.copy("model/config.json", "back/config.json")
    assert ckpt("convert", "back", "-o", "again.gguf").code == 0
    one, two = read("x.gguf"), read("again.gguf")
    assert set(one) == set(two)
    assert all(torch.equal(one[key], value) for key, value in two.items())
    assert metadata("again.gguf")["general.architecture"] == "llama"


def test_keys_with_the_prefix_of_a_wrapper_are_told_how_to_lose_it() -> None:
    save_file({f"module.{key}": one for key, one in model("llama").items()}, "model/model.safetensors")
    with pytest.raises(cs.PlanError, match="has no tensor of the query projections") as caught:
        cs.convert("model", layout="gguf")
    assert str(caught.value.hint) == "Use --unwrap: the keys begin with a wrapper that training added."
    cs.apply(cs.convert("model", layout="gguf", unwrap=True), "x.gguf")
    assert "blk.0.attn_q.weight" in read("x.gguf")


def test_files_of_transformers_that_name_an_architecture_get_its_layout(ckpt: Any) -> None:
    tensors = model("llama")
    save_file(tensors, "model/model.safetensors", {"general.architecture": "llama"})
    assert ckpt("convert", "model", "-o", "x.gguf").code == 0
    assert "blk.0.attn_q.weight" in read("x.gguf")


@pytest.mark.parametrize("plan", ["convert", "average", "transplant"])
def test_names_of_transformers_under_an_architecture_are_refused(plan: str) -> None:
    tensors = model("llama")
    save_file(tensors, "model/model.safetensors", {"general.architecture": "llama"})
    shutil.copytree("model", "other")
    sources: Any = {"convert": ("model",), "average": (["model", "other"],), "transplant": ("model", "other")}[plan]
    with pytest.raises(
        cs.PlanError, match="has llama.cpp's architecture llama, but the tensors have the names"
    ) as told:
        cs.apply(getattr(cs, plan)(*sources), "x.gguf")
    assert "ckpt convert X --layout gguf -o y.gguf" in told.value.hint
    assert not Path("x.gguf").exists()


def test_the_architecture_that_is_removed_is_no_error() -> None:
    tensors = model("llama")
    save_file(tensors, "model/model.safetensors", {"general.architecture": "llama"})
    receipt = cs.apply(cs.convert("model", metadata={"general.architecture": ""}), "x.gguf")
    assert said(receipt.notes, WILL_NOT_LOAD)


@pytest.mark.costly
@pytest.mark.parametrize("plan", ["convert", "average"])
def test_a_model_that_llama_cpp_knows_in_other_names_is_said(plan: str) -> None:
    model("llama")
    shutil.copytree("model", "other")
    receipt = cs.apply(cs.convert("model") if plan == "convert" else cs.average(["model", "other"]), "x.gguf")
    assert said(receipt.notes, WILL_NOT_LOAD)


def test_a_change_of_layout_to_transformers_in_gguf_loses_the_architecture() -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.convert("x.gguf", layout="transformers"), "y.gguf")
    assert "general.architecture" not in metadata("y.gguf")
    assert "llama.block_count" in metadata("y.gguf")


def test_the_layout_of_llama_cpp_in_another_format_is_said() -> None:
    model("llama")
    plan = cs.convert("model", layout="gguf")
    Path("plan.json").write_text(json.dumps(plan.to_json()))
    receipt = cs.apply("plan.json", "x.safetensors")
    assert said(receipt.notes, "the tensors have the names and layout of llama.cpp, which reads only GGUF")
    assert "blk.0.attn_q.weight" in load_file("x.safetensors")


@pytest.mark.long
def test_blocks_that_are_left_out_are_said_when_it_is_written_and_when_it_is_read(ckpt: Any) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    blocks = {key.split(".")[1] for key in read("x.gguf") if key.startswith("blk.")}
    number, last = len(blocks), len(blocks) - 1
    assert not said(cs.inspect("x.gguf").notes, "block_count")
    end = f"llama.block_count is {number}, but block {last} has no tensors: llama.cpp cannot load the file "
    end += f"(--set-metadata llama.block_count={last})"
    assert end in " ".join(ckpt("filter", "x.gguf", "--exclude", f"blk.{last}", "-o", "end.gguf").err.split())
    assert end in cs.inspect("end.gguf").notes
    cs.apply(cs.filter("x.gguf", exclude=[f"blk.{last}"], metadata={"llama.block_count": str(last)}), "set.gguf")
    assert not said(cs.inspect("set.gguf").notes, "block_count")
    cs.apply(cs.filter("x.gguf", exclude=["blk.0"]), "first.gguf")
    first = f"llama.block_count is {number}, but block 0 has no tensors: llama.cpp cannot load the file"
    assert first in cs.inspect("first.gguf").notes
    cs.apply(cs.convert("x.gguf", metadata={"llama.block_count": "1"}), "few.gguf")
    few = f"llama.block_count is 1, but the blocks go up to {last}: llama.cpp cannot load the file"
    assert said(cs.inspect("few.gguf").notes, few)
