"""Reads SpeechBrain's label encoder: lines ``'label' => 0``, then a line of equals signs and the encoder's settings.

``speechbrain.dataio.encoder.CategoricalEncoder.save`` writes such files.
"""

from __future__ import annotations

import ast
import re

from ..errors import ConfigError
from .vocabulary import ALL, HEAD, MOST, Marks, Vocabulary, checked, lines_of

__all__ = ["VOCABULARY"]

_BETWEEN = " => "


class _SpeechBrain:
    marks = (Marks(content=((re.compile(b" => "), HEAD), (re.compile(b"\n===="), ALL))),)
    """Lines of labels and indices, and the line of equals signs."""

    def read(self, name: str, data: bytes) -> Vocabulary:
        """Return the labels sorted by index, which need not be the order of the lines.

        Raises ConfigError if an index is missing or occurs twice.
        """
        numbers: dict[int, str] = {}
        for place, line in enumerate(lines_of(name, data), 1):
            if line.startswith("===="):
                break
            if line:
                label, number = _entry(name, place, line)
                if number in numbers:
                    raise ConfigError(
                        f"{name}, line {place}: the token index {number} is already used on an earlier line."
                    )
                numbers[number] = label
        absent = next((i for i in range(len(numbers)) if i not in numbers), None)
        if absent is not None:
            raise ConfigError(f"{name} has {len(numbers)} labels, but no label with the index {absent}.")
        return checked(name, [numbers[i] for i in range(len(numbers))])


def _entry(name: str, place: int, line: str) -> tuple[str, int]:
    label, between, number = line.rpartition(_BETWEEN)
    if not between or not (number.isascii() and number.isdigit() and int(number[:12]) < MOST):
        said = f"{name}, line {place}: {line!r:.60} is not a label with an index."
        raise ConfigError(said, hint="Write each line as 'LABEL' => INDEX.")
    try:
        value = ast.literal_eval(label)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        said = f"{name}, line {place}: {label!r:.60} is not a label."
        raise ConfigError(said, hint="Write a label as a string in quotes.") from None
    return value if isinstance(value, str) else repr(value), int(number[:12])


VOCABULARY = _SpeechBrain()
