"""Rules that rename, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptsurgeon.errors import PatternError
from ckptsurgeon.planning.keys.pattern_parser import Segment
from ckptsurgeon.planning.keys.renaming import check_shadowed, rename
from ckptsurgeon.planning.keys.rules import parse_rule, rules_from_lines


@pytest.mark.parametrize(
    ("rule", "key", "expected"),
    [
        ("encoder=model.encoder", "encoder.a.b", "model.encoder.a.b"),
        ("encoder=model.encoder", "encoder2.a", None),
        ("module=", "module.a.b", "a.b"),
        ("=model", "a.b", "model.a.b"),
        ("model.*.attn.**=encoder.*.self_attn.**", "model.3.attn.q.weight", "encoder.3.self_attn.q.weight"),
        ("a.**.b=x.**.y", "a.b", "x.y"),
        ("a.**.b=x.**.y", "a.q.r.b.c", "x.q.r.y.c"),
        ("a.*.*=b.{2}.{1}", "a.x.y", "b.y.x"),
        ("l.{n}=l.{n+12}", "l.3.w", "l.15.w"),
        ("l.{n}=l.{2*n}", "l.3.w", "l.6.w"),
        ("l.{n}=l.{2n}", "l.3.w", "l.6.w"),
        ("l.{n}=l.{2n+1}", "l.3.w", "l.7.w"),
        ("l.{n2}=l.{3n2}", "l.3.w", "l.9.w"),
        ("l.{n}=l.{n//2}.{n%2}", "l.5.w", "l.2.1.w"),
        ("h{n}=layers.{n}", "h7.w", "layers.7.w"),
        (r"re:(\w+)\.gamma=*.weight", "norm.gamma", "norm.weight"),
        (r"re:l(?P<n>\d+)\.(.*)=layers.{n}.{2}", "l4.w", "layers.4.w"),
        (r"re:l(?P<n>\d+)\.(.*)=layers.{n+1}.{2}", "l4.w", "layers.5.w"),
        ("a=b=c", "a=b", "c"),
        (r"a\*b=c", "a*b.w", "c.w"),
    ],
)
def test_what_a_rule_makes_of_a_key(rule: str, key: str, expected: str | None) -> None:
    assert parse_rule(rule).apply(key) == expected


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("encoder", "no '='"),
        ("=", "has neither FROM nor TO"),
        ("a=b.**", "more '\\*\\*' than the pattern captures"),
        ("a.*=b.*.*", "more '\\*' than the pattern captures"),
        ("a.*={2}", r"there is no capture \{2\}: the pattern has 1"),
        ("l.{n}=l.{m}", "does not capture"),
        ("l.{n}=l.{n**9}", "not arithmetic"),
        ("l.{n}=l.{n.__class__}", "not arithmetic"),
        ("l.{n}=l.{__import__('os')}", "not arithmetic|does not capture"),
        ("l.{n}=l.{n+}", "not arithmetic"),
        ("a=b..c", "empty segment"),
        ("a=b?", "no meaning"),
        ("a=***", "is not a capture"),
        ("l.{n}=l.{2m}", "does not capture"),
        ("l.{n}=l.{2 n}", "not arithmetic"),
        ("l.{n}=l.{2n,2m}", "uses m, which the pattern does not capture"),
        ("l.{n}=l.{n,q}", "uses q, which the pattern does not capture"),
        ("l={a,,b}", "not arithmetic"),
        ("l={a.b,c..d}", "not arithmetic"),
        ("l={5..2}", "is reversed"),
        ("l={0..99999}", "too long"),
        ("l={0..999}.{0..999}", "expands to more than 10000 names"),
        ("l.{2n}=l.{n}", "is arithmetic, which only a target may contain"),
    ],
)
def test_what_is_no_rule_says_why(rule: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        parse_rule(rule)


@pytest.mark.parametrize(
    ("rule", "key", "names"),
    [
        ("l.{n}=l.{2n,2n+1}", "l.3.w", ("l.6.w", "l.7.w")),
        ("l.{n}=l.{n,n+12}", "l.3.w", ("l.3.w", "l.15.w")),
        ("l.{n}=l.{n,0}", "l.3.w", ("l.3.w", "l.0.w")),
        ("l.0=l.{0..2}", "l.0.w", ("l.0.w", "l.1.w", "l.2.w")),
        ("l=l.{3,5}", "l.w", ("l.3.w", "l.5.w")),
        ("a={b,c}.{d,e}", "a.w", ("b.d.w", "b.e.w", "c.d.w", "c.e.w")),
        ("enc={student.enc,teacher.0.enc}", "enc.w", ("student.enc.w", "teacher.0.enc.w")),
        ("enc.**.w={q,k}.**.w", "enc.a.w", ("q.a.w", "k.a.w")),
        ("l.{n}=m", "x.3.w", ()),
    ],
)
def test_a_list_in_a_target_gives_a_key_several_names(rule: str, key: str, names: tuple[str, ...]) -> None:
    assert parse_rule(rule).names(key) == names


@pytest.mark.parametrize(
    ("rule", "key", "why"),
    [
        ("l.{n}=l.{n,n}", "l.3.w", "gives the key l.3.w the name l.3.w twice"),
        ("l.{n}=l.{2n,n+1}", "l.1.w", "the name l.2.w twice"),
        ("l.{n}=l.{n-12}", "l.3.w", "below zero"),
        ("l.{n}=l.{10//n}", "l.0.w", "division by zero"),
        ("l.{n}=l.{n-1}", "l.0.w", "is -1, below zero"),
        ("module=", "module", "would make the name of the key module empty"),
        (r"re:(?P<n>\w+)={n+1}", "abc", "must be a number"),
    ],
)
def test_what_cannot_be_applied_says_why(rule: str, key: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        parse_rule(rule).apply(key)


def test_the_first_rule_wins_and_none_sees_another_s_result() -> None:
    rules = [parse_rule("a.x=b"), parse_rule("a=c"), parse_rule("b=d")]
    done = rename(["a.x.w", "a.y.w", "b.w"], rules)
    assert done.names == {"a.x.w": ("b.w",), "a.y.w": ("c.y.w",), "b.w": ("d.w",)}
    assert done.used == (0, 1, 2)


def test_a_shadowed_rule_is_an_error() -> None:
    rules = [parse_rule("a=b"), parse_rule("a.{w,v}=c")]
    here, there = rename(["a.w"], rules), rename(["a.v", "x"], rules)
    with pytest.raises(PatternError, match="never applies: earlier rules rename all of its 2 keys"):
        check_shadowed(rules, [here, there])


def test_a_rule_that_one_source_needs_may_be_shadowed_in_another() -> None:
    rules = [parse_rule("a.{n}=b.{n}"), parse_rule("a=c")]
    check_shadowed(rules, [rename(["a.0"], rules), rename(["a.x"], rules)])


def test_a_map_file_has_a_rule_a_line_and_comments() -> None:
    lines = ["\ufeffa=b\n", "# names", "", "  c=d  ", "e=f # a note", "g=h\t# another", "i#j=k", " # only a note"]
    assert rules_from_lines(lines) == ["a=b", "c=d", "e=f", "g=h", "i#j=k"]
    assert [rule.place for rule in rules_from_lines(lines, "x.map")][:2] == ["x.map, line 1", "x.map, line 4"]


def test_a_blank_and_a_comment_sign_behind_a_backslash_are_kept_in_a_map_file() -> None:
    lines = ["\\ a=b\\  \n", "a \\#b=c\n", "a=b\\\\  \n", "a=b\\\n"]
    assert rules_from_lines(lines) == ["\\ a=b\\ ", "a \\#b=c", "a=b\\\\", "a=b\\"]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("encoder", "x.map, line 2: rule 'encoder' has no '='"),
        ("=", "x.map, line 2: rule '=' has neither FROM nor TO"),
        ("a[=b", r"x.map, line 2: pattern 'a\[': '\[' is never closed"),
        ("a=b.*", r"x.map, line 2: rule 'a=b.\*': the target has more"),
    ],
)
def test_an_error_in_a_map_file_says_where(line: str, why: str) -> None:
    (rule,) = rules_from_lines(["", line], "x.map")
    with pytest.raises(PatternError, match=f"^{why}"):
        parse_rule(rule)


def test_what_a_rule_of_a_map_file_cannot_do_says_where() -> None:
    first, second = (parse_rule(rule) for rule in rules_from_lines(["l.{n}=l.{n-1}", "l.*=k"], "x.map"))
    with pytest.raises(PatternError, match=r"^x.map, line 1: rule .* on l.0: \{n-1\} is -1"):
        rename(["l.0"], [first])
    with pytest.raises(PatternError, match=r"^x.map, line 2: rule 'l.\*=k' never applies"):
        check_shadowed([first, second], [rename(["l.1"], [first, second])])


def test_a_brace_that_closes_nothing_does_not_hide_the_equals_sign() -> None:
    with pytest.raises(PatternError, match="'}' closes nothing"):
        parse_rule("a}=b")
    assert parse_rule("a\\}=b").apply("a}.w") == "b.w"


def test_a_rule_that_the_matcher_and_the_pattern_judge_otherwise_is_our_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = parse_rule("a=b")
    monkeypatch.setattr(type(rule.pattern), "captures", lambda self, key: None)
    with pytest.raises(PatternError, match="report this"):
        rename(["a.w"], [rule])


names = st.lists(st.sampled_from(["a", "b", "layers", "0", "12", "weight"]), min_size=1, max_size=5).map(".".join)


@given(names)
def test_moving_a_module_and_back_is_the_identity(key: str) -> None:
    moved = parse_rule("=new.place").apply(key)
    assert moved is not None
    assert parse_rule("new.place=").apply(moved) == key


@given(st.integers(0, 10**9), st.integers(0, 1000))
def test_adding_and_taking_away_is_the_identity(number: int, offset: int) -> None:
    there = parse_rule(f"l.{{n}}=l.{{n+{offset}}}").apply(f"l.{number}.w")
    assert there is not None
    assert parse_rule(f"l.{{n}}=l.{{n-{offset}}}").apply(there) == f"l.{number}.w"


def test_a_key_is_compared_with_few_of_many_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    original = Segment.matches
    monkeypatch.setattr(Segment, "matches", lambda self, text: compared.append(text) or original(self, text))
    rules = [parse_rule(f"layers.{n}.w=h.{n}.w") for n in range(500)]
    rules += [parse_rule("**.b=**.bias"), parse_rule("l*.{1,2}.c=x"), parse_rule("layers.{n}.d=h.{n}.d")]
    keys = [f"layers.{n}.{leaf}" for n in range(500) for leaf in "wb"] + ["layers.2.c", "layers.7.d"]
    names = rename(keys, rules).names
    assert all(names[f"layers.{n}.w"] == (f"h.{n}.w",) for n in range(500))
    assert all(names[f"layers.{n}.b"] == (f"layers.{n}.bias",) for n in range(500))
    assert (names["layers.2.c"], names["layers.7.d"]) == (("x",), ("h.7.d",))
    assert len(compared) < 10_000  # not 500 keys with 500 rules
