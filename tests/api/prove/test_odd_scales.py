"""Verbs that run or describe a quantised network say the same of its scales and zero points as ``inspect`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.inspect import initial_config
from ckptsurgeon.tensors.odd_scales.shifted import ONE_STEP

from ...helpers.coded_matrices import SETTINGS, gptq, mlx
from ...helpers.coded_models import coded_tensors, write_model
from ...helpers.transformers_models import model_of

pytest.importorskip("transformers", minversion="5")

VERBS: dict[str, Callable[[Path], Sequence[str]]] = {
    "prove": lambda path: cs.prove(path, path).notes,
    "stats": lambda path: cs.stats(path).notes,
    "init": lambda path: initial_config(path)[1],
}


def model(off: int) -> Path:
    """A folder of GPTQ; ``off`` is added to the zero points of one layer."""
    state = coded_tensors(gptq, layers=5)
    for key, one in state.items():
        if key.startswith("model.layers.3.") and key.endswith(".qzeros"):
            state[key] = (one.long() + 0x11111111 * off).to(torch.int32)
    return write_model(Path("m"), state, SETTINGS["gptq"])


def noted(off: int) -> list[str]:
    """The verbs that say that a layer's matrices are shifted by one step."""
    path = model(off)
    return [verb for verb, notes in VERBS.items() if sum(ONE_STEP in note for note in notes(path)) == 1]


@pytest.mark.long
def test_zero_points_of_another_format_are_noted_once() -> None:
    assert noted(1) == list(VERBS)


@pytest.mark.long
def test_right_zero_points_are_not_noted() -> None:
    assert noted(0) == []


@pytest.mark.long
def test_a_note_on_a_model_is_given_once_if_it_is_compared_with_itself() -> None:
    model(1)
    for values in (False, True):
        assert len([note for note in cs.diff("m", "m", values=values).notes if ONE_STEP in note]) == 1
    Path("m").rename("other")
    model(1)
    assert len([note for note in cs.diff("m", "other").notes if ONE_STEP in note]) == 2


@pytest.mark.long
def test_what_a_conversion_said_its_proof_does_not_repeat(ckpt: Any) -> None:
    done = ckpt("convert", model(1), "--dequantize", "-o", "out/", "--prove")
    assert done.code == 0, done
    assert "EQUIVALENT" in done.out
    assert " ".join(done.err.split()).count(ONE_STEP) == 1


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["prove", "stats"])
def test_codes_that_cannot_be_decoded_get_a_hint_on_decoding(verb: str) -> None:
    """Not on tensors that are missing; the bits of MLX are only in its settings."""
    state = coded_tensors(mlx, layers=1)
    write_model(Path("m"), state, SETTINGS["mlx"])
    VERBS[verb](Path("m"))
    write_model(Path("m"), state, None)
    with pytest.raises(
        cs.PlanError, match="is quantised .* and cannot be decoded: the bit width of the codes"
    ) as raised:
        VERBS[verb](Path("m"))
    assert "ckpt fits" not in raised.value.hint
    assert "package that quantised it" in raised.value.hint
    assert "quantization_config" in raised.value.hint


@pytest.mark.costly
@pytest.mark.parametrize(("times", "drift"), [(1, None), (8, "model.layers.2")])
def test_codes_of_rows_with_few_large_weights_are_explained_and_a_wrong_scale_is_named(
    times: float, drift: str | None
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "vocab_size": 96}
    network = model_of({"model_type": "llama", "num_attention_heads": 4, **sizes}, "LlamaForCausalLM")
    for key, one in network.named_parameters():
        if "mlp" in key:
            one.data[:, 0] *= 12
    network.save_pretrained("plain")
    cs.apply(cs.convert("plain", quantize="int8"), "coded")
    state = load_file("coded/model.safetensors")
    state["model.layers.2.mlp.down_proj.weight_scale"] *= times
    save_file(state, "coded/model.safetensors", {"format": "pt"})
    found = cs.prove("plain", "coded")
    assert (found.drift and found.drift.name) == drift
    assert not found.changed_elsewhere
