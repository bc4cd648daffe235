"""The page's key patterns mean what Python's mean: the same cases, and the same random ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ckptsurgeon.errors import PatternError
from ckptsurgeon.keys import KeyMatcher, KeyPattern
from ckptsurgeon.pages.html import PATTERNS, script_text

from ..keys.cases import CASES
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
    return {error: error.message, hint: error.hint, onlyHere: error.onlyHere};
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


def test_every_case_holds_in_the_browser(ask: Ask) -> None:
    wrong = []
    for case, answer in zip(CASES, ask((case.pattern, list(case.keys)) for case in CASES), strict=True):
        if case.error:
            wanted: Answer = {"error": case.error, "hint": case.hint, "onlyHere": False}
        elif case.page:
            refusal = f"this page cannot follow {case.pattern}: it has {case.page}."
            wanted = {"error": refusal, "hint": "ckpt itself can, on the command line.", "onlyHere": True}
        else:
            wanted = {"matched": bits(case.keys.values())}
        if answer != wanted:
            wrong.append((case, answer))
    assert not wrong


def expected(pattern: str, keys: Sequence[str]) -> Answer:
    """What Python says, which a page that cannot follow the pattern need not."""
    try:
        parsed = KeyPattern(pattern)
    except PatternError as error:
        return {"error": error.message, "hint": error.hint, "onlyHere": False}
    matcher = KeyMatcher([parsed])
    matched = [parsed.matches(key) for key in keys]
    assert matched == [bool(matcher.match(key)) for key in keys], pattern
    return {"matched": bits(matched)}


@pytest.mark.parametrize("kind", ["segments", "soup", "expression", "expression soup"])
def test_random_patterns_mean_the_same_in_the_browser(ask: Ask, kind: str) -> None:
    chance = random.Random(kind)
    questions = [(random_pattern(chance, kind), [random_key(chance) for _ in range(12)]) for _ in range(4000)]
    wanted = [expected(*question) for question in questions]
    answers = ask(questions)
    refused = [bool(answer.get("onlyHere")) and "matched" in said for answer, said in zip(answers, wanted, strict=True)]
    wrong = [
        (question, answer, said)
        for question, answer, said, only_here in zip(questions, answers, wanted, refused, strict=True)
        if answer != said and not only_here
    ]
    assert not wrong, f"{len(wrong)}, the first {wrong[:3]}"
    assert sum(refused) < len(questions) / 20
    assert sum("1" in said.get("matched", "") for said in wanted) > len(questions) / 50
    assert sum("0" in said.get("matched", "") for said in wanted) > len(questions) / 50


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
    assert long == expected("a" * 100_001, []) | {"onlyHere": False}
    assert longest == {"matched": "0"}
    assert deep["error"].startswith("this page cannot follow")
    assert groups == {"matched": "0"} or groups["onlyHere"]


def test_a_name_that_stands_twice_in_too_many_ways_is_given_up(ask: Ask) -> None:
    pattern = ".".join(["**.{a}.**.{b}.**.{c}"] * 2) + ".x"
    (answer,) = ask([(pattern, [f"{NUMBERS}.{NUMBERS}.x"])])
    assert answer == {"error": "a key takes this page too long to match.", "hint": "", "onlyHere": True}


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
