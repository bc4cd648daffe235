"""Formats text for people: escaped names, natural order, sizes, shortened lists."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from reprlib import Repr

__all__ = [
    "IN_JSON", "NUMBER_IN_KEY", "apart", "brief_repr", "count", "escape", "grouped", "human_bytes", "human_count",
    "listing", "natural_key", "percent", "percent_number", "reasons", "shape_text", "together", "value_text",
    "without_credentials", "without_secrets",
]  # fmt: skip

LISTED = 5
"""How many items a message lists before "and N more"."""

NUMBER_IN_KEY = re.compile(r"(?<![^.])[0-9]+(?![^.])")
"""Matches a segment of a key that is a number, as in ``layers.11.bias``."""
_DIGITS = re.compile(r"(\d+)")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = "\u115f\u1160\u3164\uffa0\u2800"
"""Characters that Unicode counts as letters or symbols, but that are displayed as nothing or as a blank."""
MARKS = 4
"""The maximum number of combining marks on a letter: Vietnamese needs two or three; more would cover other lines."""


_END = r"\s'\"<>"
_USER = re.compile(rf"(?<=://)(?<![hH][fF]://)(?:[^/?{_END}]*@|[^/@?{_END}]+:(?!\d*(?:[/?]|$))(?:(?!://)[^@{_END}])*@)")
"""Matches ``user:password@`` in an address, but not ``name@`` in ``hf://name@revision``, which is not a secret.

The password may contain a slash, unless the text after the colon can be a port.
"""
_QUERY = re.compile(rf"(://[^?{_END}]*)\?[^{_END}]*?(?=::[a-z0-9+]+://|[{_END}]|$)", re.IGNORECASE)
_FRAGMENT = re.compile(rf"(https?://[^#{_END}]*)#[^{_END}]*?(?=::[a-z0-9+]+://|[{_END}]|$)", re.IGNORECASE)
_SIGNED = re.compile(
    rf"([?&;](?:x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|[a-z_-]*(?:token|signature|secret|password|key)|sig)=)[^&;{_END}]+",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """Return ``text`` with ``user:password@`` removed from its addresses, also if nested (``zip://x::http://…``)."""
    return _USER.sub("", text) if "://" in text else text


def without_secrets(text: str) -> str:
    """Return ``text`` without the credentials, queries and fragments of its addresses: these may hold secrets.

    The values of parameters that are named like secrets (``&token=…``) are removed too. All text that is shown, written
    or recorded passes through this function; requests to a server do not.
    """
    if "://" in text:
        text = _FRAGMENT.sub(r"\1", _QUERY.sub(r"\1?…", without_credentials(text)))
    return _SIGNED.sub(r"\1…", text) if "=" in text else text


def escape(name: str, limit: int = 300) -> str:
    """Return ``name`` safe for a terminal: control, format and bidirectional characters are written as escapes.

    If it is longer than ``limit`` characters, its middle is left out. Addresses in it lose their secrets.
    """
    name = without_secrets(name)
    if len(name) > limit:
        name = f"{name[: limit // 2]}…{name[-limit // 4 :]}"
    if name.isascii() and name.isprintable():
        return name
    shown, marks = [], 0
    for char in name:
        marks = marks + 1 if unicodedata.category(char) in ("Mn", "Me") else 0
        shown.append(_visible(char, too_many=marks > MARKS))
    return "".join(shown)


def _visible(char: str, *, too_many: bool) -> str:
    if not too_many and char not in _BLANK and unicodedata.category(char) not in _HIDDEN:
        return char
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")


def brief_repr(value: object, limit: int = 60) -> str:
    """Return at most ``limit`` characters of a value's ``repr``, without building the rest.

    The ``repr`` of data that contains one list many times can be gigabytes long.
    """
    short = Repr()
    short.maxlevel, short.maxlong = 3, limit
    short.maxstring = short.maxother = limit
    try:
        text = short.repr(value)
    except ValueError:  # a number with more digits than Python converts
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def value_text(value: object, limit: int = 60) -> str:
    """Return at most ``limit`` characters of a value as text; None, True and False become null, true and false."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return escape(value[:limit] if isinstance(value, str) else brief_repr(value, limit))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts ``layers.2`` before ``layers.10``."""
    return list(map(_part_key, _DIGITS.split(name)))


@lru_cache(4096)  # a hundred thousand keys consist of few different words and numbers
def _part_key(part: str) -> tuple[int, int, str]:
    return (0, int(part), part) if part[:1].isdecimal() and len(part) < 20 else (1, 0, part)


def number_in(text: str) -> int | None:
    """Return ``text`` as an integer if it consists of at most 18 ASCII digits, else None.

    A longer number in a key cannot be the index of a list, and Python does not convert more than 4300 digits.
    """
    return int(text) if text.isdigit() and len(text) < 19 and text.isascii() else None


def human_bytes(nbytes: int) -> str:
    """Return a size in decimal units: ``42.1 MB``."""
    return _scaled(nbytes, ("B", "kB", "MB", "GB", "TB", "PB"), "B")


def human_count(number: int) -> str:
    """Return a number of elements: ``37.4 k``, ``8.1 M``."""
    return _scaled(number, ("", "k", "M", "B", "T", "Q"), "")


def _scaled(number: int, units: Sequence[str], plain: str) -> str:
    if number < 1000:
        return f"{number} {plain}".strip()
    value, unit = float(number), 0
    while round(value, 1) >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.1f} {units[unit]}"


