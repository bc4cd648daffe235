"""What the checks look at: files, tensors, figures of their values, notes, and facts on the folder around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ...tensors.info import TensorInfo
from .families import is_weight
from .measuring.figures import Figures
from .measuring.measured import Measured
from .shards import IndexFacts, ShardFacts

__all__ = ["AdapterFacts", "CardFacts", "Factors", "Subject"]


@dataclass(frozen=True)
class CardFacts:
    """The README.md of a model's folder: its front matter, or why it cannot be read; ``is_there`` is false without."""

    is_there: bool = False
    fields: Mapping[str, object] | None = None
    fault: str = ""


@dataclass(frozen=True)
class Factors:
    """The factors of an adapter for one module: keys and shapes of A and B; '' and () for a missing one.

    ``base`` is the shape of the module's weight in the base, () if it is not there.
    """

    module: str
    a: str = ""
    b: str = ""
    a_shape: tuple[int, ...] = ()
    b_shape: tuple[int, ...] = ()
    is_embedding: bool = False
    base: tuple[int, ...] = ()


@dataclass(frozen=True)
class AdapterFacts:
    """A PEFT adapter: its factors by module, and how many modules each entry of ``target_modules`` matches.

    ``has_base`` says whether the modules were compared with those of a base; ``is_chosen`` is whether its configuration
    names the layers that it is for.
    """

    factors: tuple[Factors, ...] = ()
    matches: Mapping[str, int] = field(default_factory=dict)
    is_chosen: bool = False
    has_base: bool = False


@dataclass(frozen=True)
class Subject:
    """A checkpoint to check. ``tensors`` are those that can be read, ``measured`` the figures of their values.

    ``parts`` maps the keys of quantised tensors' parts to their endings, such as ``.scales``, and ``codes`` has those
    of codes. ``tied`` are pairs of an embedding and an output layer that are stored although one should be the other.
    ``embeddings`` are the keys of embeddings of tokens, ``heads`` those of output layers over them. ``tokens`` is the
    number of tokens, 0 if it is not known, ``padding`` the row of the padding token, unless another token has the same.

    ``bad_checksums`` are the names of records that their checksum contradicts, of ``checksums`` in all.

    ``fault`` is the reason if a shard is damaged, so that the files around cannot be compared with the weights, and
    ``unexplained`` the error of opening it, if no check finds the cause.
    """

    path: str
    format: str
    tensors: Mapping[str, TensorInfo]
    measured: Mapping[str, Measured]
    shards: tuple[ShardFacts, ...] = ()
    index: IndexFacts | None = None
    notes: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    tied: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    tokens: int = 0
    padding: int | None = None
    checksums: int = 0
    bad_checksums: tuple[str, ...] = ()
    has_configuration: bool = False
    card: CardFacts | None = None
    adapter: AdapterFacts | None = None
    fault: str = ""
    unexplained: str = ""

    @cached_property
    def weights(self) -> tuple[tuple[str, TensorInfo, Figures], ...]:
        """(Key, header, figures) of each plain weight; parts of quantised tensors and aliases are left out."""
        found: dict[object, tuple[str, TensorInfo, Figures]] = {}
        for key, one in self.measured.items():
            info = self.tensors[key]
            if one.figures is not None and key not in self.parts and not one.is_of_scales and is_weight(key, info):
                found.setdefault(info.place if info.place is not None else key, (key, info, one.figures))
        return tuple(found.values())
