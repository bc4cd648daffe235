"""Language models in the ARPA format: the probabilities of KenLM, and messages on files that are not right."""

from __future__ import annotations

import gzip
import math
import re
from pathlib import Path

import pytest

import ckptsurgeon as cs
from ckptsurgeon.trainer.tasks._ngrams import NGrams, read_arpa

ARPA = """\
a comment of SRILM

\\data\\
ngram 1=6
ngram 2=4
ngram 3=2

\\1-grams:
-1.1\t<unk>
-99\t<s>\t-0.4
-0.7\t</s>
-0.6\ta\t-0.3
-0.8\tb\t-0.2
-0.9\tc\t-0.1

\\2-grams:
-0.5\t<s> a\t-0.25
-0.35\ta b\t-0.15
-0.45\tb a\t-0.05
-0.2\tc </s>

\\3-grams:
-0.12\t<s> a b
-0.22\ta b c

\\end\\
"""
"""Of "a b c" the end, "b c", was pruned, as SRILM does."""
OF_KENLM = {
    "a b c": [-0.5, -0.12, -0.22, -0.2],
    "a b a b c": [-0.5, -0.12, -0.6, -0.4, -0.22, -0.2],
    "c c b a": [-1.3, -1.0, -0.9, -0.45, -1.05],
    "a x b": [-0.5, -1.65, -0.8, -0.9],
    "": [-1.1],
    "b c a b": [-1.2, -1.1, -0.7, -0.35, -1.05],
}
"""The common logarithms that ``full_scores`` of kenlm 0.3.0 gave for the same file: those of the words and of the end."""


def written(text: str = ARPA) -> str:
    Path("lm.arpa").write_text(text)
    return "lm.arpa"


def log10s(model: NGrams, sentence: str) -> list[float]:
    state, found = model.begin(), []
    for word in sentence.split():
        log_prob, state = model.next(state, word)
        found.append(log_prob)
    return [one / math.log(10) for one in (*found, model.end(state))]


@pytest.mark.parametrize("sentence", OF_KENLM)
def test_probabilities_are_those_of_kenlm(sentence: str) -> None:
    assert log10s(read_arpa(written()), sentence) == pytest.approx(OF_KENLM[sentence], abs=1e-6)


def test_a_file_may_be_compressed() -> None:
    Path("lm.arpa.gz").write_bytes(gzip.compress(ARPA.encode()))
    model = read_arpa("lm.arpa.gz")
    assert log10s(model, "a b c") == pytest.approx(OF_KENLM["a b c"], abs=1e-6)
    assert (model.order, sorted(model.words)) == (3, ["a", "b", "c"])


def test_the_order_of_the_lines_does_not_matter() -> None:
    head, first, second, third = re.split(r"(?=\\\d-grams:)", ARPA)
    lines = [line for line in second.splitlines()[1:] if line]
    turned = "\n".join(["\\2-grams:", *lines[::-1], "", ""])
    model = read_arpa(written(head + first + turned + third))
    assert log10s(model, "a b a b c") == pytest.approx(OF_KENLM["a b a b c"], abs=1e-6)


def test_single_words_have_their_own_probability_and_unknown_ones_that_of_kenlm() -> None:
    model = read_arpa(written("\\data\\\nngram 1=2\n\n\\1-grams:\n-0.5\tja\n-0.2 nein\n\n\\end\\\n"))
    assert log10s(model, "ja nein ja") == pytest.approx([-0.5, -0.2, -0.5, 0.0])  # there is no mark for the end
    assert log10s(model, "doch") == pytest.approx([-100.0, 0.0])


@pytest.mark.parametrize(("old", "new", "why"), [
    ("-0.8\tb\t-0.2", "-0.8\tb\tx", "line 13: x is not a backoff weight"),
    ("-0.8\tb", "nan\tb", "line 13: nan is not the logarithm of a probability"),
    ("-0.8\tb", "0.8\tb", "line 13: 0.8 is not the logarithm of a probability"),
    ("-0.35\ta b", "-0.35\ta d", "line 18: the word d is not in the 1-grams"),
    ("-0.35\ta b\t-0.15", "-0.35\ta", "line 18: the line must have a probability, 2 words and, optionally, a backoff weight"),
    ("-0.35\ta b", "-0.35\tb a", "line 22: one of the 2-grams above this line occurs twice"),
    ("-0.22\ta b c", "-0.22\tc a b", "line 26: a 3-gram above this line begins with 2 words that are not a 2-gram"),
    ("ngram 2=4", "ngram 2=5", "line 22: there are 4 2-grams, but the header says 5"),
    ("ngram 2=4\n", "", "line 5: ngram 2 is missing"),
    ("\\2-grams:", "\\4-grams:", "line 16: \\2-grams: is missing"),
    ("\\end\\", "", "line 26: the file ends before"),
    ("\\data\\", "", "lm.arpa is not a language model in the ARPA format"),
    ("-0.8\tb", "-0.8\t" + "b" * 70_000, "line 13: the line is too long"),
])  # fmt: skip
def test_a_wrong_line_is_named(old: str, new: str, why: str) -> None:
    with pytest.raises(cs.FormatError) as found:
        read_arpa(written(ARPA.replace(old, new, 1)))
    assert why in found.value.said


def test_what_is_not_text_is_an_error() -> None:
    Path("lm.arpa").write_bytes(ARPA.encode().replace(b"\tb\t", b"\t\xff\t", 1))
    with pytest.raises(cs.FormatError, match="line 13: the line is not UTF-8"):
        read_arpa("lm.arpa")
    Path("lm.bin").write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(100))
    with pytest.raises(cs.FormatError, match=r"binary file of KenLM.*the \.arpa file"):
        read_arpa("lm.bin")
    Path("cut.gz").write_bytes(gzip.compress(ARPA.encode())[:60])
    with pytest.raises(cs.ConfigError, match=r"cut\.gz cannot be read"):
        read_arpa("cut.gz")
    packed = gzip.compress(ARPA.encode())
    Path("cut.gz").write_bytes(packed[:20] + b"\xff" * 20 + packed[40:])
    with pytest.raises(cs.ConfigError, match=r"cut\.gz cannot be read"):
        read_arpa("cut.gz")
    with pytest.raises(cs.FormatError, match=r"line 12: the file ends before \\end\\"):
        read_arpa(written("".join(ARPA.splitlines(keepends=True)[:12])))
    with pytest.raises(cs.ConfigError, match=r"none\.arpa does not exist"):
        read_arpa("none.arpa")
