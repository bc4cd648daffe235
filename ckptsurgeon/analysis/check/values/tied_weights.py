"""Checks that tied tensors that are stored separately are equal, such as the embedding and the output layer."""

from __future__ import annotations

from collections.abc import Iterator

from ....util.text import escape, together
from ..check import Check
from ..report import Found, Status
from ..subject import Subject

__all__ = ["CHECK"]

ADVICE = (
    "If the model should use the stored output layer, set tie_word_embeddings to false in config.json; otherwise "
    "remove this layer."
)

CLASS_ADVICE = "Keep only the right tensor, under one of the keys, or change the setting in config.json that ties them."


def _run(subject: Subject) -> Iterator[Found]:
    yield from _by_configuration(subject)
    yield from _by_class(subject)


def _by_class(subject: Subject) -> Iterator[Found]:
    """Yield a finding for each group of tensors that the class ties, but that are stored with different values."""
    known = {frozenset(pair) for pair in subject.tied}
    for keys in subject.of_class.tied:
        stored = [key for key in keys if key in subject.measured]
        first, *others = stored or [""]
        one = subject.measured.get(first)
        differing = [
            key for key in others
            if one is not None and frozenset((first, key)) not in known
            and subject.tensors[key].dtype == subject.tensors[first].dtype
            and (subject.measured[key].crc32, subject.measured[key].nbytes) != (one.crc32, one.nbytes)
        ]  # fmt: skip
        if differing:
            said = f"the model's class ties {escape(first)} and {together(differing)}, but their values differ"
            yield Found(
                Status.FAIL,
                f"{said}: a loader that ties them uses only one of these tensors",
                CLASS_ADVICE,
                (first, *differing),
            )


def _by_configuration(subject: Subject) -> Iterator[Found]:
    for embedding, head in subject.tied:
        one, other = (subject.measured.get(key) for key in (embedding, head))
        if one is None or other is None or subject.tensors[embedding].dtype != subject.tensors[head].dtype:
            continue
        if (one.crc32, one.nbytes) != (other.crc32, other.nbytes):
            differ = f"{escape(embedding)} and {escape(head)} are tied by the configuration, but their values differ"
            said = f"{differ}: transformers before version 5 ignores {escape(head)}"
            yield Found(Status.FAIL, said, ADVICE, (embedding, head))


def _against(subject: Subject) -> str:
    return "" if subject.tied or subject.of_class.tied else "no tied tensor is stored twice"


CHECK = Check("ties", "tied tensors are equal", _run, _against)
