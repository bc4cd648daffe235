"""The search space of a recipe: the values that it marks with ``{search: [0, 1]}`` or ``{choice: [a, b]}``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp, isfinite, log
from typing import Any

from ...errors import ConfigError
from ...util.text import brief_repr, escape

__all__ = ["Parameter", "SearchSpace", "Value", "search_space"]

Value = float | int | str | bool
SEARCH, CHOICE = "search", "choice"
FIELDS = (SEARCH, CHOICE, "log", "whole", "name")
"""The fields of a mark, such as ``{search: [0, 1], log: true}``, in a recipe."""


@dataclass(frozen=True)
class Parameter:
    """A value of a recipe that is searched: a range of numbers, or one of ``choices``.

    ``name`` is the path of the mark in the recipe, such as ``models[0].parameters.weight``, or the name in the mark.
    If ``log`` is true, proposals are spread evenly over the logarithm; if ``whole`` is true, they are whole numbers.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()

    def at(self, share: float) -> Value:
        """Return the value at a position in the range or among the choices, from 0 (the first) to 1 (the last)."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.whole:
            numbers = int(self.high) - int(self.low) + 1
            return int(self.low) + min(int(share * numbers), numbers - 1)
        if self.log:
            value = exp(log(self.low) + share * (log(self.high) - log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(value, self.low), self.high)

    def holds(self, value: Any) -> bool:
        """Return whether a value is one that the parameter can have."""
        if self.choices:
            return any(value == one and type(value) is type(one) for one in self.choices)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (not self.whole or isinstance(value, int))

    def plain(self, value: Any) -> Value:
        """Return a value that a search library proposed, as an int, a float or one of the choices."""
        if self.choices:
            return next(one for one in self.choices if one == value and type(one) is type(value))
        return int(value) if self.whole else float(value)

    def to_json(self) -> dict[str, Any]:
        """Return the parameter as plain data."""
        ends = {} if self.choices else {"low": self.low, "high": self.high, "log": self.log, "whole": self.whole}
        return {"name": self.name, **ends, **({"choices": list(self.choices)} if self.choices else {})}

    @property
    def said(self) -> str:
        """A text with the possible values: ``0 to 1``, ``ties or linear``."""
        if self.choices:
            return " or ".join(escape(str(one), 40) for one in self.choices)
        kind = ", whole" if self.whole else ", logarithmic" if self.log else ""
        return f"{self.low:g} to {self.high:g}{kind}"


@dataclass(frozen=True)
class SearchSpace:
    """The parameters that a recipe marks, and ``document``, the recipe's data with the marks."""

    parameters: tuple[Parameter, ...]
    document: Any

    def at(self, shares: Mapping[str, float]) -> dict[str, Value]:
        """Return {name of a parameter: its value at the position in ``shares``} (see ``Parameter.at``)."""
        return {one.name: one.at(shares[one.name]) for one in self.parameters}

    def filled(self, values: Mapping[str, Value]) -> Any:
        """Return the recipe's data with each mark replaced by its value."""
        return _filled(self.document, "", values)


def search_space(document: Any, name: str) -> SearchSpace:
    """Return the search space of a recipe, whose data is ``document``; ``name`` is the recipe's name in messages.

    Raises ConfigError for a mark that is not valid, for two different marks with one name, and if there are no marks.
    """
    found: dict[str, Parameter] = {}
    for where, mark in _marks(document, ""):
        one = _parameter(f"{escape(name)}: {escape(where)}", where, mark)
        other = found.setdefault(one.name, one)
        if other != one:
            raise ConfigError(
                f"{escape(name)}: the parameter {escape(one.name)} has the range {other.said} in one place, and "
                f"{one.said} in another.",
                hint="Give the name the same range everywhere, or use two names: a name stands for one parameter.",
            )
    if not found:
        raise ConfigError(
            f"{escape(name)} has no parameter to search.",
            hint="Write {search: [0, 1]} in place of a number, or {choice: [a, b]} in place of a value.",
        )
    return SearchSpace(tuple(found.values()), document)


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and (SEARCH in value or CHOICE in value)


