"""The specification of a destination: its tensors, how it draws them, its vocabulary axes, what it recognises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import ConfigError
from ..tensors.info import TensorInfo
from ..util.brief import Brief
from ..util.text import count, escape

__all__ = ["Companion", "Initial", "KnownLayout", "Recognise", "TargetSpec"]

Initial: TypeAlias = Callable[[Iterable[str], int], Iterator[tuple[str, memoryview]]]
"""``initial(keys, seed)`` yields each key with its drawn values: contiguous, little-endian bytes, the caller's own."""


@dataclass(frozen=True, repr=False)
class Companion(Brief):
    """A small file for an output folder, next to the weights: a copy of ``path``, else ``text``."""

    name: str
    path: str = ""
    text: str = ""


@dataclass(frozen=True, repr=False)
class KnownLayout(Brief):
    """The changes that a destination makes to a source by itself, since it knows its layout or older key names.

    ``operations`` are in the form that users write; ``names`` maps the resulting keys to those of the destination,
    ``by`` names whose keys these are. ``unknown`` maps keys of the destination that cannot be made to the reason.
    """

    operations: tuple[Mapping[str, Any], ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    unknown: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Recognise: TypeAlias = Callable[[Mapping[str, TensorInfo]], KnownLayout]


def _nothing_to_draw(keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
    for key in keys:
        raise ConfigError(f"the destination does not say how {key} is initialised.")
    return iter(())


@dataclass(frozen=True, repr=False)
class TargetSpec(Brief):
    """A destination: all its tensors, in state-dict order, and how it draws those that no source gives.

    ``ties`` maps a key to the first key of the same tensor. ``layers`` are module prefixes in the model's own order,
    output layer last. ``vocabulary`` maps a key to its vocabulary axis. ``keeps`` is the path of a checkpoint (and
    ``keeps_root`` the root in it) if the destination is one, whose values are kept if no source gives others; ``kept``
    is that checkpoint itself, if it has no path. ``undrawable`` are the keys without an initialiser. ``config``,
    ``files``: the configuration and the files that it reads, as paths. ``ran`` names code that was run. ``recognise``
    knows a source's layout and older names. A folder also gets the ``companions``, and does not store those names of
    tied tensors that are ``implied`` there. ``lists`` are the files of the old and the new token list, if it was given
    another vocabulary. ``build`` makes the live module, if the destination is one.
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
    undrawable: frozenset[str] = frozenset()
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
