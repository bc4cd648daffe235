"""The right side of a rule: a text with places for what the pattern caught."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..errors import PatternError
from .pattern import Captures, KeyPattern

__all__ = ["Target"]

_OPERATORS: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
MAX_DIGITS = 18
"""Longest number a rule may compute with: a layer, not an attack."""

_PIECE = re.compile(
    r"\\(?P<literal>.)|\{(?P<brace>[^{}]*)\}|(?P<stars>\*+)|(?P<text>[^\\{}*]+)|(?P<stray>.)", re.DOTALL
)

Part = str | Callable[[Captures], str]


class Target:
    """A parsed target; raises PatternError when it asks for what ``pattern`` does not catch.

    ``rule`` is how messages name the rule it belongs to, ``also`` names what it may use beside the captures.
    """

    def __init__(self, text: str, pattern: KeyPattern | None, *, rule: str, also: Sequence[str] = ()) -> None:
        self.text = text
        self._rule = rule
        self._also = also
        self._kinds = pattern.kinds if pattern else ()
        self._loose = pattern is not None and pattern.expression is not None
        self._parts: tuple[Part, ...] = tuple(self._read())
        if "" in text.split(".") and text:
            raise self._fail("the target has an empty segment")

    def render(self, caught: Captures) -> str:
        """Return the text with the captures in place; segments that ``**`` left empty are dropped.

        Raises ValueError when a number falls below zero or is divided by zero.
        """
        name = "".join(part if isinstance(part, str) else part(caught) for part in self._parts)
        return re.sub(r"\.{2,}", ".", name).strip(".") if "**" in self.text or self._loose else name

    def _fail(self, why: str, hint: str = "") -> PatternError:
        return PatternError(f"{self._rule}: {why}.", hint=hint)

    def _read(self) -> Iterator[Part]:
        used = {"star": 0, "double": 0}
        for piece in _PIECE.finditer(self.text):
            kind, raw = piece.lastgroup, piece.group(piece.lastgroup or 0)
            if kind == "brace":
                yield self._brace(raw)
            elif kind == "stars":
                yield self._star("double" if raw == "**" and not self._loose else "star", raw, used)
            elif kind == "stray" or (kind == "text" and re.search(r"[?\[\]]", raw)):
                raise self._fail(f"{raw!r} has no meaning in a target", "Only *, ** and {…} stand for captures.")
            else:
                yield raw

    def _star(self, kind: str, raw: str, used: dict[str, int]) -> Part:
        if len(raw) > 2 or (self._loose and raw == "**"):
            raise self._fail(f"{raw!r} stands for no capture")
        index = used[kind]
        used[kind] += 1
        have = sum(k == kind for k in self._kinds)
        if index >= have:
            raise self._fail(f"the target has more {raw!r} than the pattern catches ({have})")
        if kind == "star":
            return lambda caught: caught.stars[index]
        return lambda caught: caught.doubles[index]

    def _brace(self, raw: str) -> Part:
        if raw.isascii() and raw.isdigit():
            index = int(raw[:4]) - 1
            if not 0 <= index < len(self._kinds):
                raise self._fail(f"{{{raw}}} is not among the {len(self._kinds)} captures")
            return lambda caught: caught.ordered[index]
        names = {kind for kind in (*self._kinds, *self._also) if kind not in ("star", "double")}
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
            node = ast.parse(raw.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise self._fail(f"{{{raw}}} is not arithmetic", "Write {n}, {n+12}, {2*n} or {n//2}.") from None
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id not in names:
                raise self._fail(f"{{{raw}}} uses {part.id}, which the pattern does not bind", "Write {n} there.")
        if not _is_arithmetic(node):
            raise self._fail(f"{{{raw}}} is not arithmetic", "Write {n}, {n+12}, {2*n} or {n//2}.")
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
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS):
            raise ValueError(f"{node.id} caught {text!r}, which is not a number to compute with")
        return int(text)
    assert isinstance(node, ast.BinOp)  # by _is_arithmetic
    left, right = _evaluate(node.left, named), _evaluate(node.right, named)
    if right == 0 and isinstance(node.op, (ast.FloorDiv, ast.Mod)):
        raise ValueError("division by zero")
    return _OPERATORS[type(node.op)](left, right)
