"""The data that the checks examine: files, tensors, figures of their values, notes, and facts about the folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt

from ...tensors.info import TensorInfo
from ...util.notes import Note
from .checked_sums import RecipeSums
from .measuring.figures import Figures
from .measuring.measured import Measured
from .shards import IndexFacts, ShardFacts
from .tensor_roles import is_weight

__all__ = ["AdapterFacts", "CardFacts", "ClassFacts", "Factors", "Subject", "WeightSize"]


@dataclass(frozen=True)
class CardFacts:
    """The README.md of a model's folder; ``is_there`` is false if the folder has none.

    ``fields`` is its front matter; ``fault`` is the reason if the front matter cannot be read.
    """

    is_there: bool = False
    fields: Mapping[str, object] | None = None
    fault: str = ""


@dataclass(frozen=True)
class ClassFacts:
    """How the tensors differ from the tensors of the model's class in transformers.

    ``unknown`` is the reason if the two were not compared.
    ``faults`` are notes on tensors that are missing or have another shape, ``remarks`` notes on other differences.
    ``unbuilt`` is the reason if the class cannot be built. ``refused`` is the reason if the installed configuration
    class refuses config.json: then ``from_pretrained`` fails, too. ``tied`` has the keys of each group of tensors that
    the class ties, but that are stored separately.
    """

    unknown: str = ""
    faults: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    unbuilt: str = ""
    refused: str = ""
    tied: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Factors:
    """The factors of an adapter for one module: the keys and shapes of A and B; '' and () for a missing factor.

    ``base`` is the shape of the module's weight in the base model; () if the base is not given or lacks the module. If
    the weight is a stack of experts, the factors are those of so many ``experts``; else this is 0.
    """

    module: str
    a: str = ""
    b: str = ""
    a_shape: tuple[int, ...] = ()
    b_shape: tuple[int, ...] = ()
    is_embedding: bool = False
    base: tuple[int, ...] = ()
    experts: int = 0


@dataclass(frozen=True)
class WeightSize:
    """The root mean square of the values of a weight, and the number of inputs of its layer."""

    rms: float
    inputs: int

    @property
    def factor(self) -> float:
        """The ratio of the root mean squares of outputs and inputs, if weights and inputs are independent."""
        return self.rms * sqrt(self.inputs)


@dataclass(frozen=True)
class AdapterFacts:
    """A PEFT adapter: its factors by module, and the number of modules that each entry of ``target_modules`` matches.

    ``has_base`` is true if a base model was given. ``is_chosen`` is true if the adapter's configuration selects layers:
    then other layers have no factors. ``unselected`` is the number of modules whose factors PEFT ignores, because no
    entry of ``target_modules`` matches the module. ``magnitudes`` are the keys of DoRA's magnitudes.
    """

    factors: tuple[Factors, ...] = ()
    matches: Mapping[str, int] = field(default_factory=dict)
    unselected: int = 0
    is_chosen: bool = False
    has_base: bool = False
    magnitudes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Subject:
    """A checkpoint to check. ``tensors`` are the tensors that can be read, ``measured`` the figures of their values.

    ``parts`` maps the key of each part of a quantised tensor to the key's ending, such as ``.scales``; ``methods`` maps
    this key to the quantisation method. ``codes`` are the keys of the parts that are codes. ``pickled_scales`` has the
    figures of scales that a pickle stores with a quantised tensor, by the key of this tensor. ``decoded`` has the root
    mean squares of some weights that quantised tensors encode, by name. ``odd`` has the names of the weights with
    implausible scales, by kind (see ``tensors.odd_scales``). ``code_bits`` has the number of bits of codes that
    have fewer bits than the bytes that store them, by key. ``tied`` are pairs of an embedding and an output layer that
    are both stored, although the configuration ties them. ``embeddings`` are the keys of token embeddings,
    ``heads`` the keys of their output layers. ``tokens`` is the number of tokens, 0 if it is not known. ``names`` are
    the tokens in the order of their rows, () if this order is not known. ``padding`` is the row of the padding token,
    None if another token has the same id. ``kind`` is the ``model_type`` of transformers; "" if it is not known.

    ``strays`` are files named like shards, beside a file with all weights that has no index.

    ``checksums`` is the number of records with a stored checksum. ``bad_checksums`` are the names of the records whose
    bytes do not match their checksum, ``damaged`` the keys of the tensors in these records. ``recipe`` is the
    comparison with the checksums in ckptsurgeon's recipe.

    ``in_memory`` is true if the tensors are not in a file. If a shard is damaged, ``fault`` says why: then the other
    files cannot be compared with the weights. ``unexplained`` is the error if the checkpoint cannot be opened and no
    check finds the cause. ``file`` is the name of the only file of the weights; '' if there are several.
    """

    path: str
    format: str
    tensors: Mapping[str, TensorInfo]
    measured: Mapping[str, Measured]
    shards: tuple[ShardFacts, ...] = ()
    index: IndexFacts | None = None
    strays: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    methods: Mapping[str, str] = field(default_factory=dict)
    codes: frozenset[str] = frozenset()
    pickled_scales: Mapping[str, Figures] = field(default_factory=dict)
    decoded: Mapping[str, WeightSize] = field(default_factory=dict)
    odd: Mapping[str, Sequence[str]] = field(default_factory=dict)
    code_bits: Mapping[str, int] = field(default_factory=dict)
    tied: tuple[tuple[str, str], ...] = ()
    embeddings: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    tokens: int = 0
    names: tuple[str, ...] = field(default=(), repr=False)
    padding: int | None = None
    kind: str = ""
    checksums: int = 0
    bad_checksums: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    recipe: RecipeSums = field(default_factory=RecipeSums)
    in_memory: bool = False
    has_configuration: bool = False
    card: CardFacts | None = None
    adapter: AdapterFacts | None = None
    fault: str = ""
    unexplained: str = ""
    file: str = ""
    look_at_class: Callable[[], ClassFacts] = field(
        default=lambda: ClassFacts("the weights are in no folder with a config.json"), repr=False
    )

    @cached_property
    def of_class(self) -> ClassFacts:
        """The comparison with the model's class; made by ``look_at_class`` at the first use, which may take seconds."""
        return self.look_at_class()

    @cached_property
    def by_weight(self) -> Mapping[str, Mapping[str, str]]:
        """{prefix: {ending: key}}: the parts of each quantised weight, by the prefix that all their keys share."""
        found: dict[str, dict[str, str]] = {}
        for key, end in self.parts.items():
            found.setdefault(key.removesuffix(end), {})[end] = key
        return found

    @cached_property
    def weights(self) -> tuple[tuple[str, TensorInfo, Figures], ...]:
        """(Key, header, figures) for each weight matrix; parts of quantised tensors and aliases are left out."""
        found: dict[object, tuple[str, TensorInfo, Figures]] = {}
        for key, one in self.measured.items():
            info = self.tensors[key]
            if one.figures is not None and key not in self.parts and not one.is_of_scales and is_weight(key, info):
                found.setdefault(info.place if info.place is not None else key, (key, info, one.figures))
        return tuple(found.values())
