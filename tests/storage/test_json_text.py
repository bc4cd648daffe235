"""JSON in which a key stands twice is refused with its line, wherever somebody else's JSON says what is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.api.model_folder.folder import model_folder_at
from ckptsurgeon.storage.json_text import read_json
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary

DOUBLED = {
    "in one object": ('{"a": 1,\n "b": 2,\n "a": 3}', "key a occurs twice, again on line 3"),
    "escaped": ('{"a": 1,\n "\\u0061": 3}', "key a occurs twice, again on line 2"),
    "below": (
        '{"a": {"b": 1},\n "c": [{"b": 1}, {"b": 1,\n "b": 2}]}',
        "key b occurs twice, again on line 3",
    ),
    "behind braces in texts": ('{"{[\\"": ["}:"],\n "a": 1, "a": 2}', "key a occurs twice, again on line 2"),
    "before what is no JSON": ('{"a": 1, "a": 2}\n}]}]', "key a occurs twice, again on line 1"),
    "that would change a terminal": ('{"\x7f": 1, "\x7f": 2}', r"key \x7f occurs twice, again on line 1"),
}


@pytest.mark.parametrize("kind", DOUBLED)
def test_a_key_that_stands_twice_is_an_error_that_says_where(kind: str) -> None:
    text, said = DOUBLED[kind]
    for form in (text, text.encode()):
        with pytest.raises(ValueError) as caught:
            read_json(form)
        assert str(caught.value) == said


@pytest.mark.parametrize("levels", [101, 900])
def test_what_nests_too_deep_is_refused(levels: int) -> None:
    assert read_json("[" * 99 + "{}" + "]" * 99)
    for text in ("[" * levels + "]" * levels, '{"a":' * levels + "1" + "}" * levels):
        with pytest.raises(ValueError, match="^the document is nested more than 100 levels deep$"):
            read_json(text)


def test_a_configuration_that_nests_too_deep_is_said(ckpt: Any) -> None:
    for name in "ab":
        Path(name).mkdir()
        torch.save({"w": torch.ones(2)}, f"{name}/pytorch_model.bin")
        Path(name, "config.json").write_text('{"x":' * 900 + name.replace("a", "1").replace("b", "2") + "}" * 900)
    for verb in (["inspect", "a"], ["average", "a", "b", "-n"]):
        done = ckpt(*verb)
        assert (done.code, "the document is nested more than 100 levels deep" in " ".join(done.err.split())) == (
            0,
            True,
        ), done


def test_the_same_key_in_different_objects_is_none() -> None:
    assert read_json('{"a": [{"a": 1}, {"a": 2}], "b": {"a": 3}}') == {"a": [{"a": 1}, {"a": 2}], "b": {"a": 3}}


def plan() -> None:
    torch.save({"a": torch.ones(2)}, "a.pth")
    Path("x.json").write_text(doubled(json.dumps(cs.convert("a.pth").to_json()), "seed"))
    cs.apply("x.json", "out.pth")


def carried() -> None:
    torch.save({"a": torch.ones(2)}, "a.pth")
    cs.apply(cs.convert("a.pth"), "out", max_shard_size="1GB")
    path = Path("out/ckptsurgeon.json")
    path.write_text(doubled(path.read_text(), "verb"))
    cs.verify("out").raise_if_failed()


def destination() -> None:
    Path("x.json").write_text('{"model_type": "bert", "vocab_size": 3, "vocab_size": 4}')
    cs.load_target("x.json")


def named_configuration() -> None:
    Path("config.json").write_text('{"model_type": "bert", "vocab_size": 3, "vocab_size": 4}')
    Path("x.yaml").write_text("model: {transformers: config.json}\n")
    cs.load_target("x.yaml")


def configuration_of_a_merged_model() -> None:
    torch.save({"a": torch.ones(2)}, "model.pth")
    Path("config.json").write_text('{"vocab_size": 3, "vocab_size": 4}')
    model_folder_at(".").document("config.json")


def vocabulary() -> None:
    Path("vocab.json").write_text('{"a": 0, "b": 1, "a": 2}')
    read_vocabulary("vocab.json")


def doubled(text: str, key: str) -> str:
    """An object with one of its keys once more, at its end."""
    return f'{text.rstrip().removesuffix("}")}, "{key}": 0}}'


@pytest.mark.parametrize(
    "read", [plan, carried, destination, named_configuration, configuration_of_a_merged_model, vocabulary]
)
def test_what_is_carried_out_has_no_key_twice(read: Callable[[], Any]) -> None:
    with pytest.raises(cs.CheckpointError, match="occurs twice, again on line"):
        read()
