"""Integers beside floats that may be their scales: a note if a plan computes with them, and none for other integers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

CODES = {"l.q": torch.ones(16, 32, dtype=torch.int8), "l.s": torch.ones(16), "l.z": torch.zeros(16)}
PACKED = {"m.w4": torch.ones(16, 8, dtype=torch.int32), "m.s": torch.ones(16, 4), "m.z": torch.ones(16, 4)}
GROUPED = {"n.q": torch.ones(16, 32, dtype=torch.uint8), "n.s": torch.ones(16, 4)}
TRANSPOSED = {"n.q": torch.ones(4, 32, dtype=torch.int32), "n.s": torch.ones(2, 32)}
EXPERTS = {"e.q": torch.ones(3, 16, 32, dtype=torch.int8), "e.s": torch.ones(3, 16, 1)}
FLAT = {"fc1_q": torch.ones(16, 32, dtype=torch.int8), "fc1_s": torch.ones(16)}
WHOLE = {"l.q": torch.ones(16, 32, dtype=torch.int8), "l.s": torch.ones(())}
OTHERS = {"norm.weight": torch.ones(16)}


def saved(tensors: dict[str, torch.Tensor], name: str = "a.safetensors") -> str:
    save_file({**tensors, **OTHERS}, name)
    return name


def said(plan: cs.Plan) -> list[str]:
    return [note for note in plan.notes if "may be codes" in note]


@pytest.mark.parametrize("tensors", [CODES, PACKED, GROUPED, TRANSPOSED, EXPERTS, FLAT, WHOLE])
def test_a_cast_of_what_may_be_scales_is_said(tensors: dict[str, torch.Tensor]) -> None:
    (note,) = said(cs.convert(saved(tensors), dtype="bfloat16"))
    codes, scale, *_ = tensors
    assert note.startswith(f"{codes} (")
    assert f"which {scale} decodes: a cast from float32 to bfloat16 uses them as numbers" in note


@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
def test_a_copy_and_a_wider_dtype_change_no_value(dtype: str | None) -> None:
    assert said(cs.convert(saved(CODES), dtype=dtype)) == []


def test_several_layers_are_one_note() -> None:
    layers = {f"{key.replace('l.', f'layers.{at}.')}": one.clone() for at in range(3) for key, one in CODES.items()}
    (note,) = said(cs.convert(saved(layers), dtype="float16"))
    assert "likewise 2 other matrices" in note


VERBS: dict[str, Any] = {
    "merge": lambda a, b: cs.merge([a, b], method="linear", weights=[1, 1]),
    "average": lambda a, b: cs.average([a, b]),
    "transplant": lambda a, b: cs.transplant(a, b, dtype="bfloat16"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_computes_says_so(verb: str) -> None:
    other = {key: one.clone() + 1 for key, one in CODES.items()}
    notes = said(VERBS[verb](saved(CODES), saved(other, "b.safetensors")))
    assert notes
    assert all(note.startswith("l.q of ") for note in notes)


def test_a_resized_scale_is_said() -> None:
    save_file(
        {"l.q": torch.ones(20, 32, dtype=torch.int8), "l.s": torch.ones(20), "l.z": torch.zeros(20)}, "b.safetensors"
    )
    assert said(cs.transplant(saved(CODES), "b.safetensors", on_mismatch="pad", exclude="norm.*"))


HEALTHY: dict[str, dict[str, torch.Tensor]] = {
    "position ids": {"embeddings.position_ids": torch.arange(64)[None], "embeddings.word_embeddings.weight": torch.ones(64, 8)},
    "batch counter": {"bn.num_batches_tracked": torch.tensor(3), "bn.running_mean": torch.ones(8), "bn.weight": torch.ones(8)},
    "token types": {"embeddings.token_type_ids": torch.zeros(4, 64, dtype=torch.int32), "embeddings.gain": torch.ones(64)},
    "relative positions": {
        "attn.relative_position_index": torch.zeros(49, 49, dtype=torch.int64),
        "attn.relative_position_bias_table": torch.ones(169, 4), "attn.logit_scale": torch.ones(4, 1, 1),
    },
    "relative positions of 32 bits": {
        "attn.rel_index": torch.zeros(49, 49, dtype=torch.int32), "attn.gamma_1": torch.ones(49), "attn.tau": torch.ones(()),
    },
    "a causal mask": {"attn.tril": torch.ones(32, 32, dtype=torch.uint8), "attn.decay": torch.ones(32), "attn.t": torch.ones(())},
    "the old mask of GPT-2": {"attn.bias": torch.ones(1, 1, 32, 32, dtype=torch.uint8), "attn.masked_bias": torch.tensor(-1e4)},
    "a mask of weights": {
        "fc.weight": torch.ones(16, 32), "fc.bias": torch.ones(16), "fc.binary": torch.ones(16, 32, dtype=torch.uint8),
        "fc.gain": torch.ones(16),
    },
    "a mask of a vocabulary": {"head.allowed": torch.ones(64, dtype=torch.uint8), "head.weight": torch.ones(64, 8)},
    "pieces of a tokeniser": {"tok.piece_bytes": torch.ones(64, 16, dtype=torch.uint8), "tok.scores": torch.ones(64)},
    "a bias alone": {"fc.table": torch.ones(16, 32, dtype=torch.int8), "fc.bias": torch.ones(16)},
    "ids of experts": {"gate.tid2eid": torch.zeros(64, 4, dtype=torch.int64), "gate.weight": torch.ones(8, 16)},
    "booleans": {"l.keep": torch.ones(16, 32, dtype=torch.bool), "l.s": torch.ones(16)},
}  # fmt: skip


@pytest.mark.parametrize("name", HEALTHY)
def test_other_integers_get_no_note(name: str) -> None:
    path, other = saved(HEALTHY[name]), saved({key: one.clone() for key, one in HEALTHY[name].items()}, "b.safetensors")
    assert said(cs.convert(path, dtype="bfloat16")) == []
    assert said(cs.average([path, other])) == []
