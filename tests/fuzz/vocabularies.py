"""Vocabularies and tokenizers: texts of a token a line, JSON, YAML, sentencepiece; the first byte chooses the name."""

import os
import tempfile

from tests.fuzz.target import fuzz

# isort: split
# what is imported before atheris is not instrumented
from ckptsurgeon.vocabulary.read import read_vocabulary

NAMES = ("vocab.txt", "vocab.json", "tokenizer.json", "tokens.yaml", "spm.model", "alphabet.txt")


def run(data: bytes) -> None:
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    with open(name, "wb") as file:
        file.write(data[1:])
    read_vocabulary(name)


if __name__ == "__main__":
    os.chdir(tempfile.mkdtemp())
    texts = [b"a\nb\n<unk>\n", b'{"a": 0, "b": 1}', b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}',
             b"[a, b]\n", b"\n\x0b\n\x01a\x15\0\0\x80\xbf\x18\1", b"# text\na\nb\n"]  # fmt: skip
    fuzz(run, [bytes([number]) + text for number, text in enumerate(texts)])
