"""Defines an encoding, and the quantised tensors of a state dict: logical tensors that are stored as codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..dtypes import DTYPES
from ..info import TensorInfo
from ._settings import QuantisationSettings

__all__ = [
    "ACTIVATIONS",
    "NO_CODES",
    "Encoding",
    "LogicalTensor",
    "Parts",
    "QuantisedTensor",
    "QuantisedTensors",
    "same_shape",
    "some",
]

Parts: TypeAlias = Mapping[str, TensorInfo]
"""The stored tensors of one logical tensor, by the endings of their keys; the identifying one is first."""

ACTIVATIONS = (
    ".input_scale", ".input_scale_inv", ".input_scale_ub", ".input_zero_point", ".input_global_scale",
    ".input_activation_scale", ".output_scale", ".output_zero_point", ".output_activation_scale", ".activation_scale",
    ".act_scale", ".scale_input", ".qscale_act", ".pre_quant_scale", ".smooth_scale", ".k_scale", ".v_scale",
    ".k_zero_point", ".v_zero_point", ".comfy_quant", ".activation_scaling_factor", ".prequant_scaling_factor",
    ".input_descale", ".output_descale", ".input_amax", ".output_amax", ".weight_amax",
)  # fmt: skip
"""Endings of further tensors that any encoding may have: scales of activations, and ComfyUI's note of its format."""


@dataclass(frozen=True, slots=True)
class LogicalTensor:
    """What the headers tell of a quantised tensor: ``method`` in words, number of parameters, and shape if known.

    ``parameters`` is None if the headers do not give the number; it is at least ``at_least``.
    """

    method: str
    parameters: int | None
    shape: tuple[int, ...] | None = None
    at_least: int = 0

    @staticmethod
    def of(method: str, shape: tuple[int, ...]) -> LogicalTensor:
        """Return a logical tensor whose shape is known."""
        return LogicalTensor(method, math.prod(shape), shape)


@dataclass(frozen=True, slots=True)
class Encoding:
    """A way to store one logical tensor as several tensors, whose keys differ only in their endings.

    A key that ends in ``telling``, of one of ``dtypes``, identifies the encoding if there is also a key that ends
    in one of ``marks`` instead (no marks: by itself). ``others`` are the endings of its further parts. ``codes`` is the
    ending of the codes, if it is not ``telling``; ``named`` the ending of the logical tensor's key.
    ``logical`` returns the logical tensor, None if shapes or dtypes show that this is not the encoding.
    ``places`` maps all of these endings to their order; ``is_of_modules`` is set if each is a name in one module.
    """

    telling: str
    dtypes: frozenset[str]
    marks: tuple[str, ...]
    logical: Callable[[Parts, QuantisationSettings], LogicalTensor | None]
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


def same_shape(method: str) -> Callable[[Parts, QuantisationSettings], LogicalTensor]:
    """Return the function ``logical`` of an encoding whose codes have the shape of the logical tensor."""

    def logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
        return LogicalTensor.of(method, next(iter(parts.values())).shape)

    return logical


def some(method: str) -> Callable[[Parts, QuantisationSettings], LogicalTensor]:
    """Return the function ``logical`` of an encoding whose headers do not give the number of parameters."""

    def logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
        return LogicalTensor(method, None, at_least=next(iter(parts.values())).numel)

    return logical


# The logical tensors of a state dict that are stored as codes.


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """A quantised tensor: ``parts`` maps endings to the keys of the tensors that store it.

    ``name`` is the key that it would have if it were stored plainly, ``codes`` the key of its codes, ``method`` its
    encoding in words. ``codes`` is "" if they are in another shard. ``parameters`` is the number of logical
    parameters, None if no header gives it, but ``at_least`` so many; ``shape`` is None if no header gives it.
    ``more_codes`` are further codes with the same parts, in unknown encodings.
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
        """The keys of all tensors that store it."""
        return tuple(self.parts.values())


@dataclass(frozen=True)
class QuantisedTensors:
    """The quantised tensors of a state dict; ``by_key`` maps each stored key to its quantised tensor."""

    tensors: tuple[QuantisedTensor, ...] = ()
    by_key: Mapping[str, QuantisedTensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors)

    def only(self, keys: Container[str]) -> QuantisedTensors:
        """Return the quantised tensors with their codes in ``keys``, or their first part if they have no codes here."""
        found = tuple(one for one in self.tensors if (one.codes or one.keys[0]) in keys)
        return self if len(found) == len(self.tensors) else QuantisedTensors(found, self.by_key)

    def parameters(self, key: str, info: TensorInfo) -> int:
        """Return at least how many parameters a stored tensor holds: codes count as the logical tensor, scales as 0."""
        coded = self.by_key.get(key)
        if coded is None:
            return info.parameters
        return coded.at_least if key == coded.codes else 0

    def is_counted(self, key: str) -> bool:
        """Return whether the headers give the exact number of parameters of a stored tensor."""
        coded = self.by_key.get(key)
        return coded is None or coded.parameters is not None or key != coded.codes

    def has_numbers(self, key: str, info: TensorInfo) -> bool:
        """Return whether the values of a stored tensor are plain numbers: not codes, nor integers that decode them."""
        coded = self.by_key.get(key)
        return coded is None or (DTYPES[info.dtype].kind == "float" and key not in (coded.codes, *coded.more_codes))

    def methods(self) -> dict[str, int]:
        """Return how many tensors are encoded by each method, the most frequent first."""
        found: dict[str, int] = {}
        for one in self.tensors:
            found[one.method] = found.get(one.method, 0) + 1
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


NO_CODES = QuantisedTensors()
