"""The interface of decoders, and the decoding of a part of a weight, for which only the parts it needs are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Protocol, TypeAlias, cast

import numpy as np

from ...errors import FormatError
from ...util.registry import discover
from ...util.text import escape
from ..dtypes import DTYPES
from ..encodings._encoding import QuantisedTensor
from ..encodings._methods import family
from ..encodings._settings import QuantisationSettings, Settings, stated_by
from ..info import Decoded, TensorInfo
from ..odd_scales import OddScales
from ..ops.casts import widened
from ..ops.regions import Array, Box
from ._odd_scales import are_usual, find_odd_scales
from ._tables import looked_up, may_be_looked_up, products

__all__ = [
    "EXPONENTS",
    "Decoder",
    "Parts",
    "Request",
    "StatedSettings",
    "UndecodableError",
    "as_exponents",
    "decode",
    "decode_rounded",
    "decoded_weight",
    "groups_of",
    "whole",
]

Read: TypeAlias = Callable[[TensorInfo, Box], Array]
"""A function that reads a part of a stored tensor, in the type of ``raw_dtype``."""
Parts: TypeAlias = Mapping[str, TensorInfo]
"""The stored tensors of a quantised tensor, by the endings of their keys (``.scales``)."""

EXPONENTS = ("uint8", "float8_e8m0fnu")
"""Dtypes of scales that are powers of two: both store the exponent alone."""


class UndecodableError(Exception):
    """Raised for a quantised tensor that no decoder understands, or whose parts do not fit each other; says why."""


class StatedSettings:
    """The ``quantization_config`` of a folder (``fields``), searched once for all its tensors."""

    def __init__(self, fields: Settings) -> None:
        self.fields = fields
        self.searched = QuantisationSettings(fields)
        self.stated = stated_by(fields)


@dataclass(frozen=True)
class Request:
    """A quantised tensor, with what a decoder needs to describe the weight that it stands for.

    ``parts`` are its stored tensors, ``settings`` the ``quantization_config`` of its folder. ``stored`` returns the
    bytes of one of its small tensors, by the ending of its key; b"" if there is none, or if it cannot be read.
    ``metadata`` are the texts that its file stores with the tensors.
    """

    coded: QuantisedTensor
    parts: Parts
    settings: StatedSettings
    stored: Callable[[str], bytes] = lambda ending: b""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def codes(self) -> TensorInfo:
        """The codes themselves."""
        return next(self.parts[end] for end, key in self.coded.parts.items() if key == self.coded.codes)

    @property
    def own(self) -> QuantisationSettings:
        """The settings of the module of the tensor."""
        return self.settings.searched.of(self.coded.name.removesuffix(".weight"))

    def matrix(self) -> tuple[int, int]:
        """Return the rows and columns of the weight; raises UndecodableError if the headers do not give them."""
        shape = self.coded.shape
        if shape is None or len(shape) != 2 or not all(shape):
            raise UndecodableError("its headers do not give its shape")
        return shape[0], shape[1]


class Decoder(Protocol):
    """The interface of a decoder; each public module of this folder has an instance, ``DECODER``."""

    families: tuple[str, ...]
    """The families of encodings that it describes."""

    def describe(self, asked: Request) -> TensorInfo:
        """Return the weight, as float32, that a quantised tensor stands for; raises UndecodableError."""
        ...

    def boxes(self, made: Decoded, box: Box) -> Mapping[str, Box]:
        """Return the part of each stored tensor that a part ``box`` of the weight needs; others are not read."""
        ...

    def values(self, made: Decoded, arrays: Mapping[str, Array], box: Box) -> Array:
        """Return the part ``box`` of the weight as float32.

        ``arrays`` are the parts of the stored tensors that ``boxes`` asked for; floats are given in a type of numpy.
        """
        ...


@cache
def _decoders() -> dict[str, Decoder]:
    return cast("dict[str, Decoder]", discover("ckptsurgeon.tensors.decoders", "DECODER"))


@cache
def _decoder_of(named: str) -> Decoder | None:
    return next((one for one in _decoders().values() if named in one.families), None)


def decoded_weight(asked: Request) -> TensorInfo:
    """Return the weight, as float32, that a quantised tensor stands for; raises UndecodableError."""
    coded = asked.coded
    if not coded.codes:
        raise UndecodableError("its codes are missing, or have another dtype than codes have")
    for why in _obstacles(asked):
        raise UndecodableError(why)
    decoder = _decoder_of(family(coded.method))
    if decoder is None or coded.more_codes:
        raise UndecodableError(f"no decoder knows {coded.method}")
    made = decoder.describe(asked)
    assert isinstance(made.made, Decoded)
    for name, info in made.made.parts:
        kind = DTYPES[info.dtype].kind
        if info.opaque or (info.storage is None and info.made is None):
            raise UndecodableError(f"its {name} cannot be read")
        is_nested = name == "scale" and any(role == "nested_scale" for role, _ in made.made.parts)
        if kind not in KINDS.get(name, (kind,)) and not is_nested:
            raise UndecodableError(f"its {name} is {info.dtype}")
    told = made.made
    return TensorInfo(made.dtype, made.shape, made=Decoded(told.parts, told.encoding, told.facts, coded.name))


KINDS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("scale", "bias", "nested_scale", "times", "over", "values", "nested_values"), ("float",)),
    "order": ("int", "uint"),
}
"""What the stored tensors of a role may hold; bitsandbytes' ``scale`` may be codes, which have a ``nested_scale``."""
ON_INPUTS = (".pre_quant_scale", ".prequant_scaling_factor", ".smooth_scale")
"""Endings of scales that the inputs of a layer are multiplied by: its weight alone is not that of the network."""
COMFY, PLAIN_COMFY = ".comfy_quant", ("float8_e4m3fn", "float8_e5m2")
"""The tensor with ComfyUI's note of a format, and the formats whose weights are neither rotated nor in tiles."""


