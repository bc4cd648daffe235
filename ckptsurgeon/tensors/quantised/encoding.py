"""Defines an encoding, which stores one quantised weight as several tensors, and lists of such weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from ..dtypes import DTYPES
from ..info import TensorInfo
from .settings import QuantisationSettings

__all__ = [
    "ACTIVATIONS",
    "CODE_TYPES",
    "EXPERT_SCALES",
    "NO_CODES",
    "PLAIN_NAMES",
    "Encoding",
    "LogicalTensor",
    "Parts",
    "QuantisedTensor",
    "QuantisedTensors",
    "are_plain_integers",
    "is_plain",
    "same_shape",
    "some",
]

Parts: TypeAlias = Mapping[str, TensorInfo]
"""The stored tensors of one logical tensor, by the endings of their keys; the first identifies the encoding."""

CODE_TYPES = frozenset(
    name
    for name, dtype in DTYPES.items()
    if dtype.kind == "quantized" or name.startswith(("float8", "float6", "float4"))
) | {"int8", "uint8", "int16", "uint16", "int32", "uint32"}  # fmt: skip
"""Dtypes that codes can have. Integers of 64 bits are indices and counters, not codes."""
_SIGNED = frozenset({"int8", "int16", "int32"})
_GATES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
PLAIN_NAMES = frozenset({
    "weight", "bias", "gamma", "beta", "running_mean", "running_var", "num_batches_tracked", "weight_g", "weight_v",
    "in_proj_weight", "in_proj_bias", "cls_token", "class_embedding", "pos_embed", "position_embeddings",
    "positional_embedding", "position_ids", "inv_freq", "pos_bias_u", "pos_bias_v", "A_log", "dt_bias",
    *_GATES, *(f"{name}_l{layer}{end}" for name in _GATES for layer in range(8) for end in ("", "_reverse")),
})  # fmt: skip
"""Names of tensors that are not parts of a quantised tensor, unless another name or dtype in their module shows one."""
_CENTROIDS = "centroids"
"""The ``weight`` of modules whose name ends with this is a table of VPTQ."""
ACTIVATIONS = (
    ".input_scale", ".input_scale_inv", ".input_scale_ub", ".input_zero_point", ".input_global_scale",
    ".input_activation_scale", ".output_scale", ".output_zero_point", ".output_activation_scale", ".activation_scale",
    ".act_scale", ".scale_input", ".qscale_act", ".pre_quant_scale", ".smooth_scale", ".k_scale", ".v_scale",
    ".k_zero_point", ".v_zero_point", ".comfy_quant", ".activation_scaling_factor", ".prequant_scaling_factor",
    ".input_descale", ".output_descale", ".input_amax", ".output_amax", ".weight_amax",
)  # fmt: skip
"""Endings of other tensors that any encoding may have: activation scales, and ComfyUI's description of its format."""
EXPERT_SCALES = (".experts.gate_up_proj_scale_inv", ".experts.down_proj_scale_inv")
"""Endings of scales that are in the submodule ``experts`` of a module, while their codes are in another submodule."""


