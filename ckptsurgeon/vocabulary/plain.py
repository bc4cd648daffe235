"""A text file with one token a line, as ESPnet's ``tokens.txt`` is: ``<blank>`` first, ``<sos/eos>`` last."""

from __future__ import annotations

from ..errors import ConfigError
from .vocabulary import Vocabulary, checked

__all__ = ["VOCABULARY", "lines_of"]


def lines_of(name: str, data: bytes) -> list[str]:
    """Return the lines of a UTF-8 text, whatever ends them; raises ConfigError."""
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is no list of tokens: it is no UTF-8.") from None
    if "\0" in text:
        raise ConfigError(f"{name} is no list of tokens: it holds zero bytes.")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


class _Plain:
    def sniff(self, name: str, data: bytes) -> bool:
        """Any text, when nothing else it is."""
        return True

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the lines that are not empty; ``token number`` lines, as of Kaldi's words.txt, in their order."""
        lines = [line for line in lines_of(name, data) if line]
        pairs = [line.rsplit(None, 1) for line in lines]
        if len(lines) > 1 and all(len(pair) == 2 and pair[1] == str(i) for i, pair in enumerate(pairs)):
            lines = [pair[0] for pair in pairs]
        return checked(name, lines)


VOCABULARY = _Plain()
