"""Ordinary texts are no pickles, in files and inside pickles; a pickle that is spelled as text is found among them."""

from __future__ import annotations

import base64
import json
import pickle
import random
import re
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from .hostile import CANARY, command, payload

Run = Callable[..., Any]
ROOT = Path(__file__).parents[3]
SAID = """a model card of the speech recognition in 48 languages I is it Paris Vienna Lima For class import from corpus
cat car (in) (is) [a] {b} Sam Nina London go get put pop top to be or not . , : ; - _ ( ) [ ] { } # ' " 0 1 2.5 -3 'quoted'"""
WORDS = re.split(r"\s+", SAID)


def tokens(source: random.Random, letters: str) -> Iterator[str]:
    while True:
        yield "".join(source.choices(letters, k=source.randint(1, 7)))


def english(source: random.Random) -> str:
    return "\n".join(" ".join(source.choices(WORDS, k=source.randint(0, 12))) for _ in range(200))


def table(source: random.Random) -> str:
    rows = (
        ",".join([source.choice(WORDS), f"{source.random():.4f}", str(source.randint(-9, 999))]) for _ in range(200)
    )
    return "path,duration,speaker\n" + "\n".join(rows)


def vocabulary(letters: str) -> Callable[[random.Random], str]:
    def make(source: random.Random) -> str:
        few = tokens(source, letters)
        return "\n".join(dict.fromkeys(next(few) for _ in range(source.choice([50, 30_000]))))

    return make


def merges(source: random.Random) -> str:
    few = tokens(source, string.ascii_lowercase)
    return "#version: 0.2\n" + "\n".join(f"{next(few)} {next(few)}" for _ in range(3000))


