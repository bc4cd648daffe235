"""A scale that is NaN or infinite is an error that names the file and says what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs

from ...helpers.zoo import BY_NAME

VERBS: dict[str, Callable[[], cs.Plan]] = {
    "convert --dequantize": lambda: cs.convert("a", dequantize=True),
    "average": lambda: cs.average(["a", "b"]),
    "merge": lambda: cs.merge(["b", "a"], method="linear", weights=[1, 1], encoding="dequantize"),
}


@pytest.mark.costly
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["fp8-tensor", "int8", "gptq"])
def test_a_scale_that_is_not_finite_is_named_with_its_file(verb: str, kind: str) -> None:
    for seed, name in enumerate(("a", "b")):
        BY_NAME[kind].folder(Path(name), seed)
    cs.apply(VERBS[verb](), "sound")
    state = load_file("a/model.safetensors")
    key = next(key for key in state if key.endswith(("weight_scale", ".scales")))
    state[key].view(-1)[0] = torch.nan
    save_file(state, "a/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.FormatError) as raised:
        cs.apply(VERBS[verb](), "out")
    name = key.rpartition(".")[0] + ".weight"
    assert raised.value.message == f"a/model.safetensors: a scale of the quantised tensor {name} is NaN or infinite."
    assert "ckpt check" in raised.value.hint
    assert not Path("out").exists()


@pytest.mark.costly
@pytest.mark.parametrize("verb", ["average", "merge"])
def test_values_that_cannot_be_encoded_do_not_get_an_option_that_the_verb_lacks(verb: str, ckpt: Any) -> None:
    BY_NAME["mxfp4-quark"].folder(Path("a"))
    options = ["--method", "linear", "--weights", "1,1"] if verb == "merge" else []
    done = ckpt(verb, "a", "a", *options, "-o", "out")
    said = " ".join(done.err.split())
    assert done.code == 4
    assert "; --exclude leaves" not in said
    assert "ckpt " in said


def test_a_bias_that_is_not_finite_is_called_a_bias() -> None:
    BY_NAME["mlx"].folder(Path("a"))
    state = load_file("a/model.safetensors")
    key = next(key for key in state if key.endswith(".biases"))
    state[key].view(-1)[0] = torch.nan
    save_file(state, "a/model.safetensors", {"format": "pt"})
    with pytest.raises(cs.FormatError, match=r": a bias of the quantised tensor .* is NaN or infinite"):
        cs.apply(cs.convert("a", dequantize=True), "out")
    assert cs.check("a").row("not-finite").status.value == "FAIL"
