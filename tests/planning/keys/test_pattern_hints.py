"""What is said about a pattern that matches nothing, or less than was meant."""

from __future__ import annotations

import re
import shlex

import pytest

from ckptsurgeon.errors import PlanError
from ckptsurgeon.planning.keys.pattern import KeyPattern
from ckptsurgeon.planning.keys.pattern_hints import chosen_keys, deeper_notes, nearest, unmatched

from ...helpers.pace import in_time

KEYS = [
    *(
        f"encoder.layers.{i}.{name}"
        for i in range(12)
        for name in ("attn.weight", "attn.bias", "norm.weight", "norm.bias")
    ),
    *(f"decoder.{name}" for name in ("embed.weight", "out.weight", "out.bias")),
]


def said(pattern: str) -> str:
    return str(unmatched(f"--exclude {pattern}", KeyPattern(pattern), KEYS, "source"))


def test_a_misspelt_module_names_the_nearest_with_its_count() -> None:
    assert said("decodr") == 'exclude="decodr" matches none of the 51 source keys. Did you mean decoder (3 keys)?'


def test_a_name_that_stands_deeper_says_so() -> None:
    assert "Did you mean **.bias? It matches 25 keys." in said("bias")
    assert "Did you mean **.attn? It matches 24 keys." in said("attn")


def test_numbers_count_as_one_name() -> None:
    assert nearest("encoder.layer.3.attn", KEYS)[0][0].startswith("encoder.layers.0.attn")


def test_upper_and_lower_case_count_as_one() -> None:
    assert said("Decoder").endswith("Did you mean decoder (3 keys)?")
    assert nearest("ENCODER.layers", KEYS)[0] == ("encoder.layers", 48)


@pytest.mark.long
def test_thirty_thousand_keys_are_compared_in_time() -> None:
    letters = "abcdefghij"
    keys = [f"model.{''.join(letters[int(c)] for c in str(i))}.weight" for i in range(30_000)] + ["model.decoder.w"]
    with in_time():
        assert nearest("model.decodr", keys)[0] == ("model.decoder", 1)
        assert nearest("x.y", [".".join("x" * 300_000)])


def test_nothing_near_says_how_the_keys_begin() -> None:
    assert said("zzzz").endswith("The source keys begin with encoder (48), decoder (3).")


@pytest.mark.parametrize(
    ("name", "like", "proposed"),
    [
        ("x[0]", "X[0]", r"x\[0\]"),
        ("trail ", "trail", "trail "),
        ("a..b", "a.b", r"re:a\.\.b"),
        ("new\nline", "new.line", r"re:new\u000aline"),
        ("re:x", "re;x", r"\re:x"),
    ],
)
def test_what_is_proposed_for_an_odd_name_matches_it_and_nothing_else(name: str, like: str, proposed: str) -> None:
    keys = [name, f"{name}y", "z0"]
    hint = unmatched(f"--exclude {like}", KeyPattern(like), keys, "source").hint
    (word,) = re.findall(r"Did you mean ('.*?'|\S+) \(\d+ keys?\)", hint)
    assert shlex.split(word) == [proposed]
    assert [key for key in keys if KeyPattern(proposed).matches(key)] == [name]


def test_a_hostile_key_is_escaped() -> None:
    error = unmatched("--exclude x", KeyPattern("x"), ["\x1b[31mx.y", "‮evil"], "source")
    assert "\x1b" not in str(error)
    assert "‮" not in str(error)


def noted(pattern: str, keys: list[str]) -> list[str]:
    return deeper_notes([(f"--exclude {pattern}", KeyPattern(pattern))], keys)


def test_few_here_and_many_deeper_gets_a_note_with_both_counts() -> None:
    keys = ["bias", *KEYS]
    assert noted("bias", keys) == ["--exclude bias matches 1 key; **.bias would match 26"]
    assert noted("bias", ["bias", "a.bias", "b.bias", "c.bias"]) == [
        "--exclude bias matches 1 key; **.bias would match 4"
    ]
    assert noted("bias", ["bias", "a.bias", "b.bias"]) == []
    assert noted("bias", KEYS) == []
    assert noted("decoder", keys) == []
    assert noted("**.bias", keys) == []
    assert noted("0", ["0.w", *(f"{name}.0.w" for name in "abcdef")]) == []


def idle(text: str) -> list[str]:
    return [note for note in deeper_notes([(f"--include {text}", KeyPattern(text))], KEYS) if "matches nothing" in note]


def test_a_word_of_a_list_that_matches_nothing_is_said_with_its_neighbour() -> None:
    assert idle("{encoder,decodr}.*") == [
        "decodr of --include {encoder,decodr}.* matches nothing; decoder (3 keys) is similar"
    ]
    assert idle("{encoder,decoder}.**.{weigth,bias}") == [
        "weigth of --include {encoder,decoder}.**.{weigth,bias} matches nothing; "
        "encoder.layers.0.attn.weight (1 key) is similar"
    ]
    assert idle("encoder.layers.{3,40}") == ["40 of --include encoder.layers.{3,40} matches nothing"]


def test_a_list_whose_words_all_match_and_a_range_get_no_note() -> None:
    assert idle("{encoder,decoder}.*") == []
    assert idle("encoder.layers.{0..40}") == []
    assert idle("decoder.{out,embed}.{weight,bias}") == []
    assert idle("{decoder.out,encoder.layers.3}") == []
    assert idle("{decoder,zz\\,z}") == ["zz,z of --include {decoder,zz\\,z} matches nothing"]


def test_a_pattern_is_shown_without_what_a_terminal_would_obey() -> None:
    pattern = KeyPattern("a\x1bc\nb")
    error = unmatched(f"assert {pattern.text}", pattern, ["a.b"], "output")
    assert error.message == r"assert a\x1bc\nb matches none of the 1 output key."


@pytest.mark.parametrize(("include", "exclude"), [((), ["encoder", "decoder"]), (["decoder"], ["decoder"])])
def test_patterns_that_leave_no_key_are_an_error(include: list[str], exclude: list[str]) -> None:
    with pytest.raises(PlanError, match="nothing is left: all 51 checkpoint keys are excluded"):
        chosen_keys(KEYS, include, exclude, whose="checkpoint")
    assert chosen_keys(KEYS, exclude=["encoder"]).keys == tuple(KEYS[48:])
