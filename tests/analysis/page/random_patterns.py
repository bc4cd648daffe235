"""Random patterns and keys, of the characters that mean something to patterns, to Python or to browsers."""

from __future__ import annotations

import random

__all__ = ["random_key", "random_pattern"]

KEY = ["a", "b", "0", "1", "12", ".", ".", ".", *"ab01.é😀-[]{}*?!^/\\|, KſIk\n\ud83d\ue000"]
SEGMENT = [
    "a", "b", "0", "1", "*", "?", "[a-b]", "[!a]", "[]]", "[!]a]", "[+-9]", "{a,b}", "{0..3}", "{n}", "{m}", "{n}",
    "{,a}", "{a.b,c}", "\\.", "\\*", "-", "é", "😀", "\ud83d", "\n", "/", "{b\\,,\\}}", "[😀-😂]", "[\u0080-\uffff]",
]  # fmt: skip
BROKEN = [
    ".",
    ".",
    "**",
    ".**.",
    "\\",
    "[",
    "]",
    "{",
    "}",
    "{1}",
    "{n+1}",
    "!",
    "[a-",
    "a]",
    "[b-a]",
    "{3..1}",
    "'",
    '"',
]
OPENED = ["(", "(", "(?:", "(?P<n>"]
LOOK = ["(?=", "(?!", "(?<=", "(?<!"]
REFUSED = [
    "(?>",
    "(?(1)",
    "(?s:",
    "(?a:",
    "(?m:",
    "(?x: ",
    "(?i:",
    "(?-i:",
    "(?P<m>",
    "(?<n>",
    "(?#",
    "(?",
    "(?P",
    "\\B",
]
CHARACTER = ["a", "b", "0", "1", "\\.", "é", "K", "ſ", "I", "k", "s", "i", "\n", "-", "/"]
SET = [
    "\\w",
    "\\W",
    "\\d",
    "\\D",
    "\\s",
    "\\S",
    ".",
    ".*",
    "[^a]",
    "[\\w-]",
    "[^\\W]",
    "[a-z]",
    "[^a-z]",
    "[A-Z]",
    "[[a]",
]
ANCHOR = ["\\b", "^", "$", "\\A", "\\Z"]
REFERENCE = ["\\1", "\\2", "(.*)\\1", "(?P=n)", "(?P=m)"]
REPEAT = ["*", "+", "?", "*?", "+?", "??", "{2}", "{1,2}", "{,2}", "{1}"]
FLAGS = ["", "(?i)", "(?s)", "(?m)", "(?ims)", "(?x)", "(?a)"]
SOUP = [
    *OPENED, *LOOK, *REFUSED, *CHARACTER, *SET, *ANCHOR, *REFERENCE, *REPEAT, *FLAGS, ")", ")", ")", ")", "|", "|", "{", "}",
    "[a-", "]", "[", "😀", "\ud83d", " ", "#", "++", "\\x61", "\\u00e9", "\\-", "\\z", "\\0", "\\141", "(a)", "\\p", "a-z",
]  # fmt: skip


def random_key(chance: random.Random) -> str:
    return "".join(chance.choices(KEY, k=chance.randint(0, 9)))


def random_pattern(chance: random.Random, kind: str) -> str:
    if kind == "segments":
        parts = ["".join(chance.choices(SEGMENT, k=chance.randint(1, 3))) for _ in range(chance.randint(1, 3))]
        return ".".join("**" if chance.random() < 0.3 else part for part in parts)
    if kind == "soup":
        return "".join(chance.choices([*SEGMENT, *BROKEN], k=chance.randint(0, 6)))
    if kind == "expression":
        text = _expression(chance)
        return f"re:{'(?i)' if text.isascii() and chance.random() < 0.3 else ''}{text}"
    return "re:" + "".join(chance.choices(SOUP, k=chance.randint(0, 5)))


def _expression(chance: random.Random, depth: int = 0) -> str:
    """An expression that is seldom malformed, of what pages read."""
    parts = []
    for _ in range(chance.randint(1, 3)):
        pick = chance.random()
        if pick < 0.07:
            parts.append(chance.choice(ANCHOR))
            continue
        if pick < 0.14:
            parts.append(f"{chance.choice(LOOK)}{chance.choice(SET)}{chance.choice(CHARACTER)})".replace(".*", "."))
            continue
        if pick < 0.37 and depth < 2:
            other = f"|{_expression(chance, depth + 1)}" if chance.random() < 0.4 else ""
            opened = chance.choice(OPENED).replace("<n>", f"<n{chance.randrange(10**6)}>")
            parts.append(f"{opened}{_expression(chance, depth + 1)}{other})")
        else:
            parts.append(chance.choice(SET if pick < 0.65 else CHARACTER))
        if chance.random() < 0.35 and parts[-1] != ".*":
            parts.append(chance.choice(REPEAT))
    return "".join(parts)
