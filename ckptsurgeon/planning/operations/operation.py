"""Parses and checks operations as users write them, before any source is read.

- split: h.{n}.attn.c_attn                     # the tensors: a pattern, or a list of patterns for concat and stack
  into: ['h.{n}.q', 'h.{n}.k', 'h.{n}.v']      # their new names, which may use the pattern's captures
  dim: 1
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from ...errors import ConfigError, PatternError
from ...tensors.dtypes import ROUNDED
from ...tensors.encoders._schemes import OWN_DTYPES, SCHEMES
from ...util.text import brief_repr, escape
from ..keys.pattern import KeyPattern
from ..keys.rules import Rule, target_rule, target_rules

__all__ = [
    "ALL",
    "COPIED",
    "JOINING",
    "MIXTURES",
    "QUANTISED_NOW",
    "Operation",
    "groups_of",
    "indices_of",
    "parse_operations",
]

MOST = 10_000
"""The largest number of operations, and of numbers in a constant."""
MOST_RUNS = 100_000
"""The largest number of ranges of indices in an operation, such as take."""
MIXTURES: Mapping[str, tuple[str, str, str]] = {
    "q5_k_m": ("q5_k", "q6_k", "q6_k"),
    "q4_k_m": ("q4_k", "q5_k", "q6_k"),
}
"""{mixture of GGUF types: (type of most matrices, of joined queries, keys and values, of the most important)}."""
ALL = 2**53 - 1
"""The default of ``end``: all elements."""
_RUN = re.compile(r"([0-9]{1,15})(?:\.\.([0-9]{1,15}))?")
LARGEST = 3.4028234663852886e38
"""The largest number of float32."""


@dataclass(frozen=True)
class _Field:
    """A field of an operation: the check of its value, a description of valid ones, its default (None: required)."""

    check: Callable[[Any], bool]
    wanted: str
    default: Any = None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_int, value))


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**1000
    return isinstance(value, float) and isfinite(value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= MOST and all(map(_is_single, value))


def _is_single(value: Any) -> bool:
    return _is_number(value) and abs(value) <= LARGEST


def _is_runs(value: Any) -> bool:
    runs = indices_of(value) if isinstance(value, str) else []
    return 0 < len(runs) <= MOST_RUNS and all(begin < end for begin, end in runs)


def indices_of(text: str) -> list[tuple[int, int]]:
    """Return the runs (first index, index after the last) that a text such as ``0..3,8..11`` lists; [] if not valid.

    A range includes both of its ends. An index may be listed several times.
    """
    found = [_RUN.fullmatch(part.strip()) for part in text.split(",", MOST_RUNS)]
    if not all(found):
        return []
    return [(int(one[1]), int(one[2] or one[1]) + 1) for one in found if one is not None]


def groups_of(text: str) -> list[list[int]]:
    """Return the groups of indices that a text such as ``0+4..5,1+6`` lists; [] if it is wrong.

    Groups are separated by commas, and have no index in common.
    """
    found = []
    for part in text.split(",", MOST_RUNS):
        runs = indices_of(part.replace("+", ","))
        if not runs or any(end <= begin for begin, end in runs) or sum(end - begin for begin, end in runs) > MOST_RUNS:
            return []
        found.append([index for begin, end in runs for index in range(begin, end)])
    listed = [index for group in found for index in group]
    return found if len(set(listed)) == len(listed) else []


def _is_groups(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(groups_of(value)) <= MOST_RUNS


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, list) and 0 < len(value) <= MOST_RUNS and all(_is_single(one) and one >= 0 for one in value)
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


_DIM = _Field(_is_int, "a dimension, as in 0 or -1", default=0)
_HEADS = _Field(lambda value: _is_int(value) and value > 0, "the number of heads")
_COUNT = _Field(lambda value: _is_int(value) and value > 0, "a number above 0")
_BLOCK = _Field(lambda value: _is_int(value) and value > 0, "the number of elements of a block", default=1)
_GROUPS = _Field(lambda value: _is_int(value) and value > 0, "the number of groups", default=1)
_NAME = _Field(lambda value: isinstance(value, str), "a name")
_NAMES = _Field(lambda value: isinstance(value, str) or _is_texts(value), "a list of names, or a name with a range")
_FIELDS: Mapping[str, Mapping[str, _Field]] = {
    "split": {
        "into": _NAMES,
        "dim": _DIM,
        "sizes": _Field(_is_ints, "a list of sizes", default=()),
        "groups": _GROUPS,
    },
    "concat": {"into": _NAME, "dim": _DIM, "groups": _GROUPS},
    "stack": {"into": _NAME, "dim": _DIM},
    "add": {"into": _NAME},
    "mean": {"into": _NAME},
    "exp_scale": {"into": _NAME},
    "copy": {"into": _NAMES},
    "unstack": {"into": _Field(lambda v: isinstance(v, str) and "{i" in v, "a name with {i} in it"), "dim": _DIM},
    "transpose": {"dims": _Field(lambda v: _is_ints(v) and len(v) == 2, "two dimensions", default=())},
    "permute": {"dims": _Field(_is_ints, "a list of dimensions")},
    "reshape": {"shape": _Field(lambda v: isinstance(v, list) and all(map(_is_int, v)), "a list of sizes")},
    "slice": {
        "dim": _DIM,
        "begin": _Field(_is_int, "the index of the first element", default=0),
        "end": _Field(_is_int, "the index after the last element"),
    },
    "pad": {"dim": _DIM, "size": _COUNT, "value": _Field(_is_single, "a number that fits into float32", default=0)},
    "tile": {"dim": _DIM, "times": _COUNT},
    "take": {"indices": _Field(_is_runs, "indices, as in 0..3,8..11"), "dim": _DIM, "block": _BLOCK},
    "combine": {
        "groups": _Field(_is_groups, "groups of different indices, as in 0+4,1+5..6"),
        "weights": _Field(_is_weights, "a list of numbers from 0", default=()),
        "dim": _DIM,
    },
    "zero": {},
    "noise": {
        "of": _Field(_is_runs, "indices, as in 0..3,0..3"),
        "dim": _DIM,
        "block": _BLOCK,
        "by": _Field(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
        "seed": _Field(lambda value: _is_int(value) and value >= 0, "a number from 0", default=0),
    },
    "pool": {"heads": _HEADS, "to": _COUNT},
    "repeat": {"heads": _HEADS, "to": _COUNT},
    "halves": {"heads": _HEADS},
    "pairs": {"heads": _HEADS},
    "scale": {
        "by": _Field(_is_number, "a finite number"),
        "dim": _DIM,
        "begin": _Field(_is_int, "the index of the first element", default=0),
        "end": _Field(_is_int, "the index after the last element", default=ALL),
    },
    "shift": {"by": _Field(_is_number, "a finite number")},
    "constant": {"values": _Field(_is_numbers, f"a list of 1 to {MOST} numbers that fit into float32")},
    "dequantize": {},
    "blocks": {"to": _Field(lambda v: v in (*ROUNDED, *MIXTURES), f"one of {', '.join((*ROUNDED, *MIXTURES))}")},
    "quantize": {
        "to": _Field(lambda value: isinstance(value, str) and value in SCHEMES, f"one of {', '.join(SCHEMES)}"),
        "scales": _Field(lambda value: value in OWN_DTYPES, f"one of {', '.join(OWN_DTYPES)}", default=""),
    },
}
JOINING = ("concat", "stack", "add", "mean", "exp_scale")
"""Operations that make one tensor from several tensors."""
SEVERAL = (*JOINING, "quantize")
"""Operations that accept a list of patterns."""
COPIED = "copy "
"""The beginning of the text of an operation that only copies tensors to other names."""
QUANTISED_NOW = "quantize to "
"""The beginning of the text of an operation that quantises weights; such an operation does not compute with codes."""
INDEX = "i"
"""The placeholder ``{i}`` in the target of an unstack: the index of each new tensor."""


@dataclass(frozen=True)
class Operation:
    """An operation: ``patterns`` that match its inputs, ``rules`` that name its results, and its other ``fields``.

    There is a rule for each pair of a pattern and a name in ``into``; operations that keep the names have no rules. A
    constant has no inputs; ``name`` is the name of the new tensor. ``row`` is the operation as users write it.
    """

    verb: str
    patterns: tuple[KeyPattern, ...]
    rules: tuple[Rule, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.verb in ("blocks", "quantize"):  # quantize may have a pattern for each tensor
            return f"quantize to {self.fields['to']}"
        return f"{self.verb} {self.name or ', '.join(pattern.text for pattern in self.patterns)}"


def parse_operations(rows: Any) -> tuple[Operation, ...]:
    """Return the operations in ``rows``, which users wrote; raises ConfigError or PatternError for invalid rows."""
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        raise ConfigError("the operations are not a list.", hint="Write a list: - {split: KEY, into: [A, B]}.")
    if len(rows) > MOST:
        raise ConfigError(f"there are {len(rows)} operations, more than the limit of {MOST}.")
    return tuple(_parsed(row, f"operation {number}") for number, row in enumerate(rows, 1))


def _parsed(row: Any, where: str) -> Operation:
    verbs = [name for name in row if name in _FIELDS] if isinstance(row, Mapping) else []
    if len(verbs) != 1:
        near = difflib.get_close_matches(str(next(iter(row), "")), _FIELDS, n=1) if isinstance(row, Mapping) else []
        hint = f"Did you mean {near[0]}?" if near else f"Use one of {', '.join(_FIELDS)}."
        says = "several operations" if verbs else "no operation"
        raise ConfigError(f"{where} is {brief_repr(row, 80)}: it has {says}.", hint=hint)
    verb = verbs[0]
    fields = _checked_fields(row, verb, f"{where} ({verb})")
    several = verb in SEVERAL
    given = row[verb]
    if verb == "constant":
        if not (isinstance(given, str) and given):
            raise ConfigError(f"{where}: {verb} is {brief_repr(given)}, not a name.")
        return Operation(verb, (), fields=fields, name=given, row=row)
    if not (isinstance(given, str) or (several and _is_texts(given))):
        wanted = "a pattern, or a list of them" if several else "a pattern"
        raise ConfigError(f"{where}: {verb} is {brief_repr(given)}, not {wanted}.")
    if verb == "exp_scale" and (isinstance(given, str) or len(given) != 2):
        raise ConfigError(f"{where}: {verb} is {brief_repr(given)}, not a list of a tensor and its exponent.")
    try:
        patterns = tuple(KeyPattern.given(one, "") for one in ([given] if isinstance(given, str) else given))
        into = fields.pop("into", ())
        names = [into] if isinstance(into, str) else into
        also = (INDEX,) if verb == "unstack" else ()
    except PatternError as error:
        raise PatternError(f"{where} ({verb}): {error.message}", hint=error.hint) from None
    if also and INDEX in patterns[0].kinds:
        raise PatternError(
            f"{where} ({verb}): the pattern captures {{{INDEX}}}, which must mean the index of each new tensor.",
            hint="Capture the number under another name, as in {n}.",
        )
    label = f"{where} ({verb})"
    if verb in ("split", "copy"):
        rules = tuple(rule for name in names for rule in target_rules(patterns[0], name, label))
        if verb == "split" and len(rules) < 2:
            raise ConfigError(f"{label}: the field into has one name, but a split makes two tensors or more.")
    else:
        rules = tuple(target_rule(pattern, name, label, also) for pattern in patterns for name in names)
    return Operation(verb, patterns, rules, fields, row=row)


def _checked_fields(row: Mapping[str, Any], verb: str, where: str) -> dict[str, Any]:
    known = _FIELDS[verb]
    for name in row:
        if name != verb and name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            fields_text = f"Its fields are {', '.join(known)}." if known else "It has no fields."
            hint = f"Did you mean {near[0]}?" if near else fields_text
            raise ConfigError(f"{where} has no field {escape(str(name))}.", hint=hint)
    fields = {}
    for name, expected in known.items():
        if name not in row and expected.default is None:
            raise ConfigError(f"{where} needs the field {name}: {expected.wanted}.")
        if name in row and not expected.check(row[name]):
            raise ConfigError(f"{where}: {name} is {brief_repr(row[name])}, not {expected.wanted}.")
        fields[name] = row.get(name, expected.default)
    return fields
