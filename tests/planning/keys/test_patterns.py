"""What a pattern matches, against a slow and obvious reference."""

from __future__ import annotations

import fnmatch
import itertools
import re

import pytest
from fnmatch2 import fnmatchcase2
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.errors import PatternError
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.renaming import KeyMatcher
from ckptsurgeon.planning.keys.spelling import numberless

from ...helpers.depth import examples_of


def matches(pattern: str, key: str) -> bool:
    single = KeyPattern(pattern).matches(key)
    matcher = KeyMatcher([KeyPattern(pattern)])
    assert bool(matcher.match(key)) == single
    assert matcher.hits([key]) == [[key] * single]
    return single


@pytest.mark.parametrize(
    ("pattern", "literal"),
    [
        ("a.b", "a.b"), (r"a\*.b", "a*.b"), ("a.*", ""), ("a.**", ""), ("**.a", ""), ("{a,b}.c", ""), ("a.{n}", ""),
        ("re:a", ""),
    ],
)  # fmt: skip
def test_a_pattern_without_wildcards_is_literal(pattern: str, literal: str) -> None:
    assert KeyPattern(pattern).literal == literal


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("decoder", "decoder", True),
        ("decoder", "decoder.weight", True),
        ("decoder", "decoder.a.b", True),
        ("decoder", "decoder2.weight", False),
        ("decoder", "encoder.decoder.weight", False),
        ("encoder.layers.*", "encoder.layers.0.attn.weight", True),
        ("encoder.layers.*", "encoder.layers", False),
        ("*.weight", "a.weight", True),
        ("*.weight", "a.b.weight", False),
        ("**.weight", "a.b.weight", True),
        ("**.weight", "weight", True),
        ("a.**.b", "a.b", True),
        ("a.**.b", "a.x.y.b", True),
        ("a.**.b", "a.x.y.c", False),
        ("**", "anything.at.all", True),
        ("a.**", "a", True),
        ("layer?.weight", "layer1.weight", True),
        ("layer?.weight", "layer10.weight", False),
        ("[a-c]x", "bx", True),
        ("[!a-c]x", "bx", False),
        ("[]a]x", "]x", True),
        ("[a-]x", "-x", True),
        ("{q,k,v}_proj", "k_proj.weight", True),
        ("{q,k,v}_proj", "o_proj.weight", False),
        ("l.{0..11}.w", "l.11.w", True),
        ("l.{0..11}.w", "l.12.w", False),
        ("l.{0..11}.w", "l.01.w", False),
        ("l.{n}.w", "l.7.w", True),
        ("l.{n}.w", "l.07.w", False),
        ("l.{n}.w", "l.x.w", False),
        ("l.{n}.x{n}", "l.3.x3.w", True),
        ("l.{n}.x{n}", "l.3.x4.w", False),
        ("{,ema_}w", "ema_w", True),
        ("{,ema_}w", "w", True),
        (r"\*.w", "*.w", True),
        (r"\*.w", "a.w", False),
        (r"a\{b\}", "a{b}", True),
        ("layer_1/weights", "layer_1/weights", True),
        ("layer_*/weights", "layer_1/weights", True),
        ("layer_1", "layer_1/weights", False),
        ("a[+-9]", "a/", True),
        (r"a\\b", r"a\b", True),
        ("a*c", "abc", True),
        ("*", "x\ny", True),
        ("re:a.*", "a.b.c", True),
        ("re:a", "a.b", False),
        ("re:.*bias", "x.bias", True),
        (r"a\.b", "a.b.weight", True),
        (r"a\.b", "a.c", False),
        (r"{\*\*.a,b}", "**.a.w", True),
        (r"{\re:a,b}", "re:a", True),
        ("{enc.a,dec}.w", "enc.a.w", True),
        ("{enc.a,dec}.w", "dec.w", True),
        ("{enc.a,dec}.w", "enc.w", False),
        ("[\x80-\uffff]", "/", False),
        ("*/", "x\ue000", False),
        ("\ue000*", "/x", False),
        ("[!\ue000]", "/", True),
        ("re:[[a]", "[", True),
    ],
)
def test_what_a_pattern_matches(pattern: str, key: str, expected: bool) -> None:
    assert matches(pattern, key) is expected


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "empty"),
        ("a..b", "empty segment"),
        (".a", "empty segment"),
        ("a.", "empty segment"),
        ("a[bc", "never closed"),
        ("a{b,c", "never closed"),
        ("a]", "closes nothing"),
        ("a}", "closes nothing"),
        ("a**b", "whole segment"),
        ("x[c-a]", "has a reversed range"),
        ("x{5..2}", "is reversed"),
        ("x{1}", "neither a list"),
        ("x{}", "neither a list"),
        ("x{0..99999999}", "expands to more than"),
        ("{0..999}{0..999}", "expands to more than"),
        ("{**.embed_tokens,lm_head}", r"'\*\*' is in a list, whose words are literal text"),
        ("a.{b,**}.c", r"'\*\*' is in a list"),
        ("{*_proj,lm_head}", r"'\*' is in a list"),
        ("{q?,k}", r"'\?' is in a list"),
        ("{[qk]_proj,v}", r"'\[' is in a list"),
        ("{a,{b,c}}", r"'\{' is in a list"),
        ("{{n},b}", "neither a list"),
        ("{re:a,b}", "re: is inside a list"),
        ("x.{0..3,5}", "0..3 in a list is not a range"),
        ("{a..b,c}", "a..b in a list has an empty segment"),
        ("a\\", "ends in a backslash"),
        ("re:(", "not a regular expression"),
        ("re:a{99999999999}", "repetition number is too large"),
        ("re:(?a)(?u)x", "flags are incompatible"),
        ("re:" + "(" * 9000 + ")" * 9000, "nested too deeply"),
    ],
)
def test_what_is_no_pattern_says_why(pattern: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        KeyPattern(pattern)


def test_the_longest_part_counts_and_earlier_wildcards_take_little() -> None:
    caught = KeyPattern("a.**.b.*").captures("a.b.b.c.b.q.w")
    assert caught is not None
    assert (caught.doubles, caught.stars, caught.rest) == (("b.b.c",), ("q",), ".w")
    caught = KeyPattern("a.**").captures("a.x.y")
    assert caught is not None
    assert (caught.doubles, caught.rest) == (("x.y",), "")


# The reference: a pattern is opened into plain alternatives, and each is tried on every module of the key.


def reference(pattern: str, key: str) -> bool:
    parts = key.split(".")
    heads = [parts[: i + 1] for i in range(len(parts))]
    return any(_walk(plain.split("."), head) for plain in _opened(pattern) for head in heads)


def _opened(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    words = [str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)] if numbers else found[1].split(",")
    return [w for word in words for w in _opened(pattern[: found.start()] + word + pattern[found.end() :])]


def _walk(pattern: list[str], key: list[str]) -> bool:
    if not pattern:
        return not key
    if pattern[0] == "**":
        return any(_walk(pattern[1:], key[i:]) for i in range(len(key) + 1))
    return bool(key) and fnmatch.fnmatchcase(key[0], pattern[0]) and _walk(pattern[1:], key[1:])


words = st.sampled_from(["a", "b", "ab", "0", "1", "11", "aa"])
key_strategy = st.lists(words, min_size=1, max_size=5).map(".".join)
atoms = st.sampled_from(["a", "b", "*", "?", "[ab]", "[!a]", "{a,b}", "{0..1}", "1", "{b,11,}"])
segments = st.one_of(
    st.just("**"),
    st.lists(atoms, min_size=1, max_size=3).map("".join).filter(lambda s: not any("**" in word for word in _opened(s))),
)
"""An empty alternative between two stars opens into "**", which the reference would take for a segment of its own."""
pattern_strategy = st.lists(segments, min_size=1, max_size=4).map(".".join)


@examples_of(300)
@given(pattern_strategy, key_strategy)
def test_a_pattern_matches_what_the_reference_matches(pattern: str, key: str) -> None:
    assert matches(pattern, key) is reference(pattern, key)


@examples_of(100)
@given(st.lists(pattern_strategy, min_size=1, max_size=6), st.lists(key_strategy, max_size=12))
def test_many_patterns_together_match_what_each_matches_alone(patterns: list[str], keys: list[str]) -> None:
    matcher = KeyMatcher([KeyPattern(pattern) for pattern in patterns])
    for key in keys:
        assert matcher.match(key) == {i for i, pattern in enumerate(patterns) if reference(pattern, key)}


@examples_of(200)
@given(st.text(st.characters(exclude_characters=".", exclude_categories=["Cs"]), min_size=1, max_size=6))
def test_an_escaped_text_matches_only_itself(text: str) -> None:
    pattern = "".join(f"\\{c}" if c in "\\*?[]{}" else c for c in text)
    pattern = f"\\{pattern}" if pattern.startswith("re:") else pattern
    assert matches(pattern, text)
    assert not matches(pattern, text + "x")


@pytest.mark.long
def test_92000_keys_against_50_patterns_need_few_states() -> None:
    keys = [f"model.layers.{i // 40}.sub.{i % 40}.weight" for i in range(92_000)]
    patterns = [KeyPattern(f"model.layers.{{{i}..{i + 5}}}.**") for i in range(20)]
    patterns += [KeyPattern(f"**.sub.{i}.*") for i in range(20)] + [KeyPattern("**.w*")] * 10
    matcher = KeyMatcher(patterns)
    hits = matcher.hits(keys)
    assert [len(h) for h in hits[:20]] == [240] * 20
    assert [len(h) for h in hits[20:40]] == [2300] * 20
    assert [len(h) for h in hits[40:]] == [92_000] * 10
    assert len(matcher._states) < 2000  # work is by distinct segment, not by key


# What fnmatch2 does, which is why only single segments are left to it.


def test_fnmatch2_s_own_double_star_misses_keys() -> None:
    assert not fnmatchcase2("a/x/a/b", "**/a/b")


def test_fnmatch2_knows_no_braces() -> None:
    assert not fnmatchcase2("a", "{a,b}")


def test_fnmatch2_s_tail_is_unanchored() -> None:
    assert fnmatchcase2("a/b/c", "*")
    assert fnmatchcase2("a/b", "a")


def test_fnmatch2_matches_a_single_segment_as_fnmatch_does() -> None:
    for text, glob in itertools.product(["a", "ab", "b1", ""], ["*", "a*", "?", "[ab]?", "[!a]*"]):
        assert fnmatchcase2(text, glob) == fnmatch.fnmatchcase(text, glob)


@pytest.mark.parametrize(
    ("key", "pattern"),
    [
        ("h.0.mlp.3.weight", "h.{a}.mlp.{b}.weight"),
        ("h.007.w0", "h.007.w0"),
        ("a*b.{0}.1", r"a\*b.\{0\}.{a}"),
        (".".join("0" * 28), ".".join(f"{{{name}}}" for name in [*"abcdefghijklmnopqrstuvwxyz", "a1", "b1"])),
    ],
)
def test_a_key_becomes_a_pattern_for_other_numbers(key: str, pattern: str) -> None:
    assert numberless(key) == pattern
    assert KeyPattern(pattern).matches(key)