def _children(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{where}.{key}" if where else str(key), one) for key, one in value.items())
    elif isinstance(value, list):
        yield from ((f"{where}[{place}]", one) for place, one in enumerate(value))


def _marks(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each mark in a recipe's data with its path."""
    if _is_mark(value):
        yield where, value
        return
    for path, one in _children(value, where):
        yield from _marks(one, path)


def _filled(value: Any, where: str, values: Mapping[str, Value]) -> Any:
    if _is_mark(value):
        return values[value.get("name", where)]
    if isinstance(value, dict):
        return {
            key: _filled(one, path, values) for (path, one), key in zip(_children(value, where), value, strict=True)
        }
    if isinstance(value, list):
        return [_filled(one, path, values) for path, one in _children(value, where)]
    return value


def _parameter(said: str, where: str, mark: Mapping[str, Any]) -> Parameter:
    unknown = next((field for field in mark if field not in FIELDS), None)
    if unknown is not None:
        raise ConfigError(
            f"{said}: a parameter to search has no field {brief_repr(unknown, 40)}.",
            hint=f"Use the fields {', '.join(FIELDS)}.",
        )
    name = mark.get("name", where)
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{said}: the name of the parameter is {brief_repr(name, 40)}, not a string with a character."
        )
    if SEARCH in mark and CHOICE in mark:
        raise ConfigError(f"{said}: a parameter has either search or choice, not both.")
    if CHOICE in mark:
        _check_alone(said, mark)
        return Parameter(name, choices=_choices(said, mark[CHOICE]))
    return _range(said, Parameter(name), mark)


def _check_alone(said: str, mark: Mapping[str, Any]) -> None:
    more = next((field for field in ("log", "whole") if field in mark), None)
    if more is not None:
        raise ConfigError(f"{said}: the field {more} applies only to search, not to choice.", hint="Leave it out.")


def _choices(said: str, values: Any) -> tuple[Value, ...]:
    if not isinstance(values, list) or not all(isinstance(one, (str, int, float)) for one in values):
        raise ConfigError(
            f"{said}: choice is {brief_repr(values)}, not a list of strings, numbers, true or false.",
            hint="Write [a, b].",
        )
    if len({(type(one), one) for one in values}) < len(values) or len(values) < 2:
        why = "the same value twice" if len(values) > 1 else "nothing to choose from"
        raise ConfigError(f"{said}: choice has {why}: {brief_repr(values)}.", hint="Give two or more different values.")
    return tuple(values)


def _range(said: str, empty: Parameter, mark: Mapping[str, Any]) -> Parameter:
    numbers = mark[SEARCH]
    if not isinstance(numbers, list) or len(numbers) != 2 or not all(map(_is_finite, numbers)):
        raise ConfigError(
            f"{said}: search is {brief_repr(numbers)}, not a range.",
            hint="Write [LOW, HIGH], two numbers; for values to choose from write {choice: [a, b, c]}.",
        )
    low, high = numbers
    if low >= high:
        raise ConfigError(f"{said}: the range [{low}, {high}] is empty.", hint="Write the lower number first.")
    for field in ("log", "whole"):
        if not isinstance(mark.get(field, False), bool):
            raise ConfigError(f"{said}: {field} is {brief_repr(mark[field], 40)}, not true or false.")
    is_log, is_whole = mark.get("log", False), mark.get("whole", False)
    if is_log and (low <= 0 or is_whole):
        why = "whole numbers" if is_whole else f"a range that begins at {low}"
        hint = "Leave out log or whole." if is_whole else "Use a range of numbers above 0."
        raise ConfigError(f"{said}: log is not possible with {why}.", hint=hint)
    if is_whole and not (isinstance(low, int) and isinstance(high, int)):
        raise ConfigError(f"{said}: the bounds of the range [{low}, {high}] are not whole numbers.")
    return replace(empty, low=float(low), high=float(high), log=is_log, whole=is_whole)


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300 and isfinite(value)
