"""A family of networks, and the layouts that libraries store it in; all of this is data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from ...tensors.info import TensorInfo

__all__ = ["NO_NUMBERS", "Change", "Family", "Layout", "LayoutChange", "Numbers", "Row", "Tensors", "Unfit"]

Tensors: TypeAlias = Mapping[str, TensorInfo]
Row: TypeAlias = Mapping[str, Any]
"""An operation as users write it: ``{"transpose": "layers.{n}.fc.weight"}``."""
Numbers: TypeAlias = Mapping[str, int]
"""Numbers that shapes do not show, by name: ``{"heads": 32, "keys": 8}``."""
NO_NUMBERS: Numbers = {}


class Unfit(NamedTuple):
    """The reason why a network cannot be converted to or from a layout, and a hint: what the user can do."""

    why: str
    hint: str


class Change(Protocol):
    """A reversible change of tensors between the family's own layout and another.

    ``there`` returns the operations that make the layout's tensors, and ``back`` those that reverse them; both return
    no operations if ``tensors`` has no tensor to change. ``numbers`` maps the names of numbers that shapes do not show,
    such as "heads", to their values. ``at`` is a function that turns a name of the family into the present name of the
    tensor.
    """

    @property
    def made(self) -> str:
        """The pattern of the tensors that the change makes for this layout; '' if it makes no new names."""

    def there(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that make the other layout's tensors."""

    def back(self, tensors: Tensors, numbers: Numbers, at: Callable[[str], str]) -> list[Row]:
        """Return the operations that make the tensors of the family's own layout."""


@dataclass(frozen=True)
class Layout:
    """The tensors of a family as one library stores them.

    ``name`` is the value of ``--layout``, ``library`` says whose layout it is, and ``tested`` names the code and the
    version that it was compared with. ``names`` maps the family's names, which are patterns of modules or keys, to the
    library's names; a module that is not in this map does not exist in the library, unless one of the ``changes`` makes
    another tensor from it. ``marks`` are keys that every state dict in this layout has. ``computed`` are patterns of
    tensors that the library computes itself: other layouts need not have them.

    ``tied``, ``doubled`` and ``needed`` map a name of the family to the name of the tensor that it equals. A name in
    ``tied`` is not stored here. A name in ``doubled`` is stored, although the two tensors are always equal. A name in
    ``needed`` must be stored; if another layout leaves it out, it is a copy of the other tensor.

    A name in ``zeros`` must be stored, although only training uses it; if another layout leaves it out, it is zeros.
    The value is the name of a tensor with as many elements as the zeros, and the shape of the zeros as ``reshape``
    takes it (-1 for the remaining size).

    The modules in ``biases`` must have a bias; if another layout leaves it out, it is zeros. The value is the dimension
    of the module's outputs in the weight of the family's own layout.

    ``training`` are patterns of tensors that only training uses; they are left out if another layout has no name for
    them. ``aside`` maps patterns of further tensors, which other layouts do not need, to the reason; it completes the
    note "left out: …, ". ``is_bare`` is true for a form without an output head, or without the prefix of a component;
    it is written if no tensor needs another form. A layout with ``only_read`` is not written if another fits; one with
    ``only_written`` is written, but never recognised. ``omits`` maps patterns of tensors that are not written to the
    reason; a pattern may have the names of any layout of the family. ``fits`` is a function that returns whether
    tensors, among them all marks, have the shapes of this layout. ``settings`` is a note on a difference that no tensor
    shows: how the library's network differs from the network of transformers. config.json may have to say this.
    ``written`` is a note on tensors that get this layout, ``read`` on tensors that had it. ``unsure`` is a note that is
    given if the configuration is not known, and another layout of this name has names for as many tensors. ``unfit`` is
    a function that returns why a network with the given configuration cannot have this layout, as the library computes
    something else; None if it can. ``beside_list`` is for layers that are not in the list of layers: it maps their
    prefixes to the prefixes that they would have in the list. ``lacking`` are blocks that are missing from the network,
    judging by its other blocks.
    """

    name: str
    library: str
    tested: str
    names: Mapping[str, str]
    marks: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    computed: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    training: tuple[str, ...] = ()
    aside: Mapping[str, str] = field(default_factory=dict)
    is_bare: bool = False
    doubled: Mapping[str, str] = field(default_factory=dict)
    needed: Mapping[str, str] = field(default_factory=dict)
    zeros: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    fits: Callable[[Tensors], bool] = lambda tensors: True
    settings: str = ""
    written: str = ""
    read: str = ""
    unsure: str = ""
    only_read: bool = False
    only_written: bool = False
    omits: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, int] = field(default_factory=dict)
    unfit: Callable[[Mapping[str, Any]], Unfit | None] = lambda config: None
    beside_list: Mapping[str, str] = field(default_factory=dict)
    lacking: tuple[str, ...] = ()

    @property
    def left(self) -> tuple[str, ...]:
        """The patterns of tensors that other layouts may lack; a note says which tensors are left out."""
        return (*self.computed, *self.training, *self.aside)


@dataclass(frozen=True)
class Family:
    """A family of networks that compute the same, and the ``layouts`` that libraries store them in.

    The first layout has the family's own names; the others have names for the same modules and keys, or for some.

    A library with several forms, such as a model with and without its output head, has several layouts of one name.
    ``numbers`` is a function that finds the numbers that shapes do not show, from the tensors and the fields of a
    configuration. Each of the groups ``some`` exists in some layers only: a layer has all tensors of a group that other
    layers have, or none. All other tensors of a layer exist in all layers. Changes may reorder the rows of queries and
    keys only if config.json has one of the values ``rotated`` as its ``model_type``: other networks with the same names
    may rotate other rows.

    Each group in ``alike`` has modules, by the family's names, that have the same tensors, except those in ``some``.
    Names may depend on the structure of a network: in a U-Net, on the number of levels. Then ``shaped`` is a function
    that returns the family with the names for the network in the given tensors; None if it is another network. Two
    families with the same ``kin`` differ only in layers that a destination need not have. ``routed`` has the family's
    names of a router's weight, which has a row for each expert, and of a matrix of an expert.
    """

    name: str
    layouts: tuple[Layout, ...]
    numbers: Callable[[Tensors, Mapping[str, Any]], Numbers] = lambda tensors, config: NO_NUMBERS
    some: tuple[tuple[str, ...], ...] = ()
    rotated: tuple[str, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()
    shaped: Callable[[Tensors], Family | None] | None = None
    kin: Hashable = None
    routed: tuple[str, str] | tuple[()] = ()

    def of(self, tensors: Tensors) -> Family | None:
        """Return this family with the names of the network ``tensors``; None if ``shaped`` finds another network.

        A family without ``shaped`` is returned unchanged for every network: its names are the same for all of them.
        """
        return self.shaped(tensors) if self.shaped is not None else self

    def is_for(self, other: Family) -> bool:
        """Return whether tensors of the family ``other`` have names in the layouts of this family."""
        return self is other or (self.kin is not None and self.kin == other.kin)

    def named(self, name: str) -> list[Layout]:
        """Return the layouts called ``name``, in their order."""
        return [layout for layout in self.layouts if layout.name == name]


@dataclass(frozen=True)
class LayoutChange:
    """A change of layout: operations, then rules FROM=TO for all tensors except those that ``exclude`` matches."""

    operations: tuple[Row, ...]
    rules: tuple[str, ...]
    exclude: tuple[str, ...]
