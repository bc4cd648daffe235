"""What is said about a pattern that matches nothing, or less than was meant."""

from __future__ import annotations

from ckptsurgeon.keys import KeyPattern, deeper_note, nearest, unmatched

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
    assert said("decodr") == "--exclude decodr matches none of the 51 source keys. Did you mean decoder (3 keys)?"


def test_a_name_that_stands_deeper_says_so() -> None:
    assert "Did you mean **.bias? It matches 25 keys." in said("bias")
    assert "Did you mean **.attn? It matches 24 keys." in said("attn")


def test_numbers_count_as_one_name() -> None:
    assert nearest("encoder.layer.3.attn", KEYS)[0][0].startswith("encoder.layers.0.attn")


def test_nothing_near_says_how_the_keys_begin() -> None:
    assert said("zzzz").endswith("The source keys begin with encoder (48), decoder (3).")


def test_a_hostile_key_is_escaped() -> None:
    error = unmatched("--exclude x", KeyPattern("x"), ["\x1b[31mx.y", "‮evil"], "source")
    assert "\x1b" not in str(error)
    assert "‮" not in str(error)


def test_few_here_and_many_deeper_gets_a_note_with_both_counts() -> None:
    keys = ["bias", *KEYS]
    pattern = KeyPattern("bias")
    assert deeper_note("--exclude bias", pattern, 1, keys) == "--exclude bias matches 1 key; **.bias would match 26"
    assert deeper_note("--exclude decoder", KeyPattern("decoder"), 3, keys) == ""
    assert deeper_note("--exclude **.bias", KeyPattern("**.bias"), 26, keys) == ""
