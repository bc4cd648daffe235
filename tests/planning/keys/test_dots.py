"""A dot too many in a pattern or a target: the error shows what was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptsurgeon.errors import PatternError
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.rules import parse_rule, rules_from_lines

Run = Callable[..., Any]
WHY = "a name has no dot at its ends."


@pytest.mark.parametrize(
    ("rule", "written"),
    [
        ("llm.=", "--map llm="),
        (".llm=", "--map llm="),
        ("llm.=model.", "--map llm=model"),
        ("=model.", "=model"),
        ("a.{b.c,d}.=x", "--map a.{b.c,d}=x"),
        ("a=.x.{0..2}.", "a=x.{0..2}"),
    ],
)
def test_a_rule_is_shown_without_its_dots(rule: str, written: str) -> None:
    with pytest.raises(PatternError, match="empty segment") as error:
        parse_rule(rule)
    assert error.value.hint == f"Write {written}: {WHY}"


def test_two_dots_in_a_row_are_shown_as_one() -> None:
    for rule, written in (("a..b=c", "--map a.b=c"), ("a=b..c", "a=b.c")):
        with pytest.raises(PatternError) as error:
            parse_rule(rule)
        assert error.value.hint == f"Write {written}: a name has no two dots in a row."


def test_a_line_of_a_map_file_is_shown_as_it_stands_there() -> None:
    with pytest.raises(PatternError, match=r"^names\.map, line 1: ") as error:
        parse_rule(rules_from_lines(["llm.="], "names.map")[0])
    assert error.value.hint == f"Write llm=: {WHY}"


@pytest.mark.parametrize("text", [".", "..", "a.[b.", "{a.", "a.b]."])
def test_what_is_no_pattern_without_dots_either_is_not_proposed(text: str) -> None:
    with pytest.raises(PatternError) as plain:
        KeyPattern(text)
    with pytest.raises(PatternError) as error:
        KeyPattern.given(text, "--include ")
    assert error.value.hint == plain.value.hint


@pytest.mark.parametrize(
    ("args", "written"),
    [
        (("filter", "a.pth", "--exclude", "enc.", "-o", "x.pth"), "--exclude enc"),
        (("filter", "a.pth", "--include", ".enc", "-o", "x.pth"), "--include enc"),
        (("inspect", "a.pth", "--include", "enc."), "--include enc"),
        (("rename", "a.pth", "--map", "enc.=", "-o", "x.pth"), "--map enc="),
        (("transplant", "a.pth", "a.pth", "--on-mismatch", "enc.=init", "-n"), "--on-mismatch enc=init"),
        (("transplant", "a.pth", "a.pth", "--reinit", "enc.", "-n"), "--reinit enc"),
        (("transplant", "a.pth", "a.pth", "--require", "enc.", "-n"), "--require enc"),
        (("transplant", "a.pth", "a.pth", "--explain", "enc."), "--explain enc"),
        (
            ("transplant", "a.pth", "a.pth", "--vocab", "t.txt:t.txt", "--vocab-keys", "enc.=0", "-n"),
            "--vocab-keys enc=0",
        ),
        (("merge", "a.pth", "a.pth", "-m", "linear", "--weights", "1,1", "--on-mismatch", "enc.=skip", "-n"),
         "--on-mismatch enc=skip"),
        (("merge", "a.pth", "a.pth", "-m", "linear", "--param", "weight:enc.=1", "-n"), "--param weight:enc=1"),
        (("lora", "extract", "a.pth", "a.pth", "--rank", "1", "--include", "enc.", "-n"), "--include enc"),
        (("rename", "a.pth", "--operations", "ops.yaml", "-n"), "enc"),
        (("apply", "recipe.yaml", "-n"), "assert enc"),
    ],
)  # fmt: skip
def test_every_option_that_takes_a_pattern_shows_it_without_the_dot(
    args: tuple[str, ...], written: str, ckpt: Run
) -> None:
    torch.save({"enc.w": torch.ones(2, 2)}, "a.pth")
    Path("t.txt").write_text("a\nb\n")
    Path("ops.yaml").write_text("- {scale: enc., by: 2}\n")
    Path("recipe.yaml").write_text("verb: convert\nsource: a.pth\nassert: {enc.: 1}\n")
    done = ckpt(*args)
    assert done.code == 2, done
    assert f"Write {written}: {WHY}" in done.err
