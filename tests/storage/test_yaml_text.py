"""YAML is read as people mean it, and aliases make no more of it than it can bear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ckptsurgeon as cs
from ckptsurgeon.storage import yaml_text as yamltext
from ckptsurgeon.storage.yaml_text import dump_yaml, read_yaml
from ckptsurgeon.util.text import brief_repr

from ..helpers.pace import in_time


def bomb(levels: int = 9) -> str:
    """Nested anchors: ten to the power of ``levels`` texts in a few hundred bytes."""
    lines = ["a0: &a0 lol"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("levels", [6, 9, 200])
@pytest.mark.parametrize("name", ["recipe.yaml", "operations.yaml", "dst.yaml"])
def test_nested_aliases_are_refused_at_once(name: str, levels: int, ckpt: Any) -> None:
    torch.save({"w": torch.ones(2)}, "s.pth")
    last = f"*a{levels}"
    heads = {
        "recipe.yaml": f"verb: filter\nsource: s.pth\noutput: {last}\n",
        "operations.yaml": f"operations: {last}\n",
        "dst.yaml": f"model: {{tensors: {{w: {{shape: {last}}}}}}}\n",
    }
    Path(name).write_text(bomb(levels) + heads[name])
    commands = {
        "recipe.yaml": ["apply", name, "-n"],
        "operations.yaml": ["rename", "s.pth", "--operations", name, "-n"],
        "dst.yaml": ["transplant", "s.pth", name, "-n"],
    }
    with in_time():
        done = ckpt(*commands[name])
    assert done.code == 2, done
    assert "aliases" in done.err


TAKEN_IN = {
    "own keys win": ("x: &x {a: 1, b: 1}\ny:\n  <<: *x\n  a: 2\n", {"a": 2, "b": 1}),
    "wherever they stand": ("x: &x {a: 1, b: 1}\ny:\n  a: 2\n  <<: *x\n", {"a": 2, "b": 1}),
    "the first of several wins": ("p: &p {a: 1}\nq: &q {a: 2, b: 2}\ny:\n  <<: [*p, *q]\n", {"a": 1, "b": 2}),
}


@pytest.mark.parametrize("kind", TAKEN_IN)
def test_a_mapping_that_takes_another_in(kind: str) -> None:
    text, wanted = TAKEN_IN[kind]
    assert read_yaml(text, "x.yaml")["y"] == wanted


@pytest.mark.parametrize(
    "text", ["a: 1\nb: 2\na: 3\n", "a: 1\nb: {c: 1}\n'a': {<<: {a: 1}}\n", "x: 1\ny: 2\nz: {a: 1, a: 2}\n"]
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(cs.ConfigError, match=r"^x\.yaml, line 3: 'a' occurs twice\."):
        read_yaml(text, "x.yaml")


@pytest.mark.parametrize(
    ("text", "helps"),
    [("a: {n}.w", True), ("{{n}}: 1", True), ("z: {a: 1, a: 2}", False), ("a: !new:torch.nn.Linear {x: 1}", False)],
)
def test_the_hint_on_braces_is_given_where_quotes_help(text: str, helps: bool) -> None:
    with pytest.raises(cs.ConfigError) as error:
        read_yaml(text, "x.yaml")
    assert error.value.hint == ("Put strings with braces in quotes, as in '{n}'." if helps else "")


NESTED = {
    "sequences": "[" * 2_000 + "]" * 2_000,
    "so many sequences that a parser's own stack ends": "[" * 300_000 + "]" * 300_000,
    "mappings": "{a: " * 2_000 + "}" * 2_000,
    "lines": "".join(f"{' ' * i}a:\n" for i in range(500)),
    "one line": "- " * 500 + "x",
    "aliases": "".join(f"- &a{i} [{f'*a{i - 1}' if i else 0}]\n" for i in range(500)),
}


@pytest.mark.parametrize("kind", NESTED)
def test_what_nests_too_deep_is_refused(kind: str) -> None:
    with pytest.raises(cs.ConfigError, match=r"^x\.yaml: the document is nested more than 100 levels deep\.$"):
        read_yaml(NESTED[kind], "x.yaml")


def test_what_nests_as_deep_as_is_allowed_is_read() -> None:
    found = read_yaml("[" * 100 + "]" * 100, "x.yaml")
    for _ in range(99):
        (found,) = found
    assert found == []
    assert len(read_yaml(f"a: [{', '.join(['[]'] * 1_000)}]\nb: {'x' * 1_000}", "x.yaml")["a"]) == 1_000


def test_what_holds_itself_is_refused() -> None:
    with pytest.raises(cs.ConfigError, match="contains itself"):
        read_yaml("a: &a [*a]", "x.yaml")


def test_long_texts_count_as_often_as_they_stand() -> None:
    with pytest.raises(cs.ConfigError, match="aliases"):
        read_yaml(f"t: &t {'x' * 100_000}\na: [{', '.join(['*t'] * 1000)}]", "x.yaml")


def test_aliases_as_people_use_them_are_read() -> None:
    assert read_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "x.yaml") == {
        "a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2},
    }  # fmt: skip


@pytest.mark.long
def test_what_aliases_may_add_is_no_bound_of_what_stands_there() -> None:
    assert len(read_yaml("&all\n" + "- 1\n" * 20_000, "x.yaml")) == 20_000


MANY = {
    "lines": "- \n" * 2_000,
    "entries of entries": "- - - -\n" * 400,
    "a list": f"[{'a,' * 2_000}]",
    "a mapping": "".join(f"{number}: a\n" for number in range(600)),
    "question marks": "".join(f"? {number}\n" for number in range(600)),
}


@pytest.mark.parametrize("kind", MANY)
def test_what_has_too_many_values_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read_yaml(MANY[kind], "x.yaml")) > 300
    monkeypatch.setattr(yamltext, "MOST_VALUES", 1_000)
    with pytest.raises(cs.ConfigError, match=r"^x\.yaml: the document has over 1,000 values\.$"):
        read_yaml(MANY[kind], "x.yaml")


def test_only_values_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yamltext, "MOST_VALUES", 1_000)
    assert read_yaml("# one, two:\n" * 2_000 + "a: 1", "x.yaml") == {"a": 1}


@pytest.mark.parametrize(
    ("value", "text"),
    [("no", "'no'"), (3, "3"), ([1, "a"], "[1, 'a']"), ({"b": 1, "a": None}, "{'a': None, 'b': 1}")],
)
def test_values_are_shown_as_python_writes_them(value: object, text: str) -> None:
    assert brief_repr(value) == text


def test_what_is_shown_of_a_value_is_bounded() -> None:
    nested: list[Any] = ["x" * 1000] * 10
    for _ in range(30):
        nested = [nested] * 10
    for value in (nested, "x" * 10**6, {str(i): nested for i in range(1000)}, 1 << 100_000, b"x" * 10**6):
        assert len(brief_repr(value, 60)) <= 60


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("4E6", 4e6), ("1.0e9", 1e9), ("2.5e4", 2.5e4), ("-1.e+2", -100.0), ("1.5e-3", 1.5e-3), ("1.e", "1.e"), ("v1.0e9", "v1.0e9"),
     ("1.2.3e4", "1.2.3e4")],
)  # fmt: skip
def test_numbers_with_an_exponent_are_numbers(text: str, value: object) -> None:
    """As in YAML 1.2: in YAML 1.1, a dot and a sign of the exponent make a number, and without one of them it is a string."""
    assert read_yaml(f"lr: {text}", "x.yaml") == {"lr": value}


@pytest.mark.parametrize("text", ["1e3", "1.0e9", ".5e3", "1.5E+2", "1e-3", "x1e3", "1.0e+9"])
def test_a_text_that_looks_like_a_number_is_written_as_a_text(text: str) -> None:
    assert read_yaml(dump_yaml({"a": text, text: 1}), "x.yaml") == {"a": text, text: 1}
