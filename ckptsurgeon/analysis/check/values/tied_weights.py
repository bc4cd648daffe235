"""An output layer that the configuration ties to the embedding, and that is stored too, has its values."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import escape
from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = "Set tie_word_embeddings to false in config.json if the stored output layer is meant; else remove it."


def _run(subject: Subject) -> Iterator[Found]:
    for embedding, head in subject.tied:
        one, other = (subject.measured.get(key) for key in (embedding, head))
        if one is None or other is None or subject.tensors[embedding].dtype != subject.tensors[head].dtype:
            continue
        if (one.crc32, one.nbytes) != (other.crc32, other.nbytes):
            differ = f"{escape(embedding)} and {escape(head)} are tied by config.json, but their values differ"
            said = f"{differ}: transformers before 5 ignores the latter"
            yield Found(Status.FAIL, said, ADVICE, (embedding, head))


def _against(subject: Subject) -> str:
    return "" if subject.tied else "no tied tensor is stored twice"


CHECK = Check("ties", "tied tensors are equal", _run, _against)
