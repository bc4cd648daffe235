"""Rules found from pairs of names: they rename every key as wanted, and are few."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.planning.keys import infer_rules as induce
from ckptsurgeon.planning.keys.infer_rules import left_out, rules_for
from ckptsurgeon.planning.keys.renaming import rename
from ckptsurgeon.planning.keys.rules import parse_rule, rules_from_lines

from ...helpers.depth import examples_of

LEFT_OUT = re.compile("[\\n\\r\x1b\\u2028\\ud800]")
"""What no rule gives a name."""

part = st.sampled_from(["a", "b", "w", "0", "1", "2", "11", "x{y}", "s*r", "e=q", "l_0/1", "l_2/1", "l_#/1"])
key = st.lists(part, min_size=1, max_size=4).map(".".join)


def applied(names: dict[str, str]) -> dict[str, str]:
    done = rename(list(names), [parse_rule(text) for text in rules_for(names)]).names
    return {key: name for key, (name,) in done.items()}


@pytest.mark.long
@examples_of(150)
@given(st.dictionaries(key, key, max_size=8))
def test_the_rules_rename_every_key_as_wanted(names: dict[str, str]) -> None:
    assert applied(names) == names


odd_part = st.sampled_from(
    [
        "",
        " ",
        "#",
        "a",
        "w",
        "re:(",
        "re:a",
        "=",
        "\\",
        "{n}",
        "**",
        "[x",
        "a #b",
        " a ",
        "\ufeff",
        "x\ty",
        "0/#",
        "#/1",
        "/",
    ]
)
odd_key = st.one_of(
    st.lists(odd_part, min_size=1, max_size=4).map(".".join),
    st.text("ab01./=#\\*?[]{}: \n\r\t\x1b\u2028\ufeff\ud800\u0663", max_size=6),
)


@pytest.mark.long
@examples_of(400)
@given(st.dictionaries(odd_key, odd_key, max_size=8))
def test_odd_names_are_renamed_as_wanted_or_left_out(names: dict[str, str]) -> None:
    rules = rules_for(names)
    assert rules_from_lines(io.StringIO("".join(f"{rule}\n" for rule in rules), newline=None)) == rules
    done = rename(list(names), [parse_rule(text) for text in rules]).names
    left = left_out(names, rules)
    assert {key: done[key] for key in names} == {key: (key,) if key in left else (name,) for key, name in names.items()}
    assert all(LEFT_OUT.search(names[key]) or ".." in f".{names[key]}." for key in left)


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("re:(", "a", r"\re:(=a"),
        ("a..b", "c", r"re:a\.\.b=c"),
        (".", "c", r"re:\.=c"),
        ("", "c", "re:=c"),
        ("a #b", "c #d", r"a \#b=c \#d"),
        ("#a", "#b", r"\#a=\#b"),
        (" a ", " b ", "\\ a = b\\ "),
        ("a\nb", "c", r"re:a\u000ab=c"),
        ("a", "b..c", ""),
        ("a", "", ""),
        ("a", "b\nc", ""),
    ],
)
def test_odd_names_are_spelled_where_they_can_be(old: str, new: str, rule: str) -> None:
    assert rules_for({old: new}) == ([rule] if rule else [])
    assert left_out({old: new}, rules_for({old: new})) == ([] if rule else [old])


def test_a_moved_module_with_odd_keys_is_one_rule() -> None:
    names = {f"enc.{odd}": f"net.{odd}" for odd in ("a..b", "", "x\ny", " #", "re:(")}
    assert rules_for(names) == ["enc=net"]


def test_a_moved_module_is_one_rule() -> None:
    names = {f"module.{i}.w": f"{i}.w" for i in range(9)}
    assert rules_for(names) == ["module="]
    names = {f"encoder.{i}.w": f"model.encoder.{i}.w" for i in range(9)} | {"head.w": "head.w"}
    assert rules_for(names) == ["encoder=model.encoder"]


def test_layers_are_one_rule_whatever_else_has_numbers() -> None:
    names = {f"layers.{i}.linear{j}.w": f"blocks.{i}.ff.{j}.w" for i in range(12) for j in (1, 2)}
    assert rules_for(names) == ["layers.{n}.linear1=blocks.{n}.ff.1", "layers.{n}.linear2=blocks.{n}.ff.2"]
    names = {f"a.{i}.b.{j}.w": f"c.{i}.d.{j}.w" for i in range(3) for j in range(4)}
    assert rules_for(names) == ["a.{n}.b=c.{n}.d"]


def test_shifted_layers_are_one_rule() -> None:
    names = {f"up.{i}.w": f"all.{i + 6}.w" for i in range(6)} | {f"down.{i}.w": f"all.{i}.w" for i in range(6)}
    assert sorted(rules_for(names)) == ["down=all", "up.{n}=all.{n+6}"]


def test_keys_that_stay_are_left_alone() -> None:
    assert rules_for({"a.w": "a.w", "b.w": "b.w"}) == []
    names = {"enc.a": "enc.a", "enc.b": "enc.c"}
    assert rules_for(names) == ["enc.b=enc.c"]


def test_more_keys_than_can_be_tried_are_renamed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(induce, "TRIES", 40)
    names = {f"a.{i}.w": f"b.{(i * 7) % 50}.w" for i in range(50)} | {"x": "x.y", "x.y": "x"}
    assert applied(names) == names


@pytest.mark.long
def test_rules_are_found_for_a_large_model() -> None:
    """A rule that holds for the first layer is not sought again for each of the others."""
    names = {f"m.layers.{i}.sub.{j}.w": f"n.layers.{i}.part.{j}.w" for i in range(100) for j in range(200)}
    assert rules_for(names) == ["m.layers.{n}.sub=n.layers.{n}.part"]


def test_numbers_in_keys_with_slashes_are_captured() -> None:
    """As in JAX's arrays, whose keys are paths; a number that is no layer's stays as it is."""
    names = {f"enc/layer_{n}/conv_2/{old}": f"layers.{n}.conv.{new}" for n in range(12) for old, new in (
        ("kernel", "weight"), ("bias", "bias"))}  # fmt: skip
    assert rules_for(names) == [
        "enc/layer_{n}/conv_2/kernel=layers.{n}.conv.weight",
        "enc/layer_{n}/conv_2/bias=layers.{n}.conv.bias",
    ]
    assert rules_for({"a_1/x": "b.1", "a_#/x": "c", "a_01/x": "d"}) != []
    assert applied({"a_1/x": "b.1", "a_#/x": "c", "a_01/x": "d"}) == {"a_1/x": "b.1", "a_#/x": "c", "a_01/x": "d"}
