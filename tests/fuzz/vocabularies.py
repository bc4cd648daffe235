"""Vocabularies and tokenizers of all toolkits: each file in turn, by its name, and the rows that it is mapped to."""

from pathlib import Path

from ckptsurgeon.vocabulary.mapping import map_tokens
from ckptsurgeon.vocabulary.vocabulary import read_vocabulary

from .target import Files, Target, in_parts, numbered

OURS = "tokens.txt"
PIECES = b"".join(b"\n" + bytes([len(row)]) + row for row in (b"\n\x05<unk>\x15\0\0\0\0", b"\n\1a\x15\0\0\x80\xbf"))


def use(folder: str) -> None:
    ours = read_vocabulary(OURS)
    for path in sorted(Path(folder).iterdir()):
        map_tokens(read_vocabulary(path.name), ours, new="subword")


def make() -> Files:
    words = (
        b'{"model": {"type": "WordPiece", "vocab": {"a": 0, "##b": 1}}, "added_tokens": [{"id": 2, "content": "<s>"}]}'
    )
    return {
        OURS: b"<unk>\na\nb\n",
        "alphabet.txt": b"# text\na\nb\n\\#\n",
        "config.yaml": b"token_list: [a, b]\n",
        "labels.txt": b"'a' => 0\n'b' => 1\n================\n'starting_index' => 0\n",
        "spm.model": PIECES,
        "tokenizer.json": words,
        "unigram.json": b'{"model": {"type": "Unigram", "vocab": [["a", -1.0], ["b", -2]]}}',
        "vocab.json": b'{"a": 0, "b": 1}',
    }


TARGET = Target(in_parts("vocabularies", use), make, numbered)
