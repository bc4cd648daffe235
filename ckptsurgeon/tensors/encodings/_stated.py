"""What settings of quantisation state of codes, read once however many tensors it is held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ._settings import Said, Settings, values_called

__all__ = ["Block", "Stated", "stated_by"]

Block: TypeAlias = tuple[str, tuple[int, int]]
"""The field that has the size of blocks, and that: rows and columns."""

_BITS, _SIZES = ("bits", "w_bit"), ("group_size", "q_group_size")
_LARGEST = 1 << 31
_MOST = 64
"""Different values of a field: more say nothing of any tensor."""
_LONGEST = 40


@dataclass(frozen=True)
class Stated:
    """The values that fields have at whatever depth, those of the top first.

    ``schemes`` are bits and length of groups (0: not said) of the weights of each group of compressed-tensors.
    ``format`` is GPTQ's, ``version`` AWQ's; ``flags`` are the fields that are true or false at the top.
    """

    method: str
    bits: tuple[int, ...]
    sizes: tuple[int, ...]
    blocks: tuple[Block, ...]
    schemes: tuple[tuple[int, int], ...]
    symmetric: tuple[bool, ...]
    modes: tuple[str, ...]
    format: str
    version: str
    flags: dict[str, bool]


def stated_by(settings: Settings) -> Stated:
    """Return what settings state."""
    schemes = [one for one in values_called(settings, "weights") if isinstance(one, dict)]
    return Stated(
        Said(settings).method[:_LONGEST],
        _numbers(settings, _BITS),
        tuple(one for one in _numbers(settings, _SIZES) if one > 0 or one == -1),
        tuple(_few(_blocks(settings))),
        tuple(_few((_positive(one.get("num_bits")), _positive(one.get("group_size"))) for one in schemes)),
        tuple(_few(one["symmetric"] for one in schemes if isinstance(one.get("symmetric"), bool))),
        tuple(_few(one[:_LONGEST] for one in values_called(settings, "mode") if isinstance(one, str))),
        _text(settings, "checkpoint_format", "format"),
        _text(settings, "version", "format"),
        {name: value for name, value in settings.items() if isinstance(value, bool)},
    )


def _few(values: Iterator[Any]) -> Sequence[Any]:
    """Return different values in their order, none of very many."""
    found = dict.fromkeys(values)
    return list(found) if len(found) <= _MOST else []


def _numbers(settings: Settings, names: Sequence[str]) -> tuple[int, ...]:
    values = (value for name in names for value in values_called(settings, name))
    return tuple(_few(value for value in values if type(value) is int and abs(value) < _LARGEST))


def _positive(value: object) -> int:
    return value if type(value) is int and 0 < value < _LARGEST else 0


def _blocks(settings: Settings) -> Iterator[Block]:
    for name in ("weight_block_size", "block_structure"):
        for value in values_called(settings, name):
            if isinstance(value, list) and len(value) == 2 and all(map(_positive, value)):
                yield name, (value[0], value[1])


def _text(settings: Settings, *names: str) -> str:
    """Return the first of some fields that is a text, in small letters."""
    return next((value[:_LONGEST].lower() for name in names if isinstance(value := settings.get(name), str)), "")