def apart(*numbers: float, digits: int = 3) -> tuple[str, ...]:
    """Format numbers with enough significant digits, at least ``digits``, to tell different numbers apart."""
    wanted, said = len(set(numbers)), tuple(f"{number:.{digits}g}" for number in numbers)
    while len(set(said)) < wanted and digits < 17:
        digits += 1
        said = tuple(f"{number:.{digits}g}" for number in numbers)
    return said


def percent(share: float, digits: int = 0) -> str:
    """Return a share as a percentage: ``42 %``; ``>99 %`` or ``<1 %`` if rounding would give ``100 %`` or ``0 %``.

    Only an exact 1 is ``100 %``, and only an exact 0 is ``0 %``.
    """
    if share in (0, 1):
        return "100 %" if share else "0 %"
    shown, least = f"{100 * share:.{digits}f}", 10.0**-digits
    if 0 < share < 1 and float(shown) in (0, 100):
        return f"<{least:.{digits}f} %" if share < 0.5 else f">{100 - least:.{digits}f} %"
    return f"{shown} %"


def percent_number(share: float) -> str:
    """Return a share in percent, without the sign ``%``, with one to three digits: ``0.45``, ``12``, ``1e-05``."""
    value = 100 * share
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.2g}" if value >= 0.0000995 or value == 0 else f"{value:.0e}"


IN_JSON = " (--json lists all)"
"""Follows a list in an error that is cut: the JSON on the command line, and ``details`` in Python, have all items."""


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun, in the singular or the plural: ``1 key``, ``213 keys``."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Sequence[str], limit: int = LISTED, *, where: str = IN_JSON) -> str:
    """Return the first ``limit`` items, escaped; if there are more, their number and the text ``where`` follow.

    ``where`` says where all items can be found.
    """
    shown = ", ".join(escape(item) for item in items[:limit])
    more = len(items) - limit
    return f"{shown}, and {more} more{where}" if more > 0 else shown


def reasons(texts: Sequence[str], limit: int) -> str:
    """Return the first ``limit`` texts, with semicolons between them; if there are more, their number follows."""
    more = [f"and {len(texts) - limit} more"] if len(texts) > limit else []
    return "; ".join([*texts[:limit], *more])


def together(items: Sequence[str], limit: int = LISTED) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``; if there are more than ``limit`` items, ``a, b and 7 more``."""
    shown = [escape(item) for item in items[:limit]]
    shown += [f"{len(items) - limit} more"] if len(items) > limit else []
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def grouped(pairs: Iterable[tuple[str, str]], form: str = "{names} ({why})", *, where: str = IN_JSON) -> str:
    """Return a text of names with remarks; names with the same remark are put together: ``a, b and c (it is sparse)``.

    ``pairs`` are (name, remark). ``form`` is the template for one remark: ``{names}`` becomes the names that share it,
    ``{why}`` the remark, ``{are}`` "is" or "are". If not all names are listed, the number of the others and the text
    ``where`` follow.
    """
    by_why: dict[str, list[str]] = {}
    for name, why in pairs:
        by_why.setdefault(why, []).append(name)
    said = [
        form.format(names=together(names), are="is" if len(names) == 1 else "are", why=escape(why, 600))
        for why, names in by_why.items()
    ]
    more = [f"and {sum(map(len, list(by_why.values())[LISTED:]))} more"] if len(said) > LISTED else []
    cut = more or any(len(names) > LISTED for names in by_why.values())
    return "; ".join(said[:LISTED] + more) + (where if cut else "")


def shape_text(shape: Sequence[int]) -> str:
    """Return a shape as the documentation writes it: ``(256, 256)``, ``(256)``, ``()``."""
    return f"({', '.join(map(str, shape))})"
