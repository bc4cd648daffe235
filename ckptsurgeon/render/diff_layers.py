"""Shows how much each layer has changed: a table with a row for each layer, and a column for each role.

The role of a tensor is the path of its module within the layer, such as ``self_attn.q_proj``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count as numbers_from
from itertools import islice, product
from string import ascii_lowercase

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from ..analysis.compare.changes import Changes
from ..analysis.compare.results import Difference, Pair
from ..util.text import count, escape, number_in, percent_number
from .changes import letter
from .columns import Columns, Hanging

__all__ = ["layers_of_models", "layers_view"]

SHADES = " ░▒▓█"
"""Shades from no change to the largest change of all layers."""
WIDE = 300.0
"""If the largest change is over this many times the smallest, changes of the next shade are ten times as large.

Otherwise, the factor between two shades is smaller, so that all shades are used.
"""
NARROW = 1.15
"""The smallest factor between two shades: smaller differences between layers are not shown."""
COLOURS = ("", "dim", "yellow", "bold yellow", "bold red")
CELL = 7
"""The width of a column: a shade, a number of up to five characters, and a gap."""
SHOWN = 8
JOINED = "\N{NO-BREAK SPACE}"
PARAMETERS = (".weight", ".bias")


@dataclass
class _Stack:
    """The changes of the tensors in a list of layers, by layer number and role.

    A role is the path of a module within its layer, such as ``self_attn.q_proj``. A change is the norm of the
    difference divided by the norm of the first tensor; NaN if it is not known. If a role has several tensors, the
    largest change is used. ``tensors`` counts the tensors of each layer, ``differing`` the tensors that differ.
    """

    roles: dict[str, None] = field(default_factory=dict)
    changes: dict[tuple[int, str], float] = field(default_factory=dict)
    differing: dict[int, int] = field(default_factory=dict)
    tensors: dict[int, int] = field(default_factory=dict)

    def add(self, number: int, role: str, change: float) -> None:
        """Add the change of a tensor, which has the role ``role`` in the layer ``number``."""
        self.roles.setdefault(role)
        before = self.changes.get((number, role), 0.0)
        self.changes[number, role] = change if math.isnan(change) or change > before else before
        self.tensors[number] = self.tensors.get(number, 0) + 1
        self.differing[number] = self.differing.get(number, 0) + (change != 0)


def layers_view(found: Difference) -> RenderableType:
    """Return a table for each list of layers, and the largest changes of other tensors.

    ``found`` must be the result of a comparison of values.
    """
    return Group(*_tables({"": _changes(found)}), *_only_in_one(found))


def layers_of_models(found: Changes) -> RenderableType:
    """Return, for each model, a table for each list of layers, and the largest changes of other tensors.

    All tables have the same scale of shades, so that models can be compared.
    """
    named = {f"{letter(at)} {escape(name)}": _changes_of(found, at) for at, name in enumerate(found.models)}
    return Group(*_tables(named))


def _tables(models: Mapping[str, Iterable[tuple[str, float]]]) -> Iterator[RenderableType]:
    """Yield the tables of one or several models; ``models`` maps their names to the changes of their tensors."""
    every = {name: _stacks(changes) for name, changes in models.items()}
    known = [
        one for stacks, _ in every.values() for stack in stacks.values() for one in stack.changes.values() if one > 0
    ]
    least, most = min(known, default=0.0), max(known, default=0.0)
    for model, (stacks, elsewhere) in every.items():
        for name, stack in stacks.items():
            yield _Table(name, stack, least, most, model)
            yield Text("")
        yield from _elsewhere(elsewhere, model)


def _changes_of(found: Changes, model: int) -> Iterator[tuple[str, float]]:
    """Yield the key and the change of each tensor that the base and a model have; ``model`` is its index.

    The change is NaN if a value differs that is NaN or infinite in the base or in any of the models.
    """
    for one in found.tensors:
        own = one.sums.models.get(model)
        if own is not None:
            relative = math.nan if own.relative is None or own.not_finite else own.relative
            yield one.key, relative if own.differs else 0.0


def _changes(found: Difference) -> Iterator[tuple[str, float]]:
    """Yield the key and the change of each tensor that is in both checkpoints."""
    yield from dict.fromkeys(found.same, 0.0).items()
    for pair in (*found.close, *found.changed, *found.retyped, *found.decoded):
        yield pair.key, _change(pair)
    for key in (*(pair.key for pair in found.reshaped), *found.not_compared):
        yield key, math.nan


def _change(pair: Pair) -> float:
    if pair.numbers is None:
        return math.nan if pair.codes or pair.first.dtype == pair.second.dtype else 0.0
    if pair.numbers.differing == 0 and not (pair.numbers.nan or pair.numbers.inf):
        return 0.0
    if pair.numbers.nan or pair.numbers.inf or pair.numbers.relative is None:
        return math.nan
    return pair.numbers.relative


def _stacks(changes: Iterable[tuple[str, float]]) -> tuple[dict[str, _Stack], dict[str, float]]:
    """Return the lists of layers by name, and the changes of all other tensors."""
    stacks: dict[str, _Stack] = {}
    elsewhere: dict[str, float] = {}
    for key, change in changes:
        parts = key.split(".")
        place = next((at for at, part in enumerate(parts) if number_in(part) is not None), None)
        if place is None:
            elsewhere[key] = change
            continue
        role = ".".join("{n}" if part.isdecimal() else part for part in parts[place + 1 :])
        stack = stacks.setdefault(".".join(parts[:place]), _Stack())
        stack.add(int(parts[place]), _without_parameter(role), change)
    single = [name for name, stack in stacks.items() if len(stack.tensors) < 2]
    for name in single:  # one number is not a list of layers
        elsewhere |= {f"{name}.{number}.{role}": one for (number, role), one in stacks.pop(name).changes.items()}
    return stacks, elsewhere


def _without_parameter(role: str) -> str:
    for ending in PARAMETERS:
        if role.endswith(ending):
            return role.removesuffix(ending)
    return role


class _Table:
    """The table of a list of layers, as a renderable of rich: several tables if the terminal is too narrow for one."""

    def __init__(self, name: str, stack: _Stack, least: float, most: float, model: str = "") -> None:
        self._name, self._stack, self._least, self._most = name, stack, least, most
        self._model = f"{model}  " if model else ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        roles = list(self._stack.roles)
        letters = dict(zip(roles, _letters(len(roles)), strict=True))
        said = f"  {self._model}{escape(self._name) or 'layers'}: change in percent of the norm"
        yield Text(said, style="bold")
        legend = "  ".join(f"{letter}{JOINED}{escape(role)}" for role, letter in letters.items())
        yield Hanging(Text("  "), Text(legend, "dim"))
        room = max(1, (options.max_width - self._around()) // CELL)
        for first in range(0, len(roles), room):
            yield from self._rows(letters, roles[first : first + room])

    def _around(self) -> int:
        """Return the width of the texts on both sides of the columns: the layer, and its number of changed tensors."""
        most = len(str(max(self._stack.tensors.values())))
        return 8 + len(" of  ") + 2 * most

    def _rows(self, letters: Mapping[str, str], roles: Sequence[str]) -> Iterator[Text]:
        yield Text((" " * 8 + "".join(f"{letters[role]:>6} " for role in roles)).rstrip(), style="dim")
        for number in sorted(self._stack.tensors):
            line = Text(f"  {number:>4}  ")
            for role in roles:
                line.append_text(self._cell(self._stack.changes.get((number, role))))
            line.append(f" {self._stack.differing[number]} of {self._stack.tensors[number]}", style="dim")
            line.rstrip()
            yield line

    def _cell(self, change: float | None) -> Text:
        if change is None:
            return Text(" " * CELL)
        if math.isnan(change):
            return Text(f"{'?':>6} ", style="bold red")
        shade = _shade(change, self._least, self._most)
        return Text(f"{SHADES[shade]}{_number(change):>5} ", style=COLOURS[shade])


def _letters(number: int) -> list[str]:
    """Return ``number`` names of columns: a to z, then aa to zz, aaa and so on."""
    names = ("".join(one) for length in numbers_from(1) for one in product(ascii_lowercase, repeat=length))
    return list(islice(names, number))


def _shade(change: float, least: float, most: float) -> int:
    """Return the index of a change's shade in ``SHADES``: 4 for the largest changes, 0 for no change.

    ``least`` and ``most`` are the smallest and the largest change. If ``most`` is over ``WIDE`` times ``least``, the
    index is 4 for changes over a tenth of the largest, 3 over a hundredth, 2 over a thousandth, and 1 for smaller
    changes. Otherwise, the four shades divide the range evenly on a log scale: in most fine-tunings, all changes are
    within a factor of ten.
    """
    if change == 0 or most == 0:
        return 0
    step = 10.0 if most > WIDE * least else max(NARROW, (most / least) ** 0.25)
    return max(1, 4 - math.floor(math.log(most / change) / math.log(step) + 1e-9))


def _number(change: float) -> str:
    if change == 0:
        return "·"
    return percent_number(change)


def _elsewhere(changes: Mapping[str, float], model: str) -> Iterator[RenderableType]:
    changed = sorted(((key, one) for key, one in changes.items() if one != 0), key=lambda pair: _largest_first(pair[1]))
    if changes:
        rows = [[escape(key), "?" if math.isnan(one) else f"{_number(one)} %"] for key, one in changed[:SHOWN]]
        same = len(changes) - len(changed)
        rows += [[f"and {len(changed) - SHOWN} more", ""]] if len(changed) > SHOWN else []
        rows += [[f"{count(same, 'tensor')} the same", ""]] if same else []
        yield Text(f"  {model}  elsewhere" if model else "  elsewhere", style="bold")
        yield Columns(rows, right=(1,), indent=4)
        if model:
            yield Text("")


def _largest_first(change: float) -> tuple[bool, float]:
    """Return a sort key that puts unknown changes (NaN) first, then the largest change, and the smallest last."""
    return (False, 0.0) if math.isnan(change) else (True, -change)


def _only_in_one(found: Difference) -> Iterator[RenderableType]:
    for keys, said in ((found.removed, "only in A"), (found.added, "only in B")):
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            yield Hanging(Text(f"  {said}  "), Text(", ".join(map(escape, keys[:SHOWN])) + more))
