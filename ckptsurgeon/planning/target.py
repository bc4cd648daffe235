"""What a destination wants: its tensors, how it draws them, what runs along its vocabulary, what it recognises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..errors import ConfigError
from ..tensors.info import TensorInfo
from ..util.brief import Brief
from ..util.text import count, escape

__all__ = ["Companion", "Initial", "Recognise", "Recognised", "TargetSpec"]

Initial: TypeAlias = Callable[[Iterable[str], int], Iterator[tuple[str, memoryview]]]
"""``initial(keys, seed)`` yields each key with its drawn values: contiguous, little-endian bytes, the caller's own."""


@dataclass(frozen=True, repr=False)
class Companion(Brief):
    """A small file that goes into an output folder beside the weights: a copy of ``path``, else ``text``."""

    name: str
    path: str = ""
    text: str = ""


@dataclass(frozen=True, repr=False)
class Recognised(Brief):
    """What a destination makes of a source by itself, because it knows its layout or the older names of its keys.

    ``operations`` are as people write them; ``names`` maps the keys that they leave to those of the destination, ``by``
    says whose names these are. ``unknown`` maps keys of the destination to why what they would be made of is not.
    """

    operations: tuple[Mapping[str, Any], ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    unknown: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Recognise: TypeAlias = Callable[[Mapping[str, TensorInfo]], Recognised]


def _nothing_to_draw(keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
    for key in keys:
        raise ConfigError(f"the destination does not say how {key} is initialised.")
    return iter(())


@dataclass(frozen=True, repr=False)
class TargetSpec(Brief):
    """A destination: every tensor it wants, in state-dict order, and how it draws those nobody gives it.

    ``ties`` maps a key to the first key of the same tensor. ``layers`` are module prefixes in the model's own
    order, output layer last. ``vocabulary`` maps a key to the axis its vocabulary runs along. ``keeps`` is set
    to the path of a checkpoint (and ``keeps_root`` to the root in it) when the destination is one, whose own
    values stay where no source gives one; ``kept`` is that checkpoint itself, where no path was given. ``undrawable``
    are the keys that say nothing of their initial values.
    ``config``, ``files``: the configuration and what it reads, as paths. ``ran`` names what code was run.
    ``recognise`` knows a source's layout and older names. A folder gets the ``companions`` too, and lacks those names
    of tied tensors that are ``implied`` there. ``lists`` are the files of the old and the new token list, if it was
    given another vocabulary. ``build`` makes the live module, where the destination is one.
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
