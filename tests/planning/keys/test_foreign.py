"""Captures in the spelling of other tools: refused, with ours, and possible as plain letters."""

from __future__ import annotations

import re

import pytest

from ckptsurgeon.errors import PatternError
from ckptsurgeon.planning.keys.infer_rules import left_out, rules_for
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.rules import parse_rule, rules_from_lines, target_rule


@pytest.mark.parametrize(
    ("rule", "said", "ours", "literal"),
    [
        (r"re:lm_(head)=out_\1", r"\1", "re:lm_(head)=out_{1}", r"\\ is a literal backslash"),
        (r"re:lm_(head)=out_$1", "$1", "re:lm_(head)=out_{1}", r"\$ is a literal dollar"),
        (r"re:lm_(head)=out_${1}", "${1}", "re:lm_(head)=out_{1}", r"\$ is a literal dollar"),
        (r"re:lm_(head)=out_\g<1>.w", r"\g<1>", "re:lm_(head)=out_{1}.w", r"\\ is a literal backslash"),
        (r"re:lm_(?P<what>head)=out_\g<what>", r"\g<what>", "re:lm_(?P<what>head)=out_{what}", r"\\ is"),
        (r"re:lm_(?P<what>head)=out_$<what>", "$<what>", "re:lm_(?P<what>head)=out_{what}", r"\$ is"),
        (r"re:(a)(b)=\2.\1", r"\2", "re:(a)(b)={2}.{1}", r"\\ is"),
        (r"a.*.b=\1.b", r"\1", "a.*.b={1}.b", r"\\ is"),
        ("a.{n}=b.${n}", "${n}", "a.{n}=b.{n}", r"\$ is"),
        (r"re:lm_(?P<n>head)=out_$n", "$n", "re:lm_(?P<n>head)=out_{n}", r"\$ is a literal dollar"),
        (r"re:lm_(?P<n>head)=out_${n}", "${n}", "re:lm_(?P<n>head)=out_{n}", r"\$ is a literal dollar"),
        (r"re:lm_(?P<n>head)=out_$+{n}", "$+{n}", "re:lm_(?P<n>head)=out_{n}", r"\$ is a literal dollar"),
        ("a.{n}=b.$n.c", "$n", "a.{n}=b.{n}.c", r"\$ is"),
        (r"a.*=b.{\1}", r"{\1}", "a.*=b.{1}", r"\\ is"),
        (r"h.(\d+).w=layers.\1.w", r"\1", r"re:h.(\d+).w=layers.{1}.w", r"\\ is"),
        (r"h(.*)=x\1", r"\1", "re:h(.*)=x{1}", r"\\ is"),
    ],
)
def test_a_capture_in_another_spelling_is_an_error_with_ours(rule: str, said: str, ours: str, literal: str) -> None:
    with pytest.raises(PatternError) as error:
        parse_rule(rule)
    assert f": {said} is not a capture here." in error.value.message
    assert error.value.hint.startswith(f"Write {ours}; {literal}")
    assert parse_rule(ours)


@pytest.mark.parametrize(
    ("rule", "hint"),
    [
        (r"lm_head=out_\1", "The pattern captures nothing;"),
        (r"re:(a)=\2", "The pattern captures {1};"),
        (r"re:(a)(b)=\0", "The pattern captures {1} to {2};"),
        (f"a={'$' * 50_000}1", "The pattern captures nothing;"),
        ("=$1", "The pattern captures nothing;"),
    ],
)
def test_what_the_pattern_does_not_catch_is_not_proposed(rule: str, hint: str) -> None:
    with pytest.raises(PatternError, match="is not a capture") as error:
        parse_rule(rule)
    assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("rule", "key", "name"),
    [
        (r"a=\$1", "a", "$1"),
        (r"a=\\1", "a", "\\1"),
        (r"a=\$\{1\}", "a", "${1}"),
        (r"a.*=b.\${1}", "a.x", "b.$x"),
        ("a=b$", "a", "b$"),
        ("a=$b", "a", "$b"),
        ("a.{n}=b.$m", "a.1", "b.$m"),
        (r"a.{n}=b.\$n", "a.1", "b.$n"),
        ("$1=b", "$1", "b"),
    ],
)
def test_a_dollar_or_a_backslash_that_is_meant_can_be_written(rule: str, key: str, name: str) -> None:
    assert parse_rule(rule).apply(key) == name


@pytest.mark.parametrize("name", ["$1", "\\1", "${1}", "$<n>", "\\g<1>", "x$12.w", "$n", "b.3.$n", "$+{n}"])
def test_found_rules_spell_names_that_look_like_captures(name: str) -> None:
    rules = rules_for({"a.w": name, name: "a.w"})
    assert not left_out({"a.w": name, name: "a.w"}, rules)


def test_found_rules_over_layers_spell_a_dollar_before_the_name_of_their_own_capture() -> None:
    names = {f"a.{i}.w": f"b.{i}.$n" for i in range(4)}
    assert not left_out(names, rules_for(names))


def test_operations_say_it_of_their_own_names() -> None:
    with pytest.raises(PatternError, match=re.escape("operation 1 (split): $1 is not a capture")) as error:
        target_rule(KeyPattern("h.{n}.attn"), "h.$1.q", "operation 1 (split)")
    assert error.value.hint.startswith("Write h.{1}.q; ")


def test_a_line_of_a_map_file_is_named() -> None:
    (line,) = rules_from_lines([r"re:(a)=\1"], "names.map")
    with pytest.raises(PatternError, match=r"^names\.map, line 1: "):
        parse_rule(line)
