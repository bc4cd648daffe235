"""Rows of zeros of the last tokens of a list: a note if the tokens are ordinary ones, as if others were inserted."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs

from .test_family_checks import VERBS

KEY = "model.embed_tokens.weight"
ROWS, WIDTH = 96, 8
SPECIAL = ["<unk>", "<s>", "</s>"]
NEW = ["<sep>", "<cls>"]
WORDS = [f"Ġ{chr(97 + one // 26)}{chr(97 + one % 26)}" for one in range(80)]
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "vocab_size": ROWS, "dtype": "bfloat16", "pad_token_id": 0}


def model(path: str, tokens: Sequence[str], rows: torch.Tensor, special: Sequence[str] = SPECIAL, **fields: Any) -> str:
    """Save two layers, an embedding with these rows, and a list of these tokens, of which ``special`` are added."""
    Path(path).mkdir()
    made = torch.Generator().manual_seed(1)
    state = {
        f"model.layers.{number}.self_attn.q_proj.weight": torch.randn(WIDTH, WIDTH, generator=made).bfloat16()
        for number in range(2)
    }
    save_file({KEY: rows, **state}, f"{path}/model.safetensors", {"format": "pt"})
    Path(path, "config.json").write_text(json.dumps({**CONFIG, **fields}))
    places = {token: number for number, token in enumerate(tokens)}
    added = [{"id": places[one], "content": one, "special": True} for one in special]
    vocabulary = {"type": "WordLevel", "vocab": places, "unk_token": "<unk>"}
    Path(path, "tokenizer.json").write_text(json.dumps({"added_tokens": added, "model": vocabulary}))
    return path


def trained(number: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return an embedding whose first ``number`` rows are random, and the others zeros."""
    rows = torch.zeros(ROWS, WIDTH)
    rows[:number] = torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(0))
    return rows.to(dtype)


def shifted(path: str, dtype: torch.dtype = torch.bfloat16) -> str:
    """Save a model whose list got two special tokens at its beginning, although the rows did not move."""
    return model(path, [*SPECIAL, *NEW, *WORDS], trained(len(SPECIAL + WORDS), dtype), [*SPECIAL, *NEW])


def sound(path: str) -> str:
    """Save the model whose list ``shifted`` changes."""
    return model(path, [*SPECIAL, *WORDS], trained(len(SPECIAL + WORDS)))


def said(notes: Sequence[str]) -> list[str]:
    return [one.removeprefix("m: ") for one in notes if "of zeros" in one]


def adapter(path: str) -> str:
    Path(path).mkdir()
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{name}.lora_A.weight": torch.ones(2, WIDTH), f"{name}.lora_B.weight": torch.ones(WIDTH, 2) / 100}
    save_file(factors, f"{path}/adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    Path(path, "adapter_config.json").write_text(json.dumps(config))
    return path


MORE: dict[str, Callable[[str], Any]] = {
    "filter": lambda path: cs.filter(path, exclude=["model.layers.1"]),
    "rename": lambda path: cs.rename(path, map=["model.layers=model.blocks"]),
    "lora merge": lambda path: cs.lora_merge(path, [adapter("adapter")]),
    "patch": lambda path: cs.make_patch(sound("n"), path, "m.ckptpatch"),
    "fits": lambda path: cs.fits(path, path),
    "diff": lambda path: cs.diff(sound("n"), path),
}


@pytest.mark.parametrize("verb", [*VERBS, *MORE])
def test_every_verb_says_rows_of_zeros_of_words(verb: str) -> None:
    shifted("m")
    notes = {**VERBS, **MORE}[verb]("m").notes
    words = f"2 tokens at the end of tokenizer.json have rows of zeros in {KEY}: 'Ġda', 'Ġdb'"
    after = "; perhaps tokens were inserted before, so that each later token has the row of another token"
    assert said(notes) == [words + after]


def test_check_warns_of_them() -> None:
    row = cs.check(shifted("m")).row("vocabulary")
    assert row.status.value == "WARN"
    assert len(said([one.what for one in row.found])) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_rows_are_zeros_in_each_dtype(dtype: torch.dtype) -> None:
    assert said(cs.inspect(shifted("m", dtype)).notes)


@pytest.mark.parametrize("share", [0, 1])
def test_more_rows_of_zeros_than_are_read_are_said_unless_half_of_all_are(share: int) -> None:
    words = [f"w{one}" for one in range(90)]
    found = said(cs.inspect(model("m", [*SPECIAL, *words], trained(70 if share else 8))).notes)
    assert [one.partition(" at the end")[0] for one in found] == (["23 tokens"] if share else [])


PLACEHOLDERS = [
    *("<|reserved_special_token_7|>", "[unused12]", "<extra_id_0>", "madeupword0000", "UNUSED_TOKEN_145", "<pad>"),
    *("reserved_106", ">>UNUSED_3<<", "<unused5>", "[PAD]", "|extratoken_9|", "<0x0A>", "dummy_1", "pad"),
    *("RESERVED", "unused_a", "token_83", "new_token_0", "unk2", "madeupword", "pad_token", "[MASK]", "mask"),
]


@pytest.mark.parametrize("last", PLACEHOLDERS)
def test_rows_of_placeholders_may_be_zeros(last: str) -> None:
    assert not said(cs.inspect(model("m", [*SPECIAL, *WORDS, last], trained(83))).notes)


@pytest.mark.parametrize(
    ("number", "tokens", "special", "fields"),
    [
        (83, [*SPECIAL, *WORDS], SPECIAL, {}),  # rows without a token
        (83, [*SPECIAL, *WORDS, "user", "tool"], [*SPECIAL, "user", "tool"], {}),  # added tokens
        (83, [*SPECIAL, *WORDS, "void"], SPECIAL, {"pad_token_id": 83}),
        (0, [*SPECIAL, *WORDS], SPECIAL, {}),  # an embedding that is not trained yet
        (96, [*SPECIAL, *WORDS], SPECIAL, {}),
    ],
)
def test_sound_models_get_no_note(number: int, tokens: list[str], special: list[str], fields: dict[str, Any]) -> None:
    assert not said(cs.inspect(model("m", tokens, trained(number), special, **fields)).notes)


def test_a_row_of_a_quantised_embedding_is_not_looked_at() -> None:
    shifted("m", torch.float8_e4m3fn)
    state = {KEY: trained(83, torch.float8_e4m3fn), "model.embed_tokens.weight_scale": torch.ones(ROWS, 1)}
    save_file(state, "m/model.safetensors", {"format": "pt"})
    settings = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    document = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**document, "quantization_config": settings}))
    assert not said(cs.inspect("m").notes)
