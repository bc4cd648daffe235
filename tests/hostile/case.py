"""One hostile file: what it breaks, how it is made, and how it must be refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import ckptsurgeon as cs

from ..helpers.depth import FULL
from ..promises.clauses import clause

LOOK = ("inspect", "{}")
COPY = ("convert", "{}", "-o", "out.safetensors")


@dataclass(frozen=True)
class Refusal:
    """The class of an error and the short name of the rule that was broken."""

    error: str
    rule: str

    @property
    def exit_code(self) -> int:
        kind: type[cs.CheckpointError] = getattr(cs, self.error)
        return kind.exit_code


def broken(rule: str) -> Refusal:
    """The file breaks a rule of its format."""
    return Refusal("FormatError", rule)


def unsafe(rule: str) -> Refusal:
    """The file would be dangerous to interpret."""
    return Refusal("UnsafeError", rule)


@dataclass(frozen=True)
class Case:
    """``make`` writes into the working directory and returns the path that the commands are given for ``{}``."""

    name: str
    clause: str
    refusal: Refusal
    make: Callable[[], str]
    commands: Sequence[Sequence[str]] = (LOOK, COPY)


def written(path: str, data: bytes) -> Callable[[], str]:
    """A maker of one file."""

    def make() -> str:
        Path(path).write_bytes(data)
        return path

    return make


def by_refusal(
    promise: str, names: Mapping[Refusal, Sequence[str]], make: Callable[[str], Callable[[], str]]
) -> list[Case]:
    """Cases listed by how they must be refused; ``make`` gives the maker of a case by its name."""
    return [Case(name, promise, refusal, make(name)) for refusal, listed in names.items() for name in listed]


def each(cases: Iterable[Case], long: Collection[str] = (), costly: Collection[str] = ()) -> Any:
    """Run a test for each case, marked with the promise that it is of; make test leaves out those in ``long``.

    Those in ``costly`` take a second for each command, all of it in the reader: make test gives them to the first only.
    """

    def commands(case: Case) -> Sequence[Sequence[str]]:
        return case.commands if FULL or case.name not in costly else case.commands[:1]

    def marks(case: Case) -> list[pytest.MarkDecorator]:
        return [clause(case.clause), *([pytest.mark.long] if case.name in long else [])]

    return pytest.mark.parametrize(
        "case", [pytest.param(replace(c, commands=commands(c)), id=c.name, marks=marks(c)) for c in cases]
    )


def all_named(cases: Iterable[Case], names: Iterable[str]) -> bool:
    """Whether every file of a collection has a case, so that a new one cannot be forgotten."""
    return {case.name for case in cases} >= set(names)
