"""A token list that is not that of the embedding, found in pairs of tokens whose rows should be alike."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.weights import token_rows
from ckptsurgeon.api.model_folder.weights.embedding_rows import Rows
from ckptsurgeon.checkpoint.opening import open_checkpoint

KEY = "model.embed_tokens.weight"
SPECIAL = ["<unk>", "<s>", "</s>"]
STEMS = ["".join(one) for one in product("bdfgkp", "aeiou", "lmnrs")]
"""150 syllables, each of which is a token with a mark and one without."""


def tokens_of(mark: str) -> list[str]:
    capital = [one.capitalize() for one in STEMS]
    first = [f"{mark}{one}" for one in STEMS] if mark else capital
    fillers = [f"{one}{two}" for one, two in product("xyz", "0123456789")]
    random.Random(0).shuffle(first)  # in the same order, each row further would be that of another pair
    return [*SPECIAL, *fillers[:15], *first, *fillers[15:], *STEMS, "zz0", "zz1", "zz2", "zz3", "zz4"]


def weights(tokens: list[str], mark: str, alike: float, *, width: int = 48, seed: int = 0) -> torch.Tensor:
    """Rows of random numbers, those of a pair with a cosine of about ``alike``."""
    draw = np.random.default_rng(seed)
    rows = draw.standard_normal((len(tokens), width))
    places = {token: row for row, token in enumerate(tokens)}
    for stem in STEMS:
        other = places[f"{mark}{stem}" if mark else stem.capitalize()]
        rows[other] = alike * rows[places[stem]] + np.sqrt(1 - alike**2) * rows[other]
    return torch.from_numpy(rows * 0.02 + 0.01)


def shifted(tokens: list[str], by: int, begin: int = 4) -> list[str]:
    """The list with ``by`` tokens added or left out at ``begin``, and the end cut or filled to the same length."""
    if by >= 0:
        return [*tokens[:begin], *(f"new{one}" for one in range(by)), *tokens[begin : len(tokens) - by]]
    return [*tokens[:begin], *tokens[begin - by :], *(f"new{one}" for one in range(-by))]


def write(
    folder: str, tokens: list[str], values: torch.Tensor, *, kind: str = "", file: str = "tokenizer.json"
) -> None:
    Path(folder).mkdir()
    save_file({KEY: values.to(torch.float32).contiguous()}, f"{folder}/model.safetensors")
    Path(folder, "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(values)}))
    numbers = {token: row for row, token in enumerate(tokens)}
    listed: Any = [[token, -1.0] for token in tokens] if kind == "Unigram" else numbers
    document = {"model": {"type": kind or "BPE", "vocab": listed, "merges": []}}
    document = document if file == "tokenizer.json" else numbers
    Path(folder, file).write_text("\n".join(tokens) + "\n" if file == "vocab.txt" else json.dumps(document))


def notes(tokens: list[str], values: torch.Tensor, *, kind: str = "", file: str = "tokenizer.json") -> list[str]:
    write("m", tokens, values, kind=kind, file=file)
    found = [one for one in cs.inspect("m").notes if "the tokens of " in one]
    assert [one.removeprefix("m: ") for one in cs.convert("m").notes if "the tokens of " in one] == found
    return found


@pytest.mark.parametrize("by", [1, -1, 3, -4])
@pytest.mark.parametrize(
    ("mark", "kind", "file"),
    [("▁", "Unigram", "tokenizer.json"), ("Ġ", "BPE", "tokenizer.json"), ("Ġ", "", "vocab.json"), ("##", "", "vocab.txt"),
     ("", "BPE", "tokenizer.json")],
)  # fmt: skip
def test_a_list_some_rows_off_is_said(mark: str, kind: str, file: str, by: int) -> None:
    tokens = tokens_of(mark)
    (note,) = notes(shifted(tokens, by), weights(tokens, mark, 0.6), kind=kind, file=file)
    rows = "1 row" if abs(by) == 1 else f"{abs(by)} rows"
    assert note.startswith(f"the tokens of {file} are perhaps shifted by {rows} against {KEY}: pairs such as ")
    assert f") only {rows} {'before' if by > 0 else 'after'} the rows that the list gives them (" in note
    assert note.kind.check == "vocabulary"


@pytest.mark.parametrize("mark", ["▁", "Ġ", "##", ""])
@pytest.mark.parametrize(("alike", "by"), [(0.6, 0), (0.2, 0), (0.0, 0), (0.0, 1), (0.6, 6)])
def test_right_lists_and_untrained_embeddings_are_not(mark: str, alike: float, by: int) -> None:
    """A list that is further off than the shifts that are tried is like an untrained one."""
    tokens = tokens_of(mark)
    assert not notes(shifted(tokens, by), weights(tokens, mark, alike))


@pytest.mark.parametrize("seed", range(12))
def test_no_random_embedding_has_a_clear_shift(seed: int) -> None:
    tokens = tokens_of("Ġ")
    assert not notes(tokens, weights(tokens, "Ġ", 0.0, seed=seed))


@pytest.mark.parametrize("values", [torch.zeros, torch.ones])
def test_rows_without_a_direction_are_not_judged(values: Any) -> None:
    tokens = tokens_of("Ġ")
    assert not notes(shifted(tokens, 1), values(len(tokens), 48))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_read(dtype: torch.dtype) -> None:
    """Only those of float64 are not: no published embedding has them."""
    tokens = tokens_of("Ġ")
    values = weights(tokens, "Ġ", 0.6).to(dtype)
    Path("m").mkdir()
    save_file({KEY: values}, "m/model.safetensors")
    Path("m/config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(values)}))
    Path("m/vocab.json").write_text(json.dumps({token: row for row, token in enumerate(shifted(tokens, 1))}))
    assert any(" shifted by " in one for one in cs.inspect("m").notes) == (dtype != torch.float64)


@pytest.mark.parametrize("more", [float("nan"), float("-inf"), 3e38])
def test_numbers_that_are_not_finite_are_not_judged(more: float) -> None:
    tokens = tokens_of("Ġ")
    values = weights(tokens, "Ġ", 0.6)
    values[30:40] = more
    values[40] = float("inf")
    assert not notes(shifted(tokens, 1), values)


def test_few_pairs_are_not_judged() -> None:
    tokens = tokens_of("Ġ")
    values = weights(tokens, "Ġ", 0.6)
    some = [
        one if not one.startswith("Ġ") or row % 8 == 0 else f"<{row}>" for row, one in enumerate(shifted(tokens, 1))
    ]
    assert not notes(some, values)


def another(tokens: list[str]) -> list[str]:
    """The tokens of a list in another order, as in the list of another model of the same size."""
    others = tokens[len(SPECIAL) :]
    random.Random(1).shuffle(others)
    return [*SPECIAL, *others]


def varied(values: torch.Tensor) -> torch.Tensor:
    """Rows whose norms vary, as those of trained embeddings do: frequent tokens have other norms than rare ones."""
    return values * torch.linspace(0.5, 1.5, len(values))[:, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mark", ["▁", "Ġ", "##", ""])
def test_the_list_of_another_model_is_said(mark: str, dtype: torch.dtype) -> None:
    tokens = tokens_of(mark)
    values = varied(weights(tokens, mark, 0.7)).to(dtype).float()
    (note,) = notes(another(tokens), values)
    assert note.startswith(f"the tokens of tokenizer.json are perhaps not those of {KEY}: pairs such as ")
    assert note.kind.check == "vocabulary"


def test_the_list_of_another_model_is_said_if_its_beginning_is_right() -> None:
    """Lists of one kind begin with the same bytes and the most frequent merges."""
    tokens = tokens_of("Ġ")
    half = len(tokens) // 2
    assert any(one.startswith("Ġ") for one in tokens[:half])
    later = tokens[half:]
    random.Random(2).shuffle(later)
    places = {token: row for row, token in enumerate(tokens)}
    values = varied(weights(tokens, "Ġ", 0.7))
    kept = [one for one in STEMS if tokens[places[one]] == [*tokens[:half], *later][places[one]]]
    assert len(kept) < len(STEMS) / 2
    (note,) = notes([*tokens[:half], *later], values)
    assert "perhaps not those of" in note


@pytest.mark.parametrize("mark", ["▁", "Ġ", "##", ""])
def test_a_trained_embedding_with_its_own_list_is_not(mark: str) -> None:
    tokens = tokens_of(mark)
    assert not notes(tokens, varied(weights(tokens, mark, 0.7)))


@pytest.mark.parametrize("is_bare", [True, False])
def test_a_right_list_with_pairs_of_which_one_token_was_never_trained_is_not(is_bare: bool) -> None:
    """Small English texts lack most words without a space before them, and Chinese ones the parts of English words."""
    stems = ["".join(one) for one in product("vwxz", "aeiou", "lmnr", "aei")]
    tokens = [*tokens_of("Ġ"), *(f"{'Ġ' if is_bare else ''}{one}" for one in stems)]
    draw = np.random.default_rng(3)
    kinds = draw.standard_normal((30, 48))
    rows = draw.standard_normal((len(tokens), 48))
    for row, token in enumerate(tokens):
        if token.startswith("Ġ") == is_bare and token not in SPECIAL:
            rows[row] = (0.7 * kinds[draw.integers(30)] + 0.7 * rows[row]) * draw.uniform(0.8, 2.5)
    assert not notes(tokens, torch.from_numpy(rows * 0.02))


OTHER_KEY = "decoder.embed_tokens.weight"


def two_sided(values: torch.Tensor, others: torch.Tensor) -> list[str]:
    """Write the weights of an encoder and of a decoder into a folder, and return the notes on its list."""
    save_file({"encoder.embed_tokens.weight": values.float(), OTHER_KEY: others.float()}, "m/model.safetensors")
    return [one.removeprefix("m: ") for one in cs.inspect("m").notes if "the tokens of " in one]


@pytest.mark.parametrize("more", [0, 40])
def test_the_list_of_one_of_two_embeddings_is_not(more: int) -> None:
    """The folder of an ``EncoderDecoderModel`` has the list of its encoder or of its decoder only."""
    tokens, new = tokens_of("Ġ"), [f"new{one}" for one in range(more)]
    values = varied(weights(tokens, "Ġ", 0.7))
    others = another([*tokens, *new])
    write("m", tokens, values)
    assert not two_sided(values, varied(weights(others, "Ġ", 0.7, seed=5)))
    (note,) = two_sided(varied(weights(another(tokens), "Ġ", 0.7)), varied(weights(others, "Ġ", 0.7, seed=5)))
    assert "perhaps not those of" in note


@pytest.mark.parametrize("kind", ["float64", "codes", "wide"])
@pytest.mark.parametrize("is_right", [False, True])
def test_embeddings_that_cannot_be_read_say_nothing_of_a_list(
    kind: str, is_right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of("Ġ")
    values = varied(weights(tokens, "Ġ", 0.7)).float()
    write("m", tokens if is_right else another(tokens), values)
    other = values.double() if kind == "float64" else values.to(torch.float8_e4m3fn)
    state = {"encoder.embed_tokens.weight": values, OTHER_KEY: other}
    if kind == "codes":
        state[f"{OTHER_KEY}_scale"] = torch.ones(len(values), 1)
    if kind == "wide":
        monkeypatch.setattr(token_rows, "_WIDEST", 4 * values.shape[1])
        state[OTHER_KEY] = torch.cat([values, values], 1)
    save_file(state, "m/model.safetensors")
    found = [one for one in cs.inspect("m").notes if "the tokens of " in one]
    said = " are perhaps not those of encoder.embed_tokens.weight: "
    assert [said in one for one in found] == ([] if is_right else [True])
    save_file({OTHER_KEY: state[OTHER_KEY]}, "m/model.safetensors")
    assert not [one for one in cs.inspect("m").notes if "the tokens of " in one]


def test_a_list_off_one_of_two_embeddings_is_said() -> None:
    tokens = tokens_of("Ġ")
    values = varied(weights(tokens, "Ġ", 0.7))
    write("m", shifted(tokens, 1), values)
    (note,) = two_sided(values, varied(weights(another(tokens), "Ġ", 0.7, seed=5)))
    assert note.startswith(
        "the tokens of tokenizer.json are perhaps shifted by 1 row against encoder.embed_tokens.weight"
    )


def test_large_numbers_are_not_judged() -> None:
    """Squares of float32 above 1e19 are infinite; numpy would warn, and warnings are errors."""
    tokens = tokens_of("Ġ")
    values = varied(weights(tokens, "Ġ", 0.7))
    assert not notes(another(tokens), values / values.abs().max() * 1e30)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_pairs_of_rows_without_usable_numbers_are_not_judged(value: float) -> None:
    tokens = tokens_of("Ġ")
    values = varied(weights(tokens, "Ġ", 0.7))
    places = {token: row for row, token in enumerate(tokens)}
    pairs = [(places[f"Ġ{one}"], places[one]) for one in STEMS]
    values[[*pairs[0], *pairs[1]]] = value
    write("m", tokens, values)
    with open_checkpoint("m") as opened:
        rows = Rows(opened, opened[KEY])
        assert rows.related(len(tokens), pairs[:2]) is None
        found = rows.related(len(tokens), pairs)
    assert found is not None
    assert len(found[1]) > len(pairs) / 2


@pytest.mark.parametrize("seed", range(4))
def test_an_embedding_without_relatives_is_not_judged(seed: int) -> None:
    """Rows of random numbers have norms that vary if they were scaled, but no row close to them."""
    tokens = tokens_of("Ġ")
    assert not notes(tokens, varied(weights(tokens, "Ġ", 0.0, seed=seed)))


def test_copies_of_rows_are_not_relatives() -> None:
    """New rows are often copies of one row, or of the mean of all rows; they say nothing of training."""
    tokens = tokens_of("Ġ")
    values = varied(weights(tokens, "Ġ", 0.0))
    for begin in range(0, len(values) - 1, 2):
        values[begin + 1] = values[begin] * 1.5
    assert not notes(tokens, values)


def test_norms_of_an_initialisation_are_not_judged() -> None:
    """An embedding may begin with rows that are alike, such as the codes of words; its norms show no training."""
    tokens = tokens_of("Ġ")
    values = weights(tokens, "Ġ", 0.7)
    assert not notes(another(tokens), values / values.norm(dim=1, keepdim=True))


def test_a_longer_list_is_only_said_to_be_longer() -> None:
    tokens = tokens_of("Ġ")
    assert not notes([*another(tokens), "zz5"], varied(weights(tokens, "Ġ", 0.7)))


def test_verify_says_it_of_a_source_whose_list_the_output_joins_with_another() -> None:
    tokens = tokens_of("Ġ")
    values = varied(weights(tokens, "Ġ", 0.7))
    write("m", another(tokens), values)
    write("right", tokens, values)
    cs.apply(cs.merge(["m", "right"], method="linear", vocab="union", weights=[0.5, 0.5]), "out/")
    found = [note for note in cs.verify("out").notes if "perhaps not those of" in note.why]
    assert [Path(note.name).name for note in found] == ["m"]
    cs.apply(cs.convert("right"), "copy/")
    assert not [note for note in cs.verify("copy").notes if "perhaps not those of" in note.why]
