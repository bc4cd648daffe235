"""Finds the texts that a chat template writes into prompts, such as ``<start_of_turn>model``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

__all__ = ["chat_texts"]

TAG = re.compile(r"\{#.*?#\}|\{%[-+]?(.*?)[-+]?%\}|\{\{[-+]?(.*?)[-+]?\}\}", re.DOTALL)
"""Matches a comment, a statement or an expression of Jinja: https://jinja.palletsprojects.com/en/stable/templates/."""
STRING = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
ESCAPED = re.compile(r"\\(.)", re.DOTALL)
LETTERS = {"n": "\n", "t": "\t", "r": "\r"}
LONGEST = 1 << 20
"""At most this many characters of a template are read; real templates have a few thousand."""


def chat_texts(settings: Any) -> list[str]:
    """Return the texts that chat templates write into prompts: the text outside of tags, and each string in a tag.

    ``settings`` is a template, a list of ``{"name": …, "template": …}``, or an object with the templates as its values.
    Strings that a template compares with, such as "system", are also in the result.
    """
    if isinstance(settings, str):
        return list(dict.fromkeys(_texts(settings[:LONGEST])))
    rows = list(settings.values()) if isinstance(settings, dict) else settings if isinstance(settings, list) else []
    templates = [one.get("template") if isinstance(one, dict) else one for one in rows]
    return list(dict.fromkeys(text for one in templates if isinstance(one, str) for text in _texts(one[:LONGEST])))


def _texts(template: str) -> Iterator[str]:
    """Yield each text of a template, and each line of it, because transformers removes some line ends after tags."""
    start = 0
    for tag in TAG.finditer(template):
        yield from _lines(template[start : tag.start()])
        start = tag.end()
        for string in STRING.finditer(tag[1] or tag[2] or ""):
            yield from _lines(ESCAPED.sub(lambda one: LETTERS.get(one[1], one[1]), string[1] or string[2] or ""))
    yield from _lines(template[start:])


def _lines(text: str) -> Iterator[str]:
    yield from (one for one in (text, *text.splitlines(), text.strip()) if one)
