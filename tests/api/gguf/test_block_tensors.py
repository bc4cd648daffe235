"""Tensors that a GGUF file lacks: inspecting, copying and writing it note them; whole models get no note."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs
from ckptsurgeon.api.gguf.block_tensors import is_whole_model, lacking_notes
from ckptsurgeon.planning.llama_cpp.names import ARCHITECTURES
from ckptsurgeon.util.notes import is_serious

from ...helpers.deepseek_models import KINDS as DEEPSEEK
from ...helpers.deepseek_models import saved as saved_deepseek
from . import test_experts, test_gpt_oss, test_more_models
from .test_layouts import MODELS, model

DENSE = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
OUTSIDE = ["token_embd.weight", "output_norm.weight"]
CANNOT = "llama.cpp cannot load the file"


def said(notes: Any) -> list[str]:
    return [note for note in notes if re.search(r"\blacks? ", note)]


@pytest.mark.costly
@pytest.mark.parametrize(
    ("gone", "lost"),
    [
        ("blk.1.attn_q", "blk.1.attn_q.weight"),
        ("blk.1.ffn_up", "blk.1.ffn_up.weight"),
        ("blk.*.ffn_norm", "blk.0.ffn_norm.weight, blk.1.ffn_norm.weight"),
        ("output_norm", "output_norm.weight"),
        ("token_embd", "token_embd.weight"),
    ],
)
def test_a_tensor_that_the_architecture_needs_is_said(gone: str, lost: str, ckpt: Any) -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    note = f"the file lacks {lost}, which llama.cpp needs for the architecture llama: {CANNOT}"
    assert note in " ".join(ckpt("filter", "x.gguf", "--exclude", gone, "-o", "y.gguf").err.split())
    for notes in (cs.inspect("y.gguf").notes, cs.convert("y.gguf", dtype="bf16").notes):
        assert said(notes) == [note]
    assert [note] == [one.what for row in cs.check("y.gguf").rows for one in row.found]
    assert not said(cs.inspect("x.gguf").notes)


def test_a_way_back_to_transformers_says_it_too() -> None:
    model("llama")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.filter("x.gguf", exclude="output_norm"), "y.gguf")
    assert said(cs.convert("y.gguf", layout="transformers").notes)


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "is_said"), [("llama", True), ("gemma2", False)])
def test_a_way_back_without_an_output_layer_says_that_it_is_tied(kind: str, is_said: bool) -> None:
    """Nothing in the file shows whether the model was tied or has lost its output layer."""
    model(kind)
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.filter("x.gguf", exclude="output.weight") if is_said else cs.convert("x.gguf"), "y.gguf")
    plan = cs.convert("y.gguf", layout="transformers")
    found = [note for note in plan.notes if "there is no output.weight, so llama.cpp takes token_embd" in note]
    assert [is_serious(note) for note in found] == [True] * is_said
    plan = cs.convert("x.gguf", layout="transformers")
    assert not any("there is no output.weight" in note for note in plan.notes)


@pytest.mark.costly
@pytest.mark.parametrize("gone", ["blk.1.attn_q.bias", "blk.0.attn_k.bias"])
def test_a_bias_that_other_blocks_have_is_said(gone: str) -> None:
    model("qwen2")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.filter("x.gguf", exclude=gone), "y.gguf")
    block, _, rest = gone.partition(".attn")
    assert said(cs.inspect("y.gguf").notes) == [f"{block} lacks attn{rest}, which 1 of 2 blocks of this kind have"]


@pytest.mark.costly
@pytest.mark.parametrize("gguf_type", [None, "q8_0"])
@pytest.mark.parametrize("kind", [*MODELS, *test_more_models.KINDS, *test_experts.MODELS, *DEEPSEEK, "gpt_oss"])
def test_nothing_is_said_of_a_whole_model(kind: str, gguf_type: str | None) -> None:
    if kind in MODELS:
        model(kind)
    elif kind in test_experts.MODELS:
        test_experts.written(kind)
    elif kind == "gpt_oss":
        test_gpt_oss.saved()
    else:
        saved_deepseek(kind) if kind in DEEPSEEK else test_more_models.saved(kind)
    receipt = cs.apply(cs.convert("model", layout="gguf", gguf_type=gguf_type), "x.gguf")
    assert Path("x.gguf").exists()
    assert not said((*receipt.notes, *cs.inspect("x.gguf").notes))


def test_experts_that_one_block_lacks_are_said() -> None:
    test_experts.written("mixtral")
    cs.apply(cs.convert("model", layout="gguf"), "x.gguf")
    cs.apply(cs.filter("x.gguf", exclude=["blk.1.ffn_up_exps"]), "y.gguf")
    assert said(cs.inspect("y.gguf").notes) == ["blk.1 lacks ffn_up_exps.weight, which 1 of 2 blocks of this kind have"]
    cs.apply(cs.filter("x.gguf", exclude=["blk.1.ffn_*_exps", "blk.1.ffn_gate_inp"]), "z.gguf")
    assert said(cs.inspect("z.gguf").notes)[0].startswith("the file lacks blk.1.ffn_gate.weight")


def blocks(number: int, *names: str, at: tuple[int, ...] = ()) -> list[str]:
    return [f"blk.{place}.{name}.weight" for place in (at or range(number)) for name in names]


def notes_on(keys: list[str], **entries: str) -> list[str]:
    metadata = {key.replace("__", "."): value for key, value in entries.items()}
    return [*lacking_notes(keys, metadata)] if is_whole_model(keys, metadata) else []


def test_one_block_of_an_unknown_architecture_that_lacks_a_tensor_is_said() -> None:
    keys = blocks(6, *DENSE)
    assert not notes_on(keys, general__architecture="other")
    keys.remove("blk.2.attn_k.weight")
    note = "blk.2 lacks attn_k.weight, which 5 of 6 blocks of this kind have"
    assert notes_on(keys, general__architecture="other") == [note]


@pytest.mark.parametrize(
    ("keys", "entries"),
    [
        ([one for one in blocks(6, *DENSE) if one != "blk.0.attn_norm.weight"], {}),  # ModernBERT's first block
        ([one for one in blocks(6, *DENSE) if not one.startswith(("blk.2.attn_k", "blk.4.attn_k"))], {}),
        ([one for one in blocks(6, *DENSE) if not one.startswith("blk.2.attn")], {}),
        ([*blocks(6, "attn_norm", "ffn_up"), *blocks(0, "ssm_in", at=(0, 1, 2, 4, 5)), "blk.3.attn_q.weight"], {}),
        (
            [one for one in blocks(6, *DENSE) if one != "blk.2.attn_q.weight"],
            {"other.attention.head_count": ""},  # a list: the number of heads differs between blocks
        ),
    ],
)
def test_blocks_that_differ_on_purpose_get_no_note(keys: list[str], entries: dict[str, str]) -> None:
    assert not notes_on([*OUTSIDE, *keys], general__architecture="other", **entries)


def test_parts_of_a_split_file_and_adapters_get_no_note() -> None:
    keys = ["token_embd.weight", *blocks(2, *DENSE, at=(4, 5)), "blk.6.attn_q.weight"]
    assert notes_on(keys, general__architecture="llama")
    assert not notes_on(keys, general__architecture="llama", split__count="3")
    assert not notes_on(keys, general__architecture="llama", general__type="adapter")
    assert not notes_on(["blk.0.attn_q.weight.lora_a"], general__architecture="llama")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_fused_projection_takes_the_place_of_its_parts(architecture: str) -> None:
    parts = [one for one in DENSE if one not in ("attn_q", "attn_k", "attn_v")]
    more = ("attn_qkv", "post_attention_norm", "post_ffw_norm", "attn_kv_a_mqa", "ffn_down_exps", "ffn_gate_inp")
    assert not notes_on([*OUTSIDE, *blocks(3, *parts, *more)], general__architecture=architecture)


def test_a_vocabulary_without_tensors_gets_no_note() -> None:
    assert not notes_on([], general__architecture="llama")
