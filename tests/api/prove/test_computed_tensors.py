"""A network fills tensors that its class computes and checkpoints of the class need not have; others are an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

transformers = pytest.importorskip("transformers", minversion="5")

SIZES = {
    "vocab_size": 40, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 32,
    "pad_token_id": 1, "decoder_start_token_id": 2, "eos_token_id": 2, "bos_token_id": 0,
}  # fmt: skip
POSITIONS = "model.encoder.embed_positions.weight"


def saved(kind: str, name: str) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES)
    model = transformers.MarianMTModel if kind == "Marian" else transformers.BartForConditionalGeneration
    model(config).save_pretrained(name)
    return Path(name)


def edit(folder: Path, drop: str = "", **more: torch.Tensor) -> None:
    state = load_file(folder / "model.safetensors")
    state = {key: one for key, one in state.items() if key != drop} | more
    save_file(state, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.long
def test_sinusoidal_positions_need_not_be_stored() -> None:
    path = saved("Marian", "m")
    assert POSITIONS not in cs.open_checkpoint(path)
    assert cs.prove(path, path).verdict == "SAME"
    assert any(key.endswith("fc1.inputs") for key in (step.key for step in cs.stats(path).steps))


@pytest.mark.long
def test_the_output_is_that_of_from_pretrained() -> None:
    """If one checkpoint stores the positions that the class computes, both networks compute the same."""
    path, other = saved("Marian", "m"), saved("Marian", "other")
    positions = transformers.MarianMTModel.from_pretrained(path).state_dict()[POSITIONS].clone()
    edit(other, **{POSITIONS: positions})
    assert cs.prove(path, other).verdict == "SAME"
    edit(other, **{POSITIONS: positions.bfloat16()})
    assert cs.prove(path, other).verdict == "EQUIVALENT"
    edit(other, **{POSITIONS: positions + 0.5})
    assert cs.prove(path, other).verdict == "DIFFERENT"


@pytest.mark.long
def test_computed_positions_are_rounded_to_the_dtype_of_the_configuration() -> None:
    path, other = saved("Marian", "m"), saved("Marian", "other")
    fields: dict[str, Any] = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**fields, "dtype": "bfloat16"}))
    assert cs.prove(path, other).verdict in ("SAME", "EQUIVALENT")


def test_a_buffer_that_older_checkpoints_lack_is_filled() -> None:
    path, older = saved("Bart", "b"), saved("Bart", "older")
    edit(older, drop="final_logits_bias")
    assert cs.prove(path, older).verdict == "SAME"


@pytest.mark.costly
@pytest.mark.parametrize(("kind", "key"), [("Marian", "model.encoder.layers.0.fc1.weight"), ("Bart", POSITIONS)])
def test_weights_that_are_missing_are_an_error(kind: str, key: str) -> None:
    path = saved(kind, "m")
    edit(path, drop=key)
    with pytest.raises(cs.PlanError, match="1 tensor of the destination is in no source") as caught:
        cs.prove(path, path)
    assert list(caught.value.details) == [key]


def test_a_tensor_that_is_drawn_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the class accepts checkpoints without it: outputs would depend on the seed."""
    monkeypatch.setattr(transformers.BartForConditionalGeneration, "_keys_to_ignore_on_load_missing", [r"fc\d\."])
    monkeypatch.setitem(SIZES, "vocab_size", 44)
    path = saved("Bart", "m")
    edit(path, drop="model.encoder.layers.0.fc1.bias")
    assert cs.prove(path, path).verdict == "SAME"
    edit(path, drop="model.encoder.layers.0.fc1.weight")
    with pytest.raises(cs.PlanError, match=r"1 tensor .* in no source: model\.encoder\.layers\.0\.fc1\.weight"):
        cs.prove(path, path)
