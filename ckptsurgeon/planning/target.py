"""The specification of a destination: its tensors, how their initial values are drawn, what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import ConfigError
from ..tensors.info import TensorInfo
from ..util.brief import Brief
from ..util.text import count, escape

__all__ = ["Companion", "Initial", "InitialFile", "KnownLayout", "Recognise", "TargetSpec", "Undrawable"]

Initial: TypeAlias = Callable[[Iterable[str], int], Iterator[tuple[str, memoryview]]]
"""``initial(keys, seed)`` yields each key with its drawn values: little-endian bytes that the caller may change."""


@dataclass(frozen=True, repr=False)
class Companion(Brief):
    """A small file for an output folder, next to the weights: a copy of ``path``, else ``text``."""

    name: str
    path: str = ""
    text: str = ""


@dataclass(frozen=True, repr=False)
class InitialFile(Brief):
    """A checkpoint that has initial values of some tensors; ``keys`` maps the destination's keys to its own.

    ``stripped`` are the wrappers that its keys have and ``keys`` does not. ``op`` is "keep" if a declaration keeps
    these values, "copy" if the model's constructor loads them; ``rule`` says so.
    """

    path: str
    root: str
    keys: Mapping[str, str]
    op: str
    rule: str
    stripped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Undrawable:
    """Why initial values of some tensors cannot be used, said of the destination, and what a user can do.

    ``{keys}`` in ``why`` and ``{key}`` in ``hint`` are the tensors' keys. If ``allowed``, --reinit uses the values.
    """

    why: str
    hint: str
    allowed: bool = False


@dataclass(frozen=True, repr=False)
class KnownLayout(Brief):
    """The changes that a destination makes to a source by itself, since it knows its layout or older key names.

    ``operations`` are in the form that users write; ``names`` maps the resulting keys to those of the destination,
    ``by`` says whose names they are. ``unknown`` maps keys of the destination that no source key gives to the reason.
    """

    operations: tuple[Mapping[str, Any], ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    unknown: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Recognise: TypeAlias = Callable[[Mapping[str, TensorInfo]], KnownLayout]


def _nothing_to_draw(keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
    for key in keys:
        raise ConfigError(f"the destination has no initialiser for {key}.")
    return iter(())


@dataclass(frozen=True, repr=False)
class TargetSpec(Brief):
    """A destination: all its tensors, in state-dict order, and how it draws those that no source gives.

    ``ties`` maps each further key of a tensor to its first. ``layers`` are module prefixes in the model's own order,
    output layer last. ``vocabulary`` maps a key to its vocabulary axis. If the destination is a checkpoint, so that its
    values are kept if no source gives others, ``keeps`` is its path and ``keeps_root`` that of the state dict in it, or
    ``kept`` is the checkpoint itself. ``given`` are files that have the initial values of some tensors, instead of an
    initialiser. ``undrawable`` are the keys without an initialiser, or with one that must not be used.
    ``config`` is the path of the configuration, ``files`` are those that it reads. ``ran`` names code that was run to
    find all this. ``recognise`` finds changes that a source needs because of its layout or older names. An output
    folder also gets the ``companions``, and does not store the names in ``implied``, which whoever loads it ties to
    others. ``lists`` are the files of the old and the new token list, if the destination was given another vocabulary.
    ``build`` makes the live module, if the destination is one.
    """

    kind: str
    name: str
    tensors: Mapping[str, TensorInfo]
    initial: Initial = _nothing_to_draw
    ties: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    keeps: str = ""
    keeps_root: str = ""
    kept: object = field(default=None, repr=False, compare=False)
    given: tuple[InitialFile, ...] = ()
    undrawable: Mapping[str, Undrawable] = field(default_factory=dict)
    config: str = ""
    files: tuple[str, ...] = ()
    ran: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recognise: Recognise | None = None
    companions: tuple[Companion, ...] = ()
    implied: frozenset[str] = frozenset()
    lists: tuple[str, ...] = ()
    build: Callable[[], object] | None = None

    def __repr__(self) -> str:
        return f"<TargetSpec {self.kind} {escape(self.name)}: {count(len(self.tensors), 'tensor')}>"