TEXTS: dict[str, Callable[[random.Random], str]] = {
    "English": english,
    "CSV": table,
    "base64": lambda source: base64.encodebytes(source.randbytes(3000)).decode(),
    "base64 in one line": lambda source: base64.b64encode(source.randbytes(3000)).decode(),
    "hex": lambda source: source.randbytes(3000).hex("\n", 20),
    "JSON": lambda source: json.dumps({token: i for i, token in enumerate(source.choices(WORDS, k=50))}, indent=1),
    "JSON lines": lambda source: "\n".join(json.dumps(source.choices(WORDS, k=5)) for _ in range(50)),
    "vocabulary": vocabulary(string.ascii_letters + string.digits),
    "vocabulary with signs": vocabulary(string.ascii_letters + string.digits + string.punctuation),
    "vocabulary of small letters": vocabulary(string.ascii_lowercase),
    "letters": lambda source: "\n".join(source.sample(string.printable[:95], 95)),
    "merges": merges,
    "numbers": lambda source: "\n".join(
        str(source.choice([source.random(), source.randint(0, 99)])) for _ in range(500)
    ),
    "any characters": lambda source: "".join(source.choices(string.printable, k=3000)),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_is_no_pickle(kind: str) -> None:
    source = random.Random(kind)
    texts = [TEXTS[kind](source) for _ in range(20)]
    for text in texts[:7]:
        Path("notes.txt").write_text(text)
        found = cs.scan("notes.txt")
        assert (found.ok, found.found[0].format) == (True, "text"), (text[:200], found.found)
    Path("x.pkl").write_bytes(pickle.dumps({"texts": texts, "bytes": [text.encode() for text in texts]}))
    found = cs.scan("x.pkl")
    assert (found.ok, found.verdict) == (True, cs.Verdict.PLAIN), found.beyond[:3]


@pytest.mark.long
def test_this_project_is_no_pickle() -> None:
    texts = [path.read_text() for end in ("md", "py", "toml", "txt") for path in ROOT.glob(f"[a-z]*/**/*.{end}")]
    assert len(texts) > 300
    for i, text in enumerate(texts):
        Path(f"{i}.txt").write_text(text)
    Path("x.pkl").write_bytes(pickle.dumps([*texts, *(line for text in texts for line in text.split("\n"))]))
    found = cs.scan(".")
    assert found.ok, found.beyond[:3]
    assert found.verdict is cs.Verdict.PLAIN


@pytest.mark.parametrize(
    "text",
    [
        "I am\ncat\ndog\n(tR.",
        "For\ncat\ndog\n(tR.",
        "Sam\ncat\ndog\n(tR.",
        "Lima\ncat\ndog\n(tR.",
        "Nget\ncat\ndog\n(tR.",
        "Nput\ncat\ndog\n(tR.",
        "to be\ncat\ndog\n(tR.",
        "import os\ncat\ndog\n(tR.",
        "cat\ndog\n0g7\n.",
    ],
)
def test_what_no_reader_takes_for_a_pickle_is_none(text: str) -> None:
    """Each ends, for every reader, before anything is called; read on behind that, it would seem to call."""
    Path("notes.txt").write_text(text)
    assert cs.scan("notes.txt").ok
    Path("x.pkl").write_bytes(pickle.dumps([text]))
    assert cs.scan("x.pkl").ok


def hidden(text: str) -> dict[str, bytes]:
    """A pickle of protocol 0 that reads as a text nearly to its end; each acts when it is loaded."""
    lines = text.splitlines() or [""]
    plain = [line.encode("ascii", "ignore").replace(b"\\", b"/") for line in lines]
    call = b"cposix\nsystem\n(S'" + command().encode() + b"'\ntR."
    behind = text.encode()
    return {
        "unicode lines": b"".join(b"V" + line + b"\n0" for line in plain) + call + behind,
        "quoted lines": b"".join(b"S" + repr(line.decode()).encode() + b"\n0" for line in plain) + call + behind,
        "list of lines": b"(" + b"".join(b"V" + line + b"\n" for line in plain) + b"l0" + call + behind,
        "put and fetched": b"V" + plain[0] + b"\np+1\n0g 1 \ng1_\n".replace(b"1_", b"01") + b"00" + call + behind,
        "numbers": b"I\x00\n0I0x7f\n0I1_0\n0I5\x00five\n0L-7L\n0F1e3\n0Fnan\n0" + call + behind,
        "instance": b"(S'" + command().encode() + b"'\niposix\nsystem\n." + behind,
        "not ended": call[:-1] + b"\n" + behind,
        "import alone": b"V" + plain[0] + b"\n0cposix\nsystem\n." + behind,
        "import that is dropped": b"cposix\nsystem\n0." + behind,
    }


@pytest.mark.each_value
@pytest.mark.parametrize("how", hidden(""))
@pytest.mark.parametrize("kind", TEXTS)
def test_a_pickle_that_is_spelled_as_a_text_is_found(kind: str, how: str, ckpt: Run) -> None:
    data = hidden(TEXTS[kind](random.Random(kind)))[how]
    Path("notes.txt").write_bytes(data)
    done = ckpt("scan", "notes.txt")
    assert (done.code, "posix.system" in done.out) == (1, True), (data[:200], done)
    Path("x.pkl").write_bytes(pickle.dumps({"text": data, "number": 1}))
    assert cs.scan("x.pkl").verdict is cs.Verdict.CODE
    assert not Path(CANARY).exists()


@pytest.mark.costly
@pytest.mark.parametrize("how", hidden(""))
def test_a_pickle_that_is_spelled_as_a_text_is_one(how: str) -> None:
    Path("x.pkl").write_bytes(hidden(english(random.Random(0)))[how])
    loads = "import pickle, posix, sys\nwith open('x.pkl', 'rb') as f: pickle.Unpickler(f).load()\n"
    watch = (
        "import sys\nsys.addaudithook(lambda name, args: name == 'pickle.find_class' and open('found', 'w').close())\n"
    )
    subprocess.run([sys.executable, "-c", watch + loads], capture_output=True, check=False)
    assert Path("found").exists()
    assert Path(CANARY).exists() is not how.startswith("import")


def test_a_folder_of_a_model_with_texts_is_fine_and_a_pickle_among_them_is_found(ckpt: Run) -> None:
    source = random.Random(0)
    texts = {
        "README.md": "(in\nEnglish)\n" + english(source), "vocab.txt": vocabulary(string.ascii_lowercase)(source), "merges.txt": merges(source),
        "tokenizer.json": TEXTS["JSON"](source), "modeling.py": "import os\nclass A:\n    pass\n", ".gitattributes": "*.bin filter=lfs -text\n",
        "LICENSE": english(source), "special_tokens_map.json": '{"unk_token": "<unk>"}', "notes.csv": table(source),
    }  # fmt: skip
    for name, text in texts.items():
        Path(name).write_text(text)
    done = ckpt("scan", ".")
    assert done.code == 0, done
    assert "UNKNOWN" not in done.out
    Path("notes.txt").write_bytes(payload(0))
    done = ckpt("scan", ".")
    assert (done.code, "notes.txt" in done.out) == (1, True)
