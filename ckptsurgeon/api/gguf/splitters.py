"""Finds llama.cpp's name of a pre-tokeniser, which splits texts into the parts within which byte-level BPE merges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["SPLITTERS", "is_of_bytes", "sections", "splitter"]

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_OF_DEEPSEEK = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_OF_GPT_4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
SPLITTERS: Mapping[tuple[str, ...], str] = {
    (_WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST,): "qwen2",
    _OF_DEEPSEEK: "deepseek-v3",
    _OF_GPT_4O: "gpt-4o",
}
"""llama.cpp's names of pre-tokenisers, by the regular expressions that they apply in order (src/llama-vocab.cpp)."""


def sections(section: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the single steps of a section of tokenizer.json, such as ``pre_tokenizer``, in their order."""
    if isinstance(section, dict):
        parts = next((section[name] for name in ("pretokenizers", "processors") if name in section), None)
        yield from (one for one in (parts if isinstance(parts, list) else [section]) if isinstance(one, dict))


def is_of_bytes(document: Mapping[str, Any]) -> bool:
    """Return whether a tokeniser merges bytes (byte-level BPE) and not characters."""
    return any(one.get("type") == "ByteLevel" for one in sections(document.get("pre_tokenizer")))


def splitter(document: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokeniser of a tokenizer.json; '' if it is not known."""
    *splits, last = list(sections(document.get("pre_tokenizer"))) or [{}]
    if last.get("type") != "ByteLevel" or any(one.get("type") != "Split" for one in splits):
        return ""
    if not splits:
        return "gpt-2" if last.get("use_regex", True) is True else ""
    return SPLITTERS.get(tuple(map(_expression, splits)), "")


def _expression(split: Mapping[str, Any]) -> str:
    """Return the regular expression of a split as text; '' if it has none.

    Line ends are written as escapes, a backslash and a letter, as in llama.cpp's list.
    """
    pattern = split.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    return text.replace("\r", r"\r").replace("\n", r"\n") if isinstance(text, str) else ""
