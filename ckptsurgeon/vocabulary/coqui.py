r"""Coqui STT's ``alphabet.txt``: a label a line, and the CTC blank behind the last (native_client/alphabet.cc).

Empty lines are skipped; a line that begins with ``#`` is a comment, ``\#`` the label ``#``, a line of one blank the
blank between words. Nothing is trimmed.
"""

from __future__ import annotations

from .plain import lines_of
from .vocabulary import Vocabulary, checked

__all__ = ["BLANK", "VOCABULARY"]

BLANK = "<blank>"


class _Coqui:
    def sniff(self, name: str, data: bytes) -> bool:
        """A file of the name that Coqui STT gives it."""
        return name.startswith("alphabet") and name.endswith(".txt")

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the labels and the blank."""
        lines = [line for line in lines_of(name, data) if line and not line.startswith("#")]
        return checked(name, [*("#" if line == "\\#" else line for line in lines), BLANK])


VOCABULARY = _Coqui()
