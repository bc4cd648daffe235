"""What an encoding says of itself, and the logical tensors of a state dict that are stored as codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..dtypes import DTYPES
from ..info import TensorInfo
from ._settings import Said

__all__ = ["ACTIVATIONS", "NO_CODES", "CodedTensor", "Codes", "Encoding", "Logical", "Parts", "same_shape", "some"]

Parts: TypeAlias = Mapping[str, TensorInfo]
"""The stored tensors of one logical tensor, by how their keys end; the one that tells the encoding comes first."""

ACTIVATIONS = (
    ".input_scale", ".input_scale_inv", ".input_scale_ub", ".input_zero_point", ".input_global_scale",
    ".input_activation_scale", ".output_scale", ".output_zero_point", ".output_activation_scale", ".activation_scale",
    ".act_scale", ".scale_input", ".qscale_act", ".pre_quant_scale", ".smooth_scale", ".k_scale", ".v_scale",
    ".k_zero_point", ".v_zero_point", ".comfy_quant", ".activation_scaling_factor", ".prequant_scaling_factor",
    ".input_descale", ".output_descale", ".input_amax", ".output_amax", ".weight_amax",
)  # fmt: skip
"""What any encoding of a module may have beside its codes: for its activations, and ComfyUI's note of its format."""


@dataclass(frozen=True, slots=True)
class Logical:
    """What codes stand for: ``method`` in words, the number of parameters, and their shape if headers tell it.

    ``parameters`` is None if headers do not tell even that; there are ``at_least`` so many.
    """

    method: str
    parameters: int | None
    shape: tuple[int, ...] | None = None
    at_least: int = 0

    @staticmethod
    def of(method: str, shape: tuple[int, ...]) -> Logical:
        """Return what codes stand for whose shape is known."""
        return Logical(method, math.prod(shape), shape)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one tensor is stored as several, whose keys differ only in how they end.

    A key that ends in ``telling``, of one of ``dtypes``, tells the encoding if there is also a key that ends in one of
    ``marks`` instead (no marks: by itself). ``others`` are the endings of what else belongs to it. ``codes`` is the
    ending of the codes, if they are not what is ``telling``; ``named`` how the key of the tensor that is meant ends.
    ``logical`` returns what the codes stand for, None if shapes or dtypes say that this is not the encoding.
    ``places`` maps all of these endings to their order, and ``is_of_modules`` says that each is a name in one module.
    """

    telling: str
    dtypes: frozenset[str]
    marks: tuple[str, ...]
    logical: Callable[[Parts, Said], Logical | None]
    others: tuple[str, ...] = ()
    codes: str | None = None
    named: str = ".weight"
    places: Mapping[str, int] = field(init=False)
    is_of_modules: bool = field(init=False)

    def __post_init__(self) -> None:
        endings = (self.telling, *self.marks, *self.others)
        of_modules = all(end[:1] == "." for end in endings) and self.telling.count(".") == 1
        if of_modules:
            endings += ACTIVATIONS
        object.__setattr__(self, "places", {end: i for i, end in enumerate(dict.fromkeys(endings))})
        object.__setattr__(self, "is_of_modules", of_modules and all("." not in end[1:] for end in endings))


def same_shape(method: str) -> Callable[[Parts, Said], Logical]:
    """Return the ``logical`` of an encoding with one code for each parameter."""

    def logical(parts: Parts, said: Said) -> Logical:
        return Logical.of(method, next(iter(parts.values())).shape)

    return logical


def some(method: str) -> Callable[[Parts, Said], Logical]:
    """Return the ``logical`` of an encoding whose headers do not tell how many parameters a code stands for."""

    def logical(parts: Parts, said: Said) -> Logical:
        return Logical(method, None, at_least=next(iter(parts.values())).numel)

    return logical


# The logical tensors of a state dict that are stored as codes.


@dataclass(frozen=True, slots=True)
class CodedTensor:
    """A logical tensor: ``parts`` maps how their keys end to the keys of what is stored of it.

    ``name`` is the key that it would have if it were stored plainly, ``codes`` the key of its codes, ``method`` says in
    words how it is encoded. ``codes`` is "" if they are elsewhere, as those of one shard can be. ``parameters`` counts
    what it stands for, None if no header tells it, but ``at_least`` so many; ``shape`` is None if no header tells it.
    ``more_codes`` are those that share its parts, in unknown encodings.
    """

    name: str
    method: str
    codes: str
    parts: Mapping[str, str]
    parameters: int | None
    shape: tuple[int, ...] | None = None
    at_least: int = 0
    more_codes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of everything that is stored of it."""
        return tuple(self.parts.values())


@dataclass(frozen=True)
class Codes:
    """The logical tensors of a state dict that are stored as codes, and which of them a key belongs to."""

    tensors: tuple[CodedTensor, ...] = ()
    by_key: Mapping[str, CodedTensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def only(self, keys: Container[str]) -> Codes:
        """Return those whose codes are among ``keys``, or their first part if their codes are elsewhere."""
        found = tuple(one for one in self.tensors if (one.codes or one.keys[0]) in keys)
        return self if len(found) == len(self.tensors) else Codes(found, self.by_key)

    def parameters(self, key: str, info: TensorInfo) -> int:
        """Return what a stored tensor counts at least: codes what they stand for, what decodes them nothing."""
        coded = self.by_key.get(key)
        if coded is None:
            return info.parameters
        return coded.at_least if key == coded.codes else 0

    def is_counted(self, key: str) -> bool:
        """Whether headers tell how many parameters a stored tensor counts."""
        coded = self.by_key.get(key)
        return coded is None or coded.parameters is not None or key != coded.codes

    def has_numbers(self, key: str, info: TensorInfo) -> bool:
        """Whether the values of a stored tensor are numbers: all but codes, and integers that decode them."""
        coded = self.by_key.get(key)
        return coded is None or (DTYPES[info.dtype].kind == "float" and key not in (coded.codes, *coded.more_codes))

    def methods(self) -> dict[str, int]:
        """Return how many tensors are encoded by each method, the most frequent first."""
        found: dict[str, int] = {}
        for one in self.tensors:
            found[one.method] = found.get(one.method, 0) + 1
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


NO_CODES = Codes()
