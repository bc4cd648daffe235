"""The right side of a rule: a text with placeholders for the pattern's captures, and lists for several names."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from itertools import product
from math import prod

from ...errors import PatternError
from ...util.text import escape, number_in
from .pattern import Captures, KeyPattern
from .spelling import foreign_capture, in_our_spelling, spelling_hint, undotted, without_dots

__all__ = ["RuleTarget"]

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
MAX_DIGITS = 18
"""The most digits of a number in arithmetic: enough for layers, too few to make the computation slow."""
MAX_NAMES = 10_000
"""The most names that one target may expand to."""

_PIECE = re.compile(
    r"\\(?P<literal>.)|\{(?P<brace>[^{}]*)\}|(?P<stars>\*+)|(?P<text>[^\\{}*]+)|(?P<stray>.)", re.DOTALL
)

_RANGE = re.compile(r"([0-9]{1,18})\.\.([0-9]{1,18})")
_WORDS = re.compile(r"(?:[A-Za-z_]\w*|[0-9]+)(?:\.(?:[A-Za-z_]\w*|[0-9]+))*", re.ASCII)
"""Matches an item of a list that is literal: a word, a number, or a path of modules such as ``a.0.b``."""
_IMPLIED = re.compile(r"(?<![A-Za-z0-9_])([0-9]+)(?=[A-Za-z_])")
"""Matches a number directly before a name, as in ``2n``: the name is multiplied by it."""

Part = str | Callable[[Captures], str]
"""A piece of a target: literal text, or a function that returns the text for the captures of a key."""
Choice = tuple[Part, ...]
"""The alternatives at one position of a target: one part, or all items of a list such as ``{a,b}``."""
_ARITHMETIC = "Write {n}, {n+12}, {2n} or {n//2}."


class RuleTarget:
    """The parsed right side of a rule; raises PatternError if it uses something that ``pattern`` does not capture.

    ``rule`` is the name of the rule in messages, ``start`` the text before the target (``pattern=``), ``also`` are
    names that the target may use in addition to the captures.
    """

    def __init__(
        self, text: str, pattern: KeyPattern | None, *, rule: str, start: str = "", also: Sequence[str] = ()
    ) -> None:
        self.text = text
        self._rule = rule
        self._also = also
        self._kinds = pattern.kinds if pattern else ()
        self._loose = pattern is not None and pattern.expression is not None
        if foreign := foreign_capture(text, self._bound()):
            hint = spelling_hint(foreign, self._written(pattern, start), len(self._kinds))
            raise self._fail(f"{foreign} is not a capture here", hint)
        choices = [part if isinstance(part, tuple) else (part,) for part in self._read()]
        if prod(map(len, choices)) > MAX_NAMES:
            raise self._fail(f"the target expands to more than {MAX_NAMES} names")
        self._spelled = tuple(product(*choices))
        self.several = len(self._spelled) > 1
        if text and "" in re.sub(r"\{[^{}]*\}", "{}", text).split("."):
            raise self._fail("the target has an empty segment", without_dots(text, start) if undotted(text) else "")

    def each(self) -> list[RuleTarget]:
        """Return a target for each combination of list items: ``a.{b,c}`` -> ``a.b`` and ``a.c``."""
        found = []
        for one in self._spelled:
            found.append(copy(self))
            found[-1]._spelled, found[-1].several = (one,), False
        return found

    def render(self, caught: Captures) -> list[str]:
        """Return the new names: the target with the captures filled in, for each combination of items of its lists.

        Segments that ``**`` left empty are dropped. Raises ValueError if a number falls below zero or is divided by
        zero.
        """
        return [self._joined(parts, caught) for parts in self._spelled]

    def _joined(self, parts: Sequence[Part], caught: Captures) -> str:
        name = "".join(part if isinstance(part, str) else part(caught) for part in parts)
        return re.sub(r"\.{2,}", ".", name).strip(".") if "**" in self.text or self._loose else name

    def _fail(self, why: str, hint: str = "") -> PatternError:
        return PatternError(f"{self._rule}: {why}.", hint=hint)

    def _written(self, pattern: KeyPattern | None, start: str) -> str:
        """Return the rule's text with captures such as ``$1`` rewritten as ``{1}``; '' if the result is not valid.

        If the pattern has a parenthesis, it is taken for a regular expression, if it is a valid one.
        """
        ours = in_our_spelling(self.text, self._bound())
        if foreign_capture(ours, self._bound()):
            return ""
        is_expression = pattern is not None and pattern.expression is None and "(" in pattern.text  # keys have none
        for kind in ("re:", "") if is_expression else ("",):
            with suppress(PatternError):
                read = KeyPattern(f"{kind}{pattern.text}") if pattern and kind else pattern
                RuleTarget(ours, read, rule=self._rule, also=self._also)
                return escape(f"{kind}{start}{ours}")
        return ""

    def _read(self) -> Iterator[Part | Choice]:
        used = {"star": 0, "double": 0}
        for piece in _PIECE.finditer(self.text):
            kind, raw = piece.lastgroup, piece.group(piece.lastgroup or 0)
            if kind == "brace":
                yield self._list(raw) if "," in raw or _RANGE.fullmatch(raw) else self._brace(raw)
            elif kind == "stars":
                yield self._star("double" if raw == "**" and not self._loose else "star", raw, used)
            elif kind == "stray" or (kind == "text" and re.search(r"[?\[\]]", raw)):
                raise self._fail(f"{raw!r} has no meaning in a target", "Only *, ** and {…} are captures.")
            else:
                yield raw

    def _star(self, kind: str, raw: str, used: dict[str, int]) -> Part:
        if len(raw) > 2 or (self._loose and raw == "**"):
            raise self._fail(f"{raw!r} is not a capture")
        index = used[kind]
        used[kind] += 1
        have = sum(k == kind for k in self._kinds)
        if index >= have:
            raise self._fail(f"the target has more {raw!r} than the pattern captures ({have})")
        if kind == "star":
            return lambda caught: caught.stars[index]
        return lambda caught: caught.doubles[index]

    def _list(self, raw: str) -> Choice:
        """Return the alternatives of a list or range: literal words and numbers, or values computed from captures.

        Raises PatternError if a range is reversed or too long, or if an item is not valid.
        """
        numbers = _RANGE.fullmatch(raw)
        if numbers:
            low, high = int(numbers[1]), int(numbers[2])
            if not 0 <= high - low < MAX_NAMES:
                raise self._fail(f"the range {{{raw}}} {'is reversed' if low > high else 'is too long'}")
            return tuple(map(str, range(low, high + 1)))
        words = [word.strip() for word in raw.split(",")]
        bound = self._bound()
        computed = any(bound.intersection(re.findall(r"[A-Za-z_]\w*", _IMPLIED.sub(r"\1*", word))) for word in words)
        return tuple(self._listed(word, computed=computed) for word in words)

    def _listed(self, word: str, *, computed: bool) -> Part:
        if word.isascii() and word.isdigit():
            return word
        return word if _WORDS.fullmatch(word) and not computed else self._brace(word)

    def _bound(self) -> set[str]:
        """Return the names of the captured numbers that the target can compute with: ``n`` in ``{n+1}``."""
        return {kind for kind in (*self._kinds, *self._also) if kind not in ("star", "double")}

    def _brace(self, raw: str) -> Part:
        if raw.isascii() and raw.isdigit():
            index = int(raw[:4]) - 1
            if not 0 <= index < len(self._kinds):
                raise self._fail(f"there is no capture {{{raw}}}: the pattern has {len(self._kinds)}")
            return lambda caught: caught.ordered[index]
        names = self._bound()
        if raw in names:
            return lambda caught: caught.named[raw]
        node = self._expression(raw, names)

        def computed(caught: Captures) -> str:
            value = _evaluate(node, caught.named)
            if value < 0:
                raise ValueError(f"{{{raw}}} is {value}, below zero")
            return str(value)

        return computed

    def _expression(self, raw: str, names: set[str]) -> ast.expr:
        try:
            node = ast.parse(_IMPLIED.sub(r"\1*", raw.strip()), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._fail(f"{{{raw}}} is not arithmetic", _ARITHMETIC) from None
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id not in names:
                raise self._fail(
                    f"{{{raw}}} uses {part.id}, which the pattern does not capture",
                    "Capture a number in the pattern, as in {n}.",
                )
        if not _is_arithmetic(node):
            raise self._fail(f"{{{raw}}} is not arithmetic", _ARITHMETIC)
        return node


def _is_arithmetic(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return type(node.op) in _OPERATORS and _is_arithmetic(node.left) and _is_arithmetic(node.right)
    if isinstance(node, ast.Constant):
        return type(node.value) is int and node.value < 10**MAX_DIGITS
    return isinstance(node, ast.Name)


def _evaluate(node: ast.expr, named: Mapping[str, str]) -> int:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.Name):
        text = named[node.id]
        number = number_in(text)
        if number is None:
            raise ValueError(f"the target computes with {node.id}, which captured {text!r}: it must be a number")
        return number
    assert isinstance(node, ast.BinOp)  # ensured by _is_arithmetic
    left, right = _evaluate(node.left, named), _evaluate(node.right, named)
    if right == 0 and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
        raise ValueError("division by zero")
    return _OPERATORS[type(node.op)](left, right)
