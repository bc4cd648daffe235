"""The description of a destination: its tensors, how they are initialised, and how sources are adapted to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from ..errors import ConfigError
from ..tensors.info import TensorInfo
from ..util.short_repr import Brief
from ..util.text import count, escape

if TYPE_CHECKING:
    from .operations.perform import DerivedSource

__all__ = [
    "Companion",
    "Draw",
    "Initial",
    "InitialFile",
    "KnownLayout",
    "Pieces",
    "Recognise",
    "TargetSpec",
    "Undrawable",
]

Initial: TypeAlias = Callable[[Iterable[str], int], Iterator[tuple[str, memoryview]]]
"""``initial(keys, seed)`` yields each key with its initial values: little-endian bytes that the caller may change."""


class Draw(NamedTuple):
    """The operation of torch that fills a tensor, such as ``normal_``, and its arguments."""

    how: str
    numbers: tuple[float, ...]


class Pieces(Protocol):
    """A function that yields initial values of a tensor in pieces of whole rows, in order; threads may call it."""

    def __call__(self, key: str, seed: int, had: Sequence[int] | None = None, /) -> Iterator[memoryview]:
        """Yield the values of the tensor ``key`` as bytes; ``had`` is the shape of the source's tensor, if any.

        The source's values are the first along each dimension; they need not be drawn.
        """
        ...


@dataclass(frozen=True, repr=False)
class Companion(Brief):
    """A small file that an output folder gets: a copy of the file ``path`` or, if ``path`` is empty, ``text``."""

    name: str
    path: str = ""
    text: str = ""


@dataclass(frozen=True, repr=False)
class InitialFile(Brief):
    """A checkpoint with initial values of some tensors; ``keys`` maps the destination's keys to the checkpoint's keys.

    ``root`` is the dotted path of its state dict. ``stripped`` are prefixes, such as ``module``, that the checkpoint's
    keys have and the values of ``keys`` lack. ``op`` is "keep" if the destination's declaration (``init: like``) keeps
    these values, "copy" if the model's constructor loads them; ``rule`` says this in words.
    """

    path: str
    root: str
    keys: Mapping[str, str]
    op: str
    rule: str
    stripped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Undrawable:
    """The reason why the initial values of some tensors cannot be used, and a hint for the user.

    ``why`` and ``hint`` are parts of an error; in its message the name of the destination comes before ``why``.
    ``{keys}`` in ``why`` and ``{key}`` in ``hint`` are replaced by the tensors' keys. If ``allowed`` is true, the
    values are used nevertheless for tensors that the user selects with --reinit.
    """

    why: str
    hint: str
    allowed: bool = False


@dataclass(frozen=True, repr=False)
class KnownLayout(Brief):
    """Changes that a destination makes to a source whose layout, or whose older names, it recognises.

    The changes are made even if no option asks for them. The ``operations``, in the form in which users write them, are
    applied first. ``names`` then maps the resulting keys to the destination's keys. ``by`` is the owner of the
    resulting names, such as the name of a library. ``unknown`` maps each key of the destination that the source cannot
    provide to the reason. ``derived`` is the source after the operations, or None if they were not performed to find
    the names.
    """

    operations: tuple[Mapping[str, Any], ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    by: str = ""
    unknown: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    derived: DerivedSource | None = None


Recognise: TypeAlias = Callable[[Mapping[str, TensorInfo]], KnownLayout]


def _nothing_to_draw(keys: Iterable[str], seed: int) -> Iterator[tuple[str, memoryview]]:
    for key in keys:
        raise ConfigError(f"the destination has no initialiser for the tensor {key}.")
    return iter(())


@dataclass(frozen=True, repr=False)
class TargetSpec(Brief):
    """A destination: all its tensors, in state-dict order, and how it initialises tensors that are in no source.

    ``initial`` yields initial values for keys. ``draws`` has the operations that fill tensors whose values are the
    result of a single operation; ``pieces`` yields the values of these tensors in pieces. ``ties`` maps each further
    key of a tensor to its first key. ``layers`` are module prefixes in the model's own order, output layer last.
    ``vocabulary`` maps a key to its vocabulary axis.

    A destination that is a checkpoint keeps its own values of tensors that are in no source: then ``keeps`` is its path
    and ``keeps_root`` the dotted path of the state dict in it, or ``kept`` is the checkpoint itself. Quantised values
    are decoded when they are read: ``decoded`` maps the keys of the decoded tensors to their dtypes. ``given`` are
    files that contain the initial values of some tensors, instead of an initialiser. ``undrawable`` has the keys that
    have no initialiser, or only one that must not be used.

    ``config`` is the path of the configuration, ``files`` are the files that it reads. ``ran`` lists the code that was
    run to make this object. ``recognise`` finds changes that a source needs because of its layout or older names. An
    output folder also gets the ``companions``, such as config.json. It does not store the tensors in ``implied``, since
    the library that loads the folder ties them to other tensors. If the destination was given another vocabulary,
    ``lists`` are the files of the old and the new token list, or only the old file if the new list was made from it.
    ``extra_state`` are keys of its state dict with the extra state of modules, which is not tensors.
    ``build`` makes the live module, if the destination is one. ``cache_key`` identifies the module's entry in the
    user's cache; it is "" if there is no entry.
    """

    kind: str
    name: str
    tensors: Mapping[str, TensorInfo]
    initial: Initial = _nothing_to_draw
    draws: Mapping[str, Draw] = field(default_factory=dict, repr=False, compare=False)
    pieces: Pieces | None = field(default=None, repr=False, compare=False)
    ties: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()
    vocabulary: Mapping[str, int] = field(default_factory=dict)
    keeps: str = ""
    keeps_root: str = ""
    decoded: Mapping[str, str] = field(default_factory=dict)
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
    extra_state: tuple[str, ...] = ()
    build: Callable[[], object] | None = None
    cache_key: str = field(default="", repr=False, compare=False)

    def __repr__(self) -> str:
        return f"<TargetSpec {self.kind} {escape(self.name)}: {count(len(self.tensors), 'tensor')}>"