@dataclass(frozen=True, slots=True)
class LogicalTensor:
    """The decoded weight of a quantised tensor: name of the encoding (``method``), number of parameters, shape.

    ``parameters`` is None if the number cannot be determined from the headers; the number is at least ``at_least``.
    ``shape`` is None if it is not known.
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

    A tensor whose key ends in ``telling`` and whose dtype is in ``dtypes`` identifies the encoding. Unless ``marks`` is
    empty, the state dict must also have a key with the same beginning and an ending in ``marks``. ``others`` are the
    endings of further tensors that may exist. ``codes`` is the ending of the codes if it is not ``telling``. ``named``
    is the ending that the key of the logical tensor would have if it were not quantised.

    ``logical`` is a function that returns the logical tensor, or None if shapes or dtypes show that this is not the
    encoding. ``places`` has the position of each ending in the list of all endings, in which ``telling`` is first.
    ``is_of_modules`` is true if each ending is a dot and one name.
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
    """Return a function for ``Encoding.logical`` that returns a logical tensor with the shape of the codes."""

    def logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
        return LogicalTensor.of(method, next(iter(parts.values())).shape)

    return logical


def some(method: str) -> Callable[[Parts, QuantisationSettings], LogicalTensor]:
    """Return a function for ``Encoding.logical`` that returns a logical tensor with an unknown number of parameters."""

    def logical(parts: Parts, quantisation: QuantisationSettings) -> LogicalTensor:
        return LogicalTensor(method, None, at_least=next(iter(parts.values())).numel)

    return logical


def are_plain_integers(key: str, info: TensorInfo) -> bool:
    """Return whether a tensor is a matrix of signed integers called ``weight``; it may be a table of ids, not codes.

    Such integers are taken for codes only if there are scales, quantisation settings or other quantised tensors.
    """
    return key.rpartition(".")[2] == "weight" and len(info.shape) > 1 and info.dtype in _SIGNED and info.numel > 1


def is_plain(tensors: Mapping[str, TensorInfo]) -> bool:
    """Return whether names, dtypes and shapes alone show that no tensor is quantised; most models are plain.

    If so, no module of an encoding is imported. If not, the state dict may nevertheless have no quantised tensors.
    """
    for key, info in tensors.items():
        module, _, name = key.rpartition(".")
        if name not in PLAIN_NAMES or info.dtype in CODE_TYPES or info.opaque or module.endswith(_CENTROIDS):
            return False
        if info.shape[1:] == (1,):  # bitsandbytes stores codes in this shape, sometimes as floats
            return False
    return True


# The logical tensors of a state dict that are stored as codes.


@dataclass(slots=True)  # treated as frozen: nothing ever sets a field, see Storage
class QuantisedTensor:
    """A quantised tensor: ``parts`` maps the endings of keys, such as ``.scales``, to the keys that store the tensor.

    ``name`` is the key that it would have if it were not quantised, ``method`` the name of its encoding, ``codes`` the
    key of its codes ("" if they are missing or in another shard). ``parameters`` is the number of parameters of the
    decoded weight and ``shape`` its shape; each is None if it cannot be determined from the headers. The number of
    parameters is at least ``at_least``. ``more_codes`` are the keys of further codes with the same scales; only unknown
    encodings have them. ``form`` is an index: the quantised tensors of one state dict that have the same encoding,
    endings, dtypes and shapes have the same ``form``.
    """

    name: str
    method: str
    codes: str
    parts: Mapping[str, str]
    parameters: int | None
    shape: tuple[int, ...] | None = None
    at_least: int = 0
    more_codes: tuple[str, ...] = ()
    form: int = field(default=0, compare=False, repr=False)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all stored tensors that make up the quantised tensor."""
        return tuple(self.parts.values())

    def ending(self, key: str) -> str:
        """Return the ending of ``key``, one of the stored keys of this tensor; raises StopIteration for other keys."""
        return next(end for end, part in self.parts.items() if part == key)

    def part_named(self, name: str, end: str) -> str | None:
        """Return the key that the part ``end`` would have if the quantised tensor were renamed to ``name``.

        ``end`` is the ending of the part's key. Returns None unless ``name`` has the same ending as the present name of
        the tensor (``.weight``).
        """
        key = self.codes or self.keys[0]
        stem = f".{key}".removesuffix(self.ending(key))
        named = f".{self.name}".removeprefix(stem)
        return f"{f'.{name}'.removesuffix(named)}{end}"[1:] if f".{name}".endswith(named) else None


@dataclass(frozen=True)
class QuantisedTensors:
    """The quantised tensors of a state dict; ``by_key`` maps each stored key to its quantised tensor."""

    tensors: tuple[QuantisedTensor, ...] = ()
    by_key: Mapping[str, QuantisedTensor] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.tensors)

    @property
    def names(self) -> dict[str, str]:
        """{stored key: name of the quantised tensor that it belongs to}."""
        return {key: coded.name for key, coded in self.by_key.items()}

    def only(self, keys: Container[str]) -> QuantisedTensors:
        """Return the quantised tensors whose codes are in ``keys``, without the others.

        If the codes of a tensor are in another shard, the first of its parts in this shard decides.
        """
        found = tuple(one for one in self.tensors if (one.codes or one.keys[0]) in keys)
        return self if len(found) == len(self.tensors) else QuantisedTensors(found, self.by_key)

    def by_form(self) -> dict[int, QuantisedTensor]:
        """Return the first quantised tensor with each ``form``: all tensors of a form have equal dtypes and shapes."""
        found: dict[int, QuantisedTensor] = {}
        for one in self.tensors:
            found.setdefault(one.form, one)
        return found

    def parameters(self, key: str, info: TensorInfo) -> int:
        """Return the number of parameters of a stored tensor.

        For codes, it is the number of parameters of the decoded weight, or the least possible number if
        ``is_counted`` is false. For scales and other parts, it is 0.
        """
        coded = self.by_key.get(key)
        if coded is None:
            return info.parameters
        return coded.at_least if key == coded.codes else 0

    def is_counted(self, key: str) -> bool:
        """Return whether the exact number of parameters of a stored tensor can be determined from the headers."""
        coded = self.by_key.get(key)
        return coded is None or coded.parameters is not None or key != coded.codes

    def has_numbers(self, key: str, info: TensorInfo) -> bool:
        """Return whether a stored tensor is no part of a quantised tensor, or a part with floats that are not codes."""
        coded = self.by_key.get(key)
        return coded is None or (DTYPES[info.dtype].kind == "float" and key not in (coded.codes, *coded.more_codes))

    def methods(self) -> dict[str, int]:
        """Return the number of tensors that each method encodes, the most frequent method first."""
        found: dict[str, int] = {}
        for one in self.tensors:
            found[one.method] = found.get(one.method, 0) + 1
        return dict(sorted(found.items(), key=lambda pair: -pair[1]))


NO_CODES = QuantisedTensors()
