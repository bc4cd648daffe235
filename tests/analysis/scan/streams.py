"""Streams of instructions that a pickle could be: most could be run, and each has something odd about it.

Frames lie short, overlap, or end inside an instruction; lines hold zero bytes, blanks, octal digits or no newline.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

__all__ = ["NAMES", "stream"]

KNOWN = [
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "str"),
    ("torch", "Size"),
    ("torch", "device"),
]
NAMES = [*KNOWN, ("evil", "x"), ("posix", "system"), ("evil", "y")]
"""What is imported: more often than not, what is known."""
ODD = ["\0", "\0x", " ", "L", "LL", " L", "_1", "x", "\0\0L", "e9", "\t"]
PREFIXES = ["", "", "", " ", "0", "00", "0x", "-", "+", "\0"]

Make = Callable[[random.Random], bytes]


def number(source: random.Random) -> bytes:
    text = str(source.choice([0, 1, 2, 3, 7, 8, 10, 255, 2**40]))
    return (source.choice(PREFIXES) + text + source.choice(ODD) if source.random() < 0.15 else text).encode()


def floating(source: random.Random) -> bytes:
    text = source.choice(["0.5", "1e5", "-1.", "inf", "nan", "1e400", ".5", "7"])
    return (source.choice(PREFIXES) + text + source.choice(ODD) if source.random() < 0.15 else text).encode()


def word(source: random.Random) -> bytes:
    module, name = source.choice(NAMES)
    return source.choice([module, name, "a", "", "N.", "0\n", "cevil\nx\n", ")R."]).encode()


def letters(source: random.Random) -> bytes:
    return source.choice([*map("".join, NAMES), "a", "b c", "\\x41", "\\u0041", ""]).encode()


def quoted(source: random.Random) -> bytes:
    said = source.choice(["'%s'", '"%s"', "'%s'", "'%s' ", " '%s'", "'%s", "%s"]) if source.random() < 0.1 else "'%s'"
    return (said % letters(source).decode()).encode()


def a_name(source: random.Random) -> bytes:
    return "{}\n{}\n".format(*source.choice(NAMES)).encode()


def counted(form: str) -> Make:
    def make(source: random.Random) -> bytes:
        said = word(source) * (200 if source.random() < 0.001 and form != "<B" else 1)
        return struct.pack(form, len(said)) + said

    return make


def line(of: Make) -> Make:
    return lambda source: of(source).replace(b"\n", b"") + b"\n"


def byte(source: random.Random) -> bytes:
    return bytes([source.choice([0, 0, 1, 1, 2, 3, 4])])


def none(source: random.Random) -> bytes:
    return b""


def integers(form: str) -> Make:
    return lambda source: struct.pack(form, source.choice([0, 1, 2, 3, 5]))


OPS: list[tuple[bytes, Make, int, int, int]] = [
    # instruction, operand, values it takes (below the mark: -1), values it leaves, how often
    *((op, none, 0, 1, 4) for op in (b"N", b")", b"]", b"}", b"\x88", b"\x89", b"\x8f")),
    (b"K", byte, 0, 1, 6), (b"M", integers("<H"), 0, 1, 2), (b"J", integers("<i"), 0, 1, 2),
    (b"\x8a", lambda source: source.choice([b"\0", b"\1\5", b"\2\0\1"]), 0, 1, 2), (b"G", integers(">d"), 0, 1, 1),
    (b"I", line(number), 0, 1, 5), (b"L", line(number), 0, 1, 5), (b"F", line(floating), 0, 1, 5),
    (b"S", line(quoted), 0, 1, 5), (b"V", line(letters), 0, 1, 5),
    (b"T", counted("<I"), 0, 1, 2), (b"U", counted("<B"), 0, 1, 2), (b"X", counted("<I"), 0, 1, 6),
    (b"\x8c", counted("<B"), 0, 1, 8), (b"\x8d", counted("<Q"), 0, 1, 2), (b"B", counted("<I"), 0, 1, 2),
    (b"C", counted("<B"), 0, 1, 2), (b"\x8e", counted("<Q"), 0, 1, 2), (b"\x96", counted("<Q"), 0, 1, 2),
    (b"c", a_name, 0, 1, 8), (b"P", line(letters), 0, 1, 1), (b"\x82", byte, 0, 1, 1),
    (b"p", line(number), 1, 1, 6), (b"g", line(number), 0, 1, 8), (b"q", byte, 1, 1, 4), (b"h", byte, 0, 1, 4),
    (b"r", integers("<I"), 1, 1, 2), (b"j", integers("<I"), 0, 1, 2), (b"\x94", none, 1, 1, 6),
    (b"0", none, 1, 0, 6), (b"2", none, 1, 2, 3), (b"\x85", none, 1, 1, 3), (b"\x86", none, 2, 1, 3),
    (b"\x87", none, 3, 1, 3), (b"\x93", none, 2, 1, 8), (b"R", none, 2, 1, 5), (b"\x81", none, 2, 1, 3),
    (b"\x92", none, 3, 1, 2), (b"b", none, 2, 1, 3), (b"a", none, 2, 1, 3), (b"s", none, 3, 1, 3), (b"Q", none, 1, 1, 1),
    (b"t", none, -1, 1, 5), (b"l", none, -1, 1, 3), (b"d", none, -1, 1, 3), (b"e", none, -1, 0, 3),
    (b"u", none, -1, 0, 3), (b"\x90", none, -1, 0, 3), (b"\x91", none, -1, 1, 3), (b"1", none, -1, 0, 3),
    (b"o", none, -1, 1, 3), (b"i", a_name, -1, 1, 4), (b"\x97", none, 0, 1, 1),
]  # fmt: skip
WEIGHTS = [op[4] for op in OPS]


def instructions(source: random.Random) -> list[bytes]:
    """Instructions of which nearly all have what they take; at the end one value is left."""
    made: list[bytes] = []
    depths = [0]
    for _ in range(source.randint(1, 14)):
        if source.random() < 0.12:
            made.append(b"(")
            depths.append(0)
            continue
        op, operand, takes, leaves, _ = source.choices(OPS, WEIGHTS)[0]
        closes = takes < 0
        if source.random() > 0.04 and (depths[-1] < takes or (closes and len(depths) < 2)):
            op, operand, takes, leaves, closes = b"N", none, 0, 1, False
        made.append(op + operand(source))
        if closes:
            depths[:] = depths[:-1] or [0]
            takes = 0
        depths[-1] = max(0, depths[-1] - takes) + leaves
    while len(depths) > 1 and source.random() < 0.95:
        made.append(b"t")
        depths.pop()
        depths[-1] += 1
    return [*made, b"N" if not depths[-1] else b""]


def framed(source: random.Random, parts: list[bytes]) -> bytes:
    """Put frames in front of some: of so many of those that follow, or of so many bytes."""
    said = b""
    for i in reversed(range(len(parts) + 1)):
        if source.random() < 0.2:
            rest = parts[i:]
            length = (
                sum(map(len, rest[: source.randint(0, len(rest))])) if source.random() < 0.6 else source.randint(0, 30)
            )
            said = b"\x95" + struct.pack("<Q", length) + said
        said = (parts[i - 1] if i else b"") + said
    return said


def stream(source: random.Random) -> bytes:
    """Return one stream."""
    parts = instructions(source)
    if source.random() < 0.9:
        parts.append(b".")
    made = framed(source, parts) if source.random() < 0.4 else b"".join(parts)
    if source.random() < 0.5:
        made = b"\x80" + bytes([source.choice([0, 2, 3, 4, 4, 5])]) + made
    if source.random() < 0.1:
        made = made[: source.randint(0, len(made))]
    if source.random() < 0.1 and made and b"\x96" not in made:  # for which readers take as much memory as it says
        at = source.randrange(len(made))
        made = made[:at] + bytes([source.choice(b"\0\n .(cghipL01" + made)]) + made[at + 1 :]
    return made + source.choice([b"", b"", b"N.", b"\xff", b"cevil\nx\n.", b"\n"])
