r"""Reads Coqui STT's ``alphabet.txt``, with one label on each line (native_client/alphabet.cc).

The CTC blank comes after the labels; Coqui STT's own files do not list it. Empty lines are skipped. A line that begins
with ``#`` is a comment; the label ``#`` is written ``\#``. A line with a single space is the label for the space
between words. White space is not trimmed.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..util.text import brief_repr
from .sentencepiece_listing import VOCABULARY as LISTING
from .vocabulary import Marks, Vocabulary, checked, has_marks, lines_of

__all__ = ["BLANK", "VOCABULARY", "alphabet_text"]

BLANK = "<blank>"
_ESCAPED = "\\#"


class _Coqui:
    marks = (Marks(r"alphabet.*\.txt"),)
    """The name alphabet.txt, or alphabet with a suffix (alphabet_ru.txt)."""

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the labels, followed by the CTC blank; raises ConfigError if a line before the last is the blank."""
        if has_marks(LISTING, name, data):
            labels = list(LISTING.read(name, data).tokens)
        else:
            lines = [line for line in lines_of(name, data) if line and not line.startswith("#")]
            labels = ["#" if line == _ESCAPED else line for line in lines]
        return checked(name, _with_blank(name, labels))


def _with_blank(name: str, labels: list[str]) -> list[str]:
    """Return the labels, and the blank after them; raises ConfigError if they have the blank before a label."""
    labels = labels[:-1] if labels[-1:] == [BLANK] else labels
    if BLANK in labels:
        raise ConfigError(
            f"{name} has {BLANK} before its last line, but the blank of an alphabet is its last output.",
            hint=f"Make {BLANK} the last line, or leave it out.",
        )
    return [*labels, BLANK]


def alphabet_text(labels: Sequence[str]) -> str:
    r"""Return the content of an alphabet.txt with these labels, which do not include the CTC blank.

    The label ``#`` is written ``\#``. Coqui STT itself writes ``#``, which its reader takes for a comment: then every
    later label moves up by one row. Raises ConfigError for labels that the format cannot contain: ``\#``, ``#a``, a
    label with a line break, an empty label.
    """
    text = "".join(f"{_ESCAPED if label == '#' else label}\n" for label in labels)
    odd = [label for label in labels if _unspelled(label)]
    if labels and labels[0].startswith("\ufeff"):
        odd.append(labels[0])  # it would be read as a byte order mark
    if odd:
        raise ConfigError(f"Coqui STT's alphabet.txt cannot contain the label {brief_repr(odd[0], 40)}.")
    return text


def _unspelled(label: str) -> bool:
    comment = label.startswith("#") and label != "#"
    return not label or label == _ESCAPED or comment or any(end in label for end in "\n\r\0")


VOCABULARY = _Coqui()