def _obstacles(asked: Request) -> Iterator[str]:
    """Yield what keeps a weight from being the product of its codes and scales."""
    for end in ON_INPUTS:
        if end in asked.parts:
            yield f"the inputs of its layer are scaled ({end[1:]}), so that the weight alone is not the network's"
    if asked.settings.fields.get("transform_config"):
        yield "it is stored in another basis (transform_config)"
    if COMFY in asked.parts and not any(f'"{one}"'.encode() in asked.stored(COMFY) for one in PLAIN_COMFY):
        yield "its format is ComfyUI's own (comfy_quant)"
    if "layers" in asked.settings.fields and family(asked.coded.method) not in ("fp8", "mxfp8"):
        yield "its format is ComfyUI's own"


def decode(read: Read, info: TensorInfo, box: Box, odd: OddScales | None = None) -> Array:
    """Return the part ``box`` of a decoded weight, as float32; ``read`` returns a part of a stored tensor.

    If the scales that are read are odd, the weight is added to ``odd``.
    """
    made = info.made
    assert isinstance(made, Decoded)
    decoder, stored = _decoders()[made.encoding], dict(made.parts)
    boxes = decoder.boxes(made, box)
    found = _looked_up(read, made, boxes, box, "float32")
    if found is not None:
        return found
    arrays = {name: widened(read(stored[name], one), stored[name].dtype) for name, one in boxes.items()}
    _check_scales(made, arrays)
    if odd is not None:
        find_odd_scales(made, arrays, odd, lambda some: decoder.values(made, some, box))
    with np.errstate(all="ignore"):  # what becomes infinite is counted where the values are cast
        values: Array = np.ascontiguousarray(decoder.values(made, arrays, box), dtype="<f4")
    return values


def decode_rounded(read: Read, info: TensorInfo, box: Box, dtype: str) -> Array | None:
    """Return the part ``box`` of a decoded weight in a floating dtype, in less time than ``decode`` and a cast take.

    Returns the values that these two give, or None if only they can give them.
    """
    made = info.made
    assert isinstance(made, Decoded)
    return _looked_up(read, made, _decoders()[made.encoding].boxes(made, box), box, dtype)


def _looked_up(read: Read, made: Decoded, boxes: Mapping[str, Box], box: Box, dtype: str) -> Array | None:
    """Return the part ``box`` of a weight by looking its values up; None if they have to be computed."""
    if not may_be_looked_up(made, boxes):
        return None
    stored = dict(made.parts)
    scale = widened(read(stored["scale"], boxes["scale"]), stored["scale"].dtype)
    _check_scales(made, {"scale": scale})
    table = products(stored["codes"].dtype, scale, dtype) if are_usual(scale) else None
    if table is None:
        return None
    steps = [int(dict(made.facts)[f"step{dim}"]) for dim in range(len(box))]
    return looked_up(np.ascontiguousarray(read(stored["codes"], box)), table, scale.shape, box, steps)


def _check_scales(made: Decoded, arrays: Mapping[str, Array]) -> None:
    """Raise FormatError for a scale that is NaN or infinite, and for one of 0 that is divided by."""
    for name in SCALES:
        if name in arrays and arrays[name].dtype.kind == "f" and not np.isfinite(arrays[name]).all():
            raise FormatError(f"a scale of the quantised tensor {escape(made.name)} is NaN or infinite.", rule="scale")
    if "over" in arrays and not arrays["over"].all():
        raise FormatError(f"a scale that the quantised tensor {escape(made.name)} is divided by is 0.", rule="scale")


SCALES = ("scale", "bias", "nested_scale", "times", "over")
"""The roles of stored tensors that must be finite numbers."""


def as_exponents(info: TensorInfo) -> TensorInfo:
    """Return a scale whose bytes are exponents with the dtype that says so; other scales unchanged."""
    return replace(info, dtype=EXPONENTS[1]) if info.dtype == EXPONENTS[0] else info


def whole(info: TensorInfo) -> Box:
    """Return the box that is all of a tensor."""
    return tuple((0, size) for size in info.shape)


def groups_of(span: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the range of groups of ``size`` elements that a range of elements overlaps."""
    return span[0] // size, -(-span[1] // size)
