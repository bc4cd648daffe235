"""Token lists that were changed since ckpt wrote them with the weights beside them: the recipe has their digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckptsurgeon as cs

from ..test_model_folders import TOKENS, model, verbs_of

SAID = "vocab.json is not the list that was written with these weights (ckptsurgeon.json): if it has other tokens"


@pytest.fixture
def written() -> str:
    """A folder that ckpt has written."""
    model("origin")
    cs.apply(cs.convert("origin", dtype="bfloat16"), "m")
    return "m"


def exchanged(path: str) -> None:
    """Exchange two tokens of a list."""
    tokens = [*TOKENS[:2], TOKENS[3], TOKENS[2], *TOKENS[4:]]
    Path(path).write_text(json.dumps({token: row for row, token in enumerate(tokens)}))


@pytest.mark.parametrize("verb", verbs_of(""))
def test_every_verb_says_that_a_list_was_changed(verb: str, written: str) -> None:
    model("sound", seed=1)
    for name in ("sound", "m"):  # verbs that combine both refuse lists that differ
        exchanged(f"{name}/vocab.json")
    assert any(SAID in note for note in verbs_of(written)[verb]().notes)


@pytest.mark.parametrize("verb", verbs_of(""))
def test_a_folder_as_it_was_written_has_no_such_note(verb: str, written: str) -> None:
    model("sound", seed=1)
    assert not any("not the list" in note for note in verbs_of(written)[verb]().notes)


def test_settings_may_be_edited_and_weights_of_others_have_no_recipe(written: str) -> None:
    Path("m/tokenizer_config.json").write_text('{"model_max_length": 9}')
    assert not any("not the list" in note for note in cs.inspect(written).notes)
    exchanged("origin/vocab.json")
    assert not any("not the list" in note for note in cs.inspect("origin").notes)


def test_check_warns(written: str) -> None:
    exchanged("m/vocab.json")
    assert any(SAID in found.what for found in cs.check(written).row("vocabulary").found)


@pytest.mark.parametrize(
    "recipe", ['{"target":{"companions":[', '{"target":{"companions":[1]}}', '{"companions":[{}]}']
)
def test_a_damaged_recipe_is_no_note(recipe: str, written: str) -> None:
    Path("m/ckptsurgeon.json").write_text(recipe)
    exchanged("m/vocab.json")
    assert not any("not the list" in note for note in cs.inspect(written).notes)
