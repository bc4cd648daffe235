"""The page's key patterns mean what Python's mean, or are refused: the same cases, and the same random ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ckptsurgeon.analysis.page.html import PATTERNS, script_text
from ckptsurgeon.errors import PatternError
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.renaming import KeyMatcher

from ...planning.keys.cases import CASES
from .random_patterns import random_key, random_pattern

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

SCRIPT = f"""
const {{parsePattern, PatternError}} = (() => {{
  "use strict";
  {script_text(PATTERNS)}
  return {{parsePattern, PatternError}};
}})();
"""

# Texts travel as JSON in ASCII, as in the page itself: a driver mends lone surrogates.
ASK = """
return JSON.stringify(JSON.parse(arguments[0]).map(([pattern, keys]) => {
  try {
    const {text, matches} = parsePattern(pattern);
    return text === pattern ? {matched: keys.map(matches).map(Number).join("")} : {};
  } catch (error) {
    if (!(error instanceof PatternError && error instanceof Error)) return {crash: `${error.stack}`};
    return {error: error.message, hint: error.hint};
  }
}));
"""

Answer = dict[str, Any]
Ask = Callable[[Iterable[tuple[str, Sequence[str]]]], list[Answer]]


@pytest.fixture
def page(browser: Chrome, tmp_path: Path) -> Chrome:
    """A page whose one script is what reads patterns, inlined."""
    path = tmp_path / "page.html"
    path.write_text(f'<!doctype html><meta charset="utf-8"><title>p</title><script>{SCRIPT}</script>')
    browser.get(path.as_uri())
    return browser


@pytest.fixture
def ask(page: Chrome) -> Ask:
    """Ask the page for what each pattern says of its keys, all at once."""

    def asked(questions: Iterable[tuple[str, Sequence[str]]]) -> list[Answer]:
        answer: list[Answer] = json.loads(page.execute_script(ASK, json.dumps(list(questions))))
        return answer

    return asked


def bits(matched: Iterable[bool]) -> str:
    return "".join(str(int(match)) for match in matched)


def test_the_script_needs_nothing_else_of_the_program_and_can_be_inlined(page: Chrome) -> None:
    assert "</script" not in SCRIPT
    assert "<!--" not in SCRIPT
    told = (
        "return [typeof parsePattern, parsePattern.length, Object.keys(window).filter((name) => /attern/.test(name))]"
    )
    assert page.execute_script(told) == ["function", 1, []]


def expected(pattern: str, keys: Sequence[str]) -> Answer:
    """What Python says."""
    try:
        parsed = KeyPattern(pattern)
    except PatternError as error:
        return {"error": error.message, "hint": error.hint}
    matcher = KeyMatcher([parsed])
    matched = [parsed.matches(key) for key in keys]
    assert matched == [bool(matcher.match(key)) for key in keys], pattern
    return {"matched": bits(matched)}


def test_every_case_holds_in_the_browser(ask: Ask) -> None:
    answers = ask((case.pattern, list(case.keys)) for case in CASES)
    wanted: list[Answer] = [
        {"error": case.error, "hint": case.hint} if case.error else {"matched": bits(case.keys.values())}
        for case in CASES
    ]
    wrong = [found for found in zip(CASES, answers, wanted, strict=True) if found[1] != found[2]]
    assert not wrong


COMMAND_LINE = "On the command line ckpt reads all that Python does."
NUMBERED = "a character by its number or name"
ITSELF = "Write the character itself."


@pytest.mark.parametrize(
    ("pattern", "token", "why", "hint"),
    [
        (r"(?P<a>\d)x(?P<a>b)", "(?P<", "a name has ASCII letters and digits, and stands once", COMMAND_LINE),
        ("(?P<é>a)", "(?P<", "a name has ASCII letters and digits, and stands once", COMMAND_LINE),
        ("(?<n>a)", "(?<", "named groups are written (?P<name>…)", "Or write ( alone."),
        ("(?P<n>a)(?P=n)", "(?P=", "a reference to a group, or an octal number", COMMAND_LINE),
        (r"(\d)\1", r"\1", "a reference to a group, or an octal number", COMMAND_LINE),
        (r"\101", r"\1", "a reference to a group, or an octal number", COMMAND_LINE),
        ("a++", "++", "a possessive quantifier", COMMAND_LINE),
        ("a?+", "?+", "a possessive quantifier", COMMAND_LINE),
        ("a{2,3}+", "{2,3}+", "a possessive quantifier", COMMAND_LINE),
        ("a{1000000000}", "{1000000000}", "more than 999,999,999 times", COMMAND_LINE),
        ("a{1000000000,}", "{1000000000,}", "more than 999,999,999 times", COMMAND_LINE),
        ("(?>a|ab)c", "(?>", "an atomic group", COMMAND_LINE),
        ("(a)?b(?(1)c|d)", "(?(", "a conditional group", COMMAND_LINE),
        ("a(?#comment)", "(?#", "a comment", COMMAND_LINE),
        ("(?x) a", "(?", "the only flag is (?i), at the start", COMMAND_LINE),
        ("(?is)a", "(?", "the only flag is (?i), at the start", COMMAND_LINE),
        ("(?i:a)b", "(?", "the only flag is (?i), at the start", COMMAND_LINE),
        ("a(?i)b", "(?", "the only flag is (?i), at the start", COMMAND_LINE),
        ("(?i)é", "é", "with (?i) this page reads ASCII only", COMMAND_LINE),
        ("(?i)[a-é]", "é", "with (?i) this page reads ASCII only", COMMAND_LINE),
        ("(?<=ab?)c", "(?<=", "a lookbehind of more than characters and classes", COMMAND_LINE),
        ("(?<!a|bc)d", "(?<!", "a lookbehind of more than characters and classes", COMMAND_LINE),
        ("(?<=[])b*]*)", "(?<=", "a lookbehind of more than characters and classes", COMMAND_LINE),
        ("[a", "[", "a class that is never closed", r"Write \[ for the character."),
        ("[]", "[", "a class that is never closed", r"Write \[ for the character."),
        ("[^]", "[", "a class that is never closed", r"Write \[ for the character."),
        (r"[a-\d]", r"\d", "not a character in a class", COMMAND_LINE),
        (r"[\d-a]", r"\d", "not a character in a class", COMMAND_LINE),
        (r"[\b]", r"\b", "not a character in a class", COMMAND_LINE),
        (r"[\x41]", r"\x", "not a character in a class", COMMAND_LINE),
        (r"\N{BULLET}", r"\N", NUMBERED, ITSELF),
        (r"\x41", r"\x", NUMBERED, ITSELF),
        (r"\0", r"\0", NUMBERED, ITSELF),
        (r"a\B", r"\B", "not an escape of this page", r"Write \\ for a backslash."),
        (r"a\z", r"\z", "not an escape of this page", r"Write \\ for a backslash."),
        (r"\p{L}", r"\p", "not an escape of this page", r"Write \\ for a backslash."),
        ("a\\", "\\", "not an escape of this page", r"Write \\ for a backslash."),
    ],
)
def test_what_the_page_cannot_read_as_python_does_is_refused_in_words(
    ask: Ask, pattern: str, token: str, why: str, hint: str
) -> None:
    wanted = {"error": f"this page cannot read {token} in re:{pattern}: {why}.", "hint": hint}
    assert ask([(f"re:{pattern}", ["a"])]) == [wanted]


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "a)b",
        ")(",
        "*a",
        "a**",
        "a|*",
        "^*",
        "$*",
        r"\A*",
        r"\b*",
        "(?=a)*",
        "[b-a]",
        "(?i)[b-a]",
        "a{3,2}",
        "{,}",
        "(?i)*a",
    ],
)
def test_what_the_browser_cannot_read_is_told_in_its_own_words(ask: Ask, pattern: str) -> None:
    (answer,) = ask([(f"re:{pattern}", ["a"])])
    assert re.fullmatch(rf"this browser cannot follow re:{re.escape(pattern)}: [^:]+\.", answer["error"])


REFUSALS = ("this page cannot read", "this browser cannot follow")


@pytest.mark.parametrize("kind", ["segments", "soup", "expression", "expression soup"])
def test_random_patterns_mean_the_same_in_the_browser_or_are_refused(ask: Ask, kind: str) -> None:
    chance = random.Random(kind)
    questions = [(random_pattern(chance, kind), [random_key(chance) for _ in range(12)]) for _ in range(1500)]
    wanted = [expected(*question) for question in questions]
    answers = ask(questions)
    refused = [
        pattern.startswith("re:") and answer.get("error", "").startswith(REFUSALS)
        for (pattern, _), answer in zip(questions, answers, strict=True)
    ]
    wrong = [
        (question, answer, said)
        for question, answer, said, is_refused in zip(questions, answers, wanted, refused, strict=True)
        if answer != said and not is_refused
    ]
    assert not wrong, f"{len(wrong)}, the first {wrong[:3]}"
    assert kind == "expression soup" or sum(refused) < len(questions) / 20
    taken = [answer["matched"] for answer in answers if "matched" in answer]
    assert sum("1" in matched for matched in taken) > len(questions) / 50
    assert sum("0" in matched for matched in taken) > len(questions) / 50


A_KEY = ".".join(["a"] * 256)
NUMBERS = ".".join(str(number) for number in range(256))
LONG = "a" * 8192


@pytest.mark.parametrize(
    ("pattern", "key", "matched"),
    [
        (".".join(["**.a"] * 40) + ".c", A_KEY, "0"),
        (".".join(["**.*"] * 40) + ".c", A_KEY, "0"),
        (".".join(["**.{a,a.a}"] * 20) + ".c", A_KEY, "0"),
        (".".join(["**.a"] * 40), A_KEY, "1"),
        ("**.{n}.**.{n}.**.{m}.**.{m}.x", NUMBERS, "0"),
        ("**.{n}.**.{n}.**.{n}.**.{n}.**.x{m}", f"{NUMBERS}.x999", "0"),
        ("*a" * 100 + "b", LONG, "0"),
        ("*{a,aa,aaa}" * 8 + "b", LONG, "0"),
        ("*{a.a,.}" * 12 + "b", A_KEY, "0"),
        ("*{n}" * 100 + "b", "1" * 8192, "0"),
    ],
)
def test_hostile_patterns_and_keys_are_answered(ask: Ask, pattern: str, key: str, matched: str) -> None:
    assert ask([(pattern, [key])]) == [{"matched": matched}]


def test_a_pattern_of_too_many_characters_or_groups_is_refused(ask: Ask) -> None:
    long, longest, deep, groups = ask(
        (text, ["a"])
        for text in ["a" * 100_001, "a" * 100_000, "re:" + "(" * 9000 + ")" * 9000, "re:" + "(a)" * 30_000]
    )
    assert long == expected("a" * 100_001, [])
    assert longest == {"matched": "0"}
    for answer in (deep, groups):  # as much as the browser holds
        assert answer == {"matched": "0"} or answer["error"].startswith("this browser cannot follow")


def test_a_name_that_stands_twice_in_too_many_ways_is_given_up(ask: Ask) -> None:
    pattern = ".".join(["**.{a}.**.{b}.**.{c}"] * 2) + ".x"
    (answer,) = ask([(pattern, [f"{NUMBERS}.{NUMBERS}.x"])])
    assert answer == {"error": "a key takes this page too long to match.", "hint": ""}


def test_100000_keys_are_matched_one_by_one(page: Chrome) -> None:
    counted = """
    const {matches} = parsePattern(arguments[0]);
    let hits = 0;
    for (let i = 0; i < 100000; i++) hits += matches(`model.layers.${i / 1000 | 0}.experts.${i % 1000}.weight`);
    return hits;
    """
    assert page.execute_script(counted, "**.experts.{0..9}.*") == 1000
    assert page.execute_script(counted, "model.{layers,x}.{n}.**.weight") == 100_000
    assert page.execute_script(counted, "**.{n}.experts.{n}") == 100
    assert page.execute_script(counted, r"re:.*\.experts\.7\..*") == 100
