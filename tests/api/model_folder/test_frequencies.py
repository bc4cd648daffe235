"""Stored frequencies of rotary embeddings: compared with config.json and, in merges, with each other; never averaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.layers.rotary import _KINDS

from .weights.test_family_checks import VERBS

KEY = "model.layers.{}.self_attn.rotary_emb.inv_freq"
LLAMA = {"model_type": "llama", "num_hidden_layers": 2, "rope_theta": 10000.0, "dtype": "bfloat16"}


def powers(base: float, number: int = 8) -> torch.Tensor:
    return 1 / base ** (torch.arange(number).float() / number)


def model(path: str, frequencies: torch.Tensor, seed: int = 0, key: str = KEY, **fields: Any) -> str:
    """Save two layers in bfloat16, each with frequencies; None removes a field of config.json."""
    Path(path).mkdir()
    made = torch.Generator().manual_seed(seed)
    state = {}
    for number in range(2):
        state[f"model.layers.{number}.self_attn.q_proj.weight"] = torch.randn(8, 8, generator=made).bfloat16()
        state[key.format(number)] = frequencies.clone()
    save_file(state, f"{path}/model.safetensors", {"format": "pt"})
    config = {name: value for name, value in {**LLAMA, **fields}.items() if value is not None}
    Path(path, "config.json").write_text(json.dumps(config))
    return path


def said(notes: Any) -> list[str]:
    return [one.removeprefix("m: ") for one in notes if "frequencies" in one and "says" in one]


@pytest.mark.parametrize("verb", [*VERBS, "gguf", "fits", "diff", "check"])
def test_every_verb_says_frequencies_of_another_base(verb: str) -> None:
    model("m", powers(500000))
    verbs = {
        **VERBS,
        "gguf": lambda path: cs.apply(cs.convert(path), "m.gguf"),
        "fits": lambda path: cs.fits(path, path),
        "diff": lambda path: cs.diff(model("n", powers(10000)), path),
    }
    if verb == "check":
        notes = [one.what for one in cs.check("m").row("configuration").found]
    else:
        notes = list(verbs[verb]("m").notes)
    base = "config.json says 10,000 (rope_theta): transformers 5 and llama.cpp compute with 10,000"
    assert {*said(notes)} == {f"{KEY.format(0)} has the frequencies of a base of 500,000, but {base}"}


@pytest.mark.parametrize(
    ("frequencies", "fields", "words"),
    [
        (powers(10000), {}, ""),
        (powers(10000).bfloat16(), {}, ""),
        (powers(1000000, 64).half(), {"rope_theta": 1000000.0}, ""),  # the last are subnormal in float16
        (powers(500000), {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ""),
        (powers(10000), {"rope_theta": None}, ""),
        (powers(500000), {"rope_theta": None}, "but the default of its model type is 10,000 (rope_theta)"),
        (powers(500000).bfloat16(), {}, "a base of"),
        (powers(10000) / 4, {}, "does not have the frequencies of any base, but config.json says 10,000"),
        (torch.zeros(8), {}, "does not have the frequencies of any base"),
        (powers(10000) / 4, {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, ""),  # scaled, so not compared
        (powers(500000), {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ""),
        (powers(500000), {"model_type": "my_own"}, ""),
        (powers(500000), {"auto_map": {"AutoModel": "x.Y"}}, ""),
        (powers(500000), {"text_config": {"model_type": "llama"}}, ""),
    ],
)
def test_frequencies_are_compared_with_the_base(frequencies: torch.Tensor, fields: dict[str, Any], words: str) -> None:
    model("m", frequencies, **fields)
    notes = [one for one in cs.inspect("m").notes if "frequencies" in one]
    assert len(notes) == bool(words), notes
    assert all(words in one for one in notes)


def test_gpt_neox_has_another_name_of_the_base() -> None:
    key = "gpt_neox.layers.{}.attention.rotary_emb.inv_freq"
    fields = {"model_type": "gpt_neox", "rope_theta": None, "rotary_emb_base": 10000, "rotary_pct": 0.25}
    assert not [one for one in cs.inspect(model("a", powers(10000), key=key, **fields)).notes if "frequencies" in one]
    (note,) = said(cs.inspect(model("b", powers(25000), key=key, **fields)).notes)
    assert "config.json says 10,000 (rotary_emb_base)" in note


@pytest.mark.parametrize("kind", _KINDS)
def test_the_frequencies_of_transformers_have_no_note(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(kind, vocab_size=20, **sizes, pad_token_id=0)
    with torch.device("cpu"):
        made = transformers.AutoModel.from_config(config)
    stored = {name: value for name, value in made.named_buffers() if name.endswith("rotary_emb.inv_freq")}
    assert stored
    config.save_pretrained("c")
    fields = json.loads(Path("c/config.json").read_text())
    model("m", next(iter(stored.values())).contiguous(), **{**dict.fromkeys(LLAMA), **fields})
    assert not [one for one in cs.inspect("m").notes if "frequencies" in one]


@pytest.mark.parametrize("verb", ["average", "linear", "ties"])
@pytest.mark.parametrize("other", [500000, 10000])
def test_frequencies_are_not_averaged(verb: str, other: int) -> None:
    a, b = model("a", powers(10000)), model("b", powers(other), seed=1)
    base = model("base", powers(10000), seed=2)
    plan = (
        cs.average([a, b])
        if verb == "average"
        else cs.merge([a, b], method=verb, weights=[1, 1], base=base if verb == "ties" else None)
    )
    cs.apply(plan, "out")
    assert torch.equal(load_file("out/model.safetensors")[KEY.format(1)], powers(10000))
    notes = [one for one in plan.notes if "than in b" in one]
    assert len(notes) == (other != 10000)
    assert all(
        one.startswith(f"{KEY.format(0)} has other frequencies in a (those of a base of 10,000) than in b (those of a")
        for one in notes
    )


def test_buffers_in_float32_do_not_count_as_weights_of_another_dtype() -> None:
    a, b = model("a", powers(10000)), model("b", powers(10000), seed=1)
    for plan in (cs.average([a, b]), cs.merge([a, b], method="linear", weights=[1, 1]), cs.convert(a)):
        assert not [one for one in plan.notes if "casts them" in one]
    out = cs.convert(a, dtype="float16")
    cs.apply(out, "half")
    assert json.loads(Path("half/config.json").read_text())["dtype"] == "float16"
    state = load_file("a/model.safetensors")
    state["model.layers.0.self_attn.k_proj.weight"] = torch.ones(8, 8)
    save_file(state, "a/model.safetensors", {"format": "pt"})
    state = load_file("b/model.safetensors")
    state["model.layers.0.self_attn.k_proj.weight"] = torch.ones(8, 8)
    save_file(state, "b/model.safetensors", {"format": "pt"})
    assert [one for one in cs.average([a, b]).notes if "casts them" in one]  # a weight in float32 counts
